"""Groups, norms, means, attention and folded constants: what a node computes, made to fit fewer channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd

from fx_oto.analysis.dependencies import Adjustment
from fx_oto.core.errors import SlicingError
from fx_oto.core.fx_utils import described, op_name, tensor_names
from fx_oto.nn.attention import FewerHeads
from fx_oto.nn.leaves import leaf_of
from fx_oto.nn.modules import resize
from fx_oto.nn.norms import (
    batch_norm_over,
    group_norm_over,
    layer_norm_over,
    mean_over,
    over_original_count,
    rms_norm_over,
    variance_over,
    worth_beside,
)
from fx_oto.ops.editor import Editor
from fx_oto.ops.reshape import rewriting as sizes

__all__ = [
    "Fold",
    "adjust",
    "check_whole",
    "fewer_heads",
    "groups",
    "norm_groups",
    "original_scale",
    "resize_leaf",
    "resize_module",
]

# What the removed input channels of a node contributed to its output, shape ``(outputs,)``.
Fold = Callable[[Node, Adjustment], Tensor]


def resize_module(edit: Editor, node: Node) -> None:
    """Let a leaf module's attributes follow its parameters."""
    module = edit.gm.get_submodule(str(node.target))
    dim = _channel_dim(edit, node, module.weight.ndim) if isinstance(module, _ConvNd) else 1
    resize(module, edit.channels(node.args[0], dim), edit.channels(node, dim))


def check_whole(edit: Editor, node: Node) -> None:
    """Refuse a module that nobody can resize: it was a leaf of the user's when the model was analysed."""
    module = edit.gm.get_submodule(str(node.target))
    names = {f"{node.target}.{name}" for name, _ in module.named_parameters()}
    if any(name in names for name, _ in edit.cuts.axes):
        raise SlicingError(
            f"{described(node)} has lost channels, but {type(module).__name__} has no rule any more: register it "
            "again with fx_oto.register_leaf, and keep it registered until the model is compressed"
        )


def resize_leaf(edit: Editor, node: Node) -> None:
    """Let the attributes of a module of the user's follow its parameters, as it was registered."""
    module = edit.gm.get_submodule(str(node.target))
    if leaf := leaf_of(module):
        leaf.resize(module)


def _channel_dim(edit: Editor, node: Node, weight_ndim: int) -> int:
    """The dimension of a convolution's channels: 0 for a single image, 1 for a batch."""
    return len(edit.shape(node)) - weight_ndim + 1


