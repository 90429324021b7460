"""Which nodes may return memory of others, and which write into it: by names, so rather one too many."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fx_oto.core.fx_utils import op_name, tensor_leaves
from fx_oto.core.masks import is_mask
from fx_oto.nn.modes import says_in_place, written_in
from fx_oto.nn.modules import is_opaque, is_torchs

__all__ = ["Aliases", "form", "is_effect", "reads_form", "tensors_read"]

# Modules whose result is memory of its own.
_FRESH: tuple[type[nn.Module], ...] = (
    nn.Linear,
    _ConvNd,
    _NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.GELU,
    nn.Tanh,
)
_FRESH += (nn.Sigmoid, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU, nn.Mish)
_FRESH_OPS = {"linear", "matmul", "mm", "bmm", "addmm", "conv1d", "conv2d", "conv3d", "convolution", "layer_norm"}
_FRESH_OPS |= {"rms_norm", "batch_norm", "scaled_dot_product_attention", "cat", "stack", "mean", "sum", "softmax"}
_FRESH_OPS |= {"clone", "layer_norm_over", "rms_norm_over", "einsum", "embedding", "gelu", "truediv", "max_pool2d"}
# What only asks for the form of its first argument.
_FORM = {"size", "dim", "numel", "nelement", "ndimension", "sym_size", "empty_like", "zeros_like", "ones_like"}
_FORM |= {"full_like", "rand_like", "randn_like", "new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"}
_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "layout"}


class Aliases:
    """Answers for one graph.

    Args:
        gm: the GraphModule.
    """

    def __init__(self, gm: GraphModule) -> None:
        self.gm = gm
        self.order = {node: i for i, node in enumerate(gm.graph.nodes)}
        self.writers = [node for node in gm.graph.nodes if _target(node) is not None]

    def chain(self, node: Node) -> list[Node]:
        """A node, and those whose memory its value may be."""
        found: dict[Node, None] = {}
        waiting = [node]
        while waiting:
            one = waiting.pop()
            if one not in found:
                found[one] = None
                waiting.extend(self._aliased(one))
        return list(found)

    def _aliased(self, node: Node) -> list[Node]:
        if node.op in ("placeholder", "get_attr", "output"):
            return []
        if (target := _target(node)) is not None or says_in_place(node):
            return [] if target is None else [target]
        if node.op == "call_module":
            fresh = isinstance(self.gm.get_submodule(str(node.target)), _FRESH)
        else:
            name = op_name(node)
            fresh = name in _FRESH_OPS or reads_form(node) or _is_pointwise(name)
        return [] if fresh else tensors_read(node)

    def written(self, writer: Node) -> list[Node]:
        """The nodes in whose values a node may be seen to have written."""
        target = _target(writer)
        return [] if target is None else self.chain(target)

    def overwritten(self) -> Iterator[Node]:
        """Nodes whose value, or its memory, is read after another has written into it."""
        for writer in self.writers:
            for node in self.written(writer):
                late = (one for one in node.users if self.order[one] > self.order[writer] and not reads_form(one))
                if next(late, None) is not None:
                    yield node


def _target(node: Node) -> Node | None:
    """What a node writes into, None if it only computes."""
    if node.target is written_in:
        return node.args[3]  # type: ignore[return-value]
    if isinstance(out := node.kwargs.get("out"), Node):
        return out
    if not node.op.startswith("call_") or not (says_in_place(node) or op_name(node) == "copy_"):
        return None
    first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return first if isinstance(first, Node) else None


def _is_pointwise(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or name in ("to", "_to_copy"):
        return False
    overloads = [getattr(packet, one) for one in packet.overloads()]
    return any(torch.Tag.pointwise in one.tags for one in overloads) and not any(one.is_view for one in overloads)


def tensors_read(node: Node) -> list[Node]:
    """The nodes among a node's arguments that return tensors."""
    return [one for one in node.all_input_nodes if tensor_leaves(one.meta.get("val"))]


def reads_form(node: Node) -> bool:
    """Whether a node asks for no number of what it reads, but for its shape, type or device."""
    name = op_name(node)
    return name in _FORM or (name == "getattr" and node.args[1] in _ATTRIBUTES)


def is_effect(node: Node, gm: GraphModule) -> bool:
    """Whether a node that nobody reads does something all the same: it checks, writes, or runs code of the user's."""
    if node.op == "placeholder" or _target(node) is not None:
        return True
    if node.op == "call_module":
        return not is_mask(node) and not is_torchs(type(gm.get_submodule(str(node.target)))) and is_opaque(node, gm)
    if node.op != "call_function":
        return False
    made = tensor_leaves(node.meta.get("val")) or isinstance(node.meta.get("val"), Tensor | int | float | bool)
    return is_opaque(node, gm) or not (made or node.meta.get("val") is not None)


def form(node: Node) -> object:
    """Shape, type and device of a node's value, for comparison; None where it is no single tensor."""
    value = node.meta.get("val")
    return (tuple(value.shape), value.dtype, value.device) if isinstance(value, Tensor) else None
