"""Leaf modules: which ones slicing can resize, and what changes with their parameters.

A module of another class that holds parameters is kept whole; user code behind a leaf is opaque, so that
sizes hidden inside cannot be rewritten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fx_oto.nn import attention, modes, norms, products
from fx_oto.nn.leaves import leaf_of
from fx_oto.nn.recurrence import GATES

__all__ = ["holds_layers", "is_opaque", "is_torchs", "keeps_parameters_whole", "resizable", "resize"]


def _weight(module: nn.Module) -> Any:
    """A module's weight, or what a hook of ``torch.nn.utils`` computes it from: then the weight itself is stale."""
    stored = [parameter for parameter in module.parameters(recurse=False) if parameter.ndim > 1]
    return max(stored, key=Tensor.numel) if stored else module.weight


def _conv(module: Any, inputs: int, outputs: int) -> None:
    module.in_channels, module.out_channels = inputs, outputs
    module.groups = (outputs if module.transposed else inputs) // _weight(module).shape[1]


def _linear(module: Any, inputs: int, outputs: int) -> None:
    module.out_features, module.in_features = _weight(module).shape


def _bilinear(module: Any, inputs: int, outputs: int) -> None:
    module.out_features, module.in1_features, module.in2_features = module.weight.shape


def _norm(module: Any, inputs: int, outputs: int) -> None:
    module.num_features = inputs


def _group_norm(module: Any, inputs: int, outputs: int) -> None:
    module.num_groups = max(1, module.num_groups * inputs // module.num_channels)
    module.num_channels = inputs


def _embedding(module: Any, inputs: int, outputs: int) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _prelu(module: Any, inputs: int, outputs: int) -> None:
    module.num_parameters = module.weight.shape[0]


def _recurrent(module: Any, inputs: int, outputs: int) -> None:
    first = module.weight_ih_l0
    module.input_size = first.shape[1]
    module.hidden_size = first.shape[0] // GATES[module.mode.lower()]
    module.proj_size = module.weight_hh_l0.shape[1] if module.proj_size else 0
    module._init_flat_weights()  # its list of parameters, which it keeps beside them


def _recurrent_cell(module: Any, inputs: int, outputs: int) -> None:
    module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]


_RESIZERS: tuple[tuple[type[nn.Module], Callable[[Any, int, int], None]], ...] = (
    (_ConvNd, _conv),
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (_NormBase, _norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent_cell),
)
# Replaced as a whole: by a norm over the original count, by attention with fewer heads (see rewriting/computation.py).
# Those stay in a second round, in which nothing but their parameters and the number of heads changes.
_REPLACED: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention)
_REPLACED += (norms.LayerNormOver, norms.GroupNormOver, norms.RMSNormOver, attention.FewerHeads)


def _resizer(module: nn.Module) -> Callable[[Any, int, int], None] | None:
    if not is_torchs(type(module)):
        return None
    return next((resizer for kind, resizer in _RESIZERS if isinstance(module, kind)), None)


def is_torchs(kind: Any) -> bool:
    """Return whether a class or function is torch's or Python's own, which slicing knows or may call as it is."""
    module = getattr(kind, "__module__", None) or ""
    return module.split(".")[0] in ("torch", "_operator", "builtins", "math") or not module


def _is_ours(kind: Any) -> bool:
    """Return whether capture, or slicing in an earlier round, put a class or function into the graph."""
    return getattr(kind, "__module__", None) in {one.__name__ for one in (norms, attention, modes, products)}


def keeps_parameters_whole(module: nn.Module) -> bool:
    """Return whether a leaf holds parameters that slicing does not know how to cut."""
    known = _resizer(module) is not None or type(module) in _REPLACED or leaf_of(module) is not None
    return not known and next(module.parameters(), None) is not None


def holds_layers(module: nn.Module) -> bool:
    """Return whether one of torch's modules consists of others that slicing knows, such as a transformer's layer."""
    known = type(module) in _REPLACED or _resizer(module) is not None or hasattr(module, "parametrizations")
    return not known and any(next(child.parameters(), None) is not None for child in module.children())


def is_opaque(node: Node, gm: GraphModule) -> bool:
    """Return whether a node runs Python code that slicing can neither rewrite nor see into."""
    if node.op == "call_module":
        kind = type(gm.get_submodule(str(node.target)))
        if issubclass(kind, torch.jit.ScriptModule):
            return True
        return not is_torchs(kind) and not _is_ours(kind)
    if node.op == "call_function":
        return not (isinstance(node.target, OpOverload) or is_torchs(node.target) or _is_ours(node.target))
    return False


def resizable(module: nn.Module) -> bool:
    """Return whether ``resize`` knows what to do with a leaf module."""
    return _resizer(module) is not None


def resize(module: nn.Module, inputs: int, outputs: int) -> None:
    """Bring a module's attributes in line with its sliced parameters.

    Args:
        module: a leaf module whose parameters were sliced.
        inputs: channels (dimension 1) of its input, after slicing.
        outputs: channels (dimension 1) of its output, after slicing.
    """
    if resizer := _resizer(module):
        resizer(module, inputs, outputs)