def groups(edit: Editor, node: Node) -> None:
    """Functional grouped convolution: groups are channels over channels per group."""
    name = op_name(node)
    position, transposed = (8, node.args[6]) if name == "convolution" else (6, "transpose" in name)
    groups = edit.argument(node, position, "groups", 1)
    if groups == 1 or isinstance(groups, Node):  # computed, such as one for each example: groups that are not cut
        return
    weight = edit.argument(node, 1, "weight")
    dim = _channel_dim(edit, node, len(edit.shape(weight)))
    channels = edit.channels(node if transposed else node.args[0], dim)
    edit.set_argument(node, position, "groups", channels // edit.channels(weight))


def norm_groups(edit: Editor, node: Node) -> None:
    """Functional group norm: whole groups went."""
    source = node.args[0]
    groups = edit.argument(node, 1, "num_groups")
    if 1 in edit.cut(source) and groups > 1:
        left = groups * edit.channels(source) // edit.shape(source)[1]  # type: ignore[arg-type]
        edit.set_argument(node, 1, "num_groups", left)


def original_scale(edit: Editor, node: Node) -> None:
    """Attention whose default scale, 1 / √width, would follow the width that is left."""
    query = edit.argument(node, 0, "query")
    shape = edit.shape(query)
    if len(shape) - 1 in edit.cut(query) and node.kwargs.get("scale") is None:
        node.update_kwarg("scale", shape[-1] ** -0.5)


def fewer_heads(edit: Editor, node: Node) -> None:
    """Attention over sliced parameters is another module, and remains it in a second round."""
    calls = [one for one in edit.graph.nodes if one.op == "call_module" and one.target == node.target]
    module: Any = edit.gm.get_submodule(str(node.target))
    names = {id(tensor): name for name, tensor in tensor_names(edit.gm).items()}
    mine = {names[id(parameter)] for parameter in module.parameters()}
    if node is not calls[0] or not any(name in mine for name, _ in edit.cuts.axes):
        return
    heads = _heads_left(edit, names[id(module.out_proj.weight)], module.num_heads)
    if isinstance(module, FewerHeads):
        module.num_heads = heads
        resize(module.out_proj, 0, 0)
    else:
        edit.gm.set_submodule(str(node.target), FewerHeads(module, heads))


def _heads_left(edit: Editor, projection: str, heads: int) -> int:
    """Of how many heads something is left in the columns of the output's projection."""
    kept = edit.cuts.axes.get((projection, 1))
    if kept is None:
        return heads
    size = next(axis.size for axis in edit.cuts.found.axes if (axis.tensor, axis.dim) == (projection, 1))
    return len((kept // (size // heads)).unique())


def adjust(edit: Editor, node: Node, adjustment: Adjustment, fold: Fold) -> None:
    """Make a node compute over the original count, or add what removed channels contributed."""
    kept = edit.cuts.kept_labels(adjustment.labels)
    share = float(kept.sum()) / len(kept)
    if adjustment.kind in ("norm", "mean") and node.op == "call_module":
        module = edit.gm.get_submodule(str(node.target))
        edit.gm.set_submodule(str(node.target), over_original_count(module, len(kept)))
    elif adjustment.kind == "norm" and "batch_norm" in op_name(node):
        _batch_norm(edit, node, share)
    elif adjustment.kind == "norm":
        _norm(edit, node, len(kept))
    elif adjustment.kind == "mean" and "rms_norm" in op_name(node):
        _rms_norm(edit, node)
    elif adjustment.kind == "var":
        _variance(edit, node, share)
    elif adjustment.kind == "sizes":
        sizes.check_sizes(edit, node)
    elif adjustment.kind == "mean":
        _mean(edit, node, adjustment, share)
    else:
        _fold(edit, node, fold(node, adjustment))


def _norm(edit: Editor, node: Node, count: int) -> None:
    if node.target in (group_norm_over, layer_norm_over):  # it counts what there was at first
        return
    over = group_norm_over if "group" in op_name(node) else layer_norm_over
    weight, bias = edit.argument(node, 2, "weight"), edit.argument(node, 3, "bias")
    eps = edit.argument(node, 4, "eps", 1e-5)
    edit.replace(node, over, node.args[0], count, weight, bias, eps)


def _batch_norm(edit: Editor, node: Node, share: float) -> None:
    if node.target is batch_norm_over:  # two of its dimensions are cut, or it is from an earlier round
        node.update_arg(1, node.args[1] * share)  # type: ignore[operator]
        return
    first = 3 if node.target is F.batch_norm else 1  # torch.batch_norm has another order
    weight, bias = edit.argument(node, first, "weight"), edit.argument(node, first + 1, "bias")
    eps = edit.argument(node, 7, "eps", 1e-5)
    edit.replace(node, batch_norm_over, node.args[0], share, weight, bias, eps)


def _rms_norm(edit: Editor, node: Node) -> None:
    if node.target is rms_norm_over:  # two of its dimensions are cut
        return
    source, dims = node.args[0], len(edit.argument(node, 1, "normalized_shape"))
    shape = tuple(edit.shape(source)[-dims:])  # type: ignore[arg-type]
    weight, eps = edit.argument(node, 2, "weight"), edit.argument(node, 3, "eps")
    edit.replace(node, rms_norm_over, source, shape, weight, eps)


def _variance(edit: Editor, node: Node, share: float) -> None:
    if node.target is variance_over:  # two of its dimensions are cut, or it is from an earlier round
        node.update_kwarg("share", node.kwargs["share"] * share)  # type: ignore[operator]
        return
    edit.replace(node, variance_over, op_name(node), *node.args, share=share, **node.kwargs)


def _mean(edit: Editor, node: Node, adjustment: Adjustment, share: float) -> None:
    missing = None if (adjustment.removed == 0).all() else _missing(edit, node, adjustment.labels)
    if node.target is mean_over:  # two of its dimensions are cut, or it is from an earlier round
        before: Any = node.args[3]
        node.update_arg(5, _mixed(edit, node, node.args[5], missing, (1 - before) / (1 - before * share)))
        node.update_arg(3, before * share)
        return
    dim, keepdim = edit.argument(node, 1, "dim"), edit.argument(node, 2, "keepdim", False)
    edit.replace(node, mean_over, node.args[0], dim, keepdim, share, node.kwargs.get("dtype"), missing)


def _mixed(edit: Editor, reader: Node, before: Any, now: Any, share: float) -> Node | None:
    """Mean of what elements were worth that went before, a share of all that are gone, and that go now."""
    parts = [(part, weight) for part, weight in ((before, share), (now, 1 - share)) if part is not None]
    with edit.graph.inserting_before(reader):
        weighted = [edit.graph.call_function(torch.mul, part) for part in parts]
        return edit.graph.call_function(torch.add, tuple(weighted)) if len(weighted) > 1 else next(iter(weighted), None)


def _missing(edit: Editor, reader: Node, labels: Tensor) -> Node:
    """What each removed element of the mean's input is worth, in a tensor of size 1 along the dimension that is cut."""

    def worth(node: Node, back: int) -> Node:
        if not isinstance(node.meta["val"], Tensor):  # a number, such as an input's length
            return node
        dim = len(edit.shape(node)) - back
        layer = next((layer for layer in edit.layers(node) if layer.dims == (dim,)), None)
        if layer is None:  # the same for every channel
            return node
        if layer.removed.isnan().any():
            sources = {source: worth(source, back) for source in node.all_input_nodes}
            with edit.graph.inserting_after(node):
                return edit.graph.node_copy(node, sources.__getitem__)
        with edit.graph.inserting_after(node):
            return edit.graph.call_function(worth_beside, (node, dim, float(layer.removed)))

    source = reader.all_input_nodes[0]
    dim = next(layer.dims[0] for layer in edit.layers(source) if torch.equal(layer.labels.reshape(-1), labels))
    return worth(source, len(edit.shape(source)) - dim)


def _fold(edit: Editor, node: Node, contribution: Tensor) -> None:
    spatial = 0 if op_name(node).lower() == "linear" else len(edit.shape(node)) - 2
    constant = edit.constant("folded", contribution.reshape(-1, *[1] * spatial), node.next)
    readers = list(node.users)
    with edit.graph.inserting_after(constant):
        total = edit.graph.call_function(torch.add, (node, constant))
    edit.adopt(total, node)
    for reader in readers:
        reader.replace_input_with(node, total)
