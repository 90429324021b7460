"""The same networks with Torch-Pruning: what it leaves of the parameters at a pruning ratio of one half."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning as tp
from explaining import explained
from networks import Built, Call
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["measure"]

HEADS, WIDTHS, TOTALS = (
    ("num_heads", "num_attention_heads", "n_heads"),
    ("head_dim", "attention_head_size", "key_value_proj_dim"),
    ("all_head_size", "inner_dim", "dim"),
)


def measure(build: Callable[[], Built], note: Callable[[str], None]) -> dict[str, Any]:
    """``params_left`` where it prunes and its network still runs with outputs of the same shape; else the reason."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    try:
        note("building")
        model, inputs, *_ = build()
        call, before = inputs(2, 0), _size(model.eval())
        with torch.no_grad():
            shapes, outputs = _shapes(model, call), _outputs(model, call)
        note("grouping")
        heads = _heads(model)
        pruner = tp.pruner.MetaPruner(
            model,
            call,
            importance=tp.importance.GroupMagnitudeImportance(),
            pruning_ratio=0.5,
            ignored_layers=outputs,
            num_heads={layer: owner[1] for layer, owner in heads.items()},
            forward_fn=lambda network, given: _leaves(network(*given[0], **given[1])),
        )
        note("pruning")
        pruner.step()
        _tell_widths(heads)
        note("running the pruned model")
        with torch.no_grad():
            after = _shapes(model, call)
        left = round(_size(model) / before, 4)
        if after != shapes:
            return {"reason": f"its outputs change from {shapes[:2]} to {after[:2]}"}
        return {"params_left": left} if left < 1 else {"reason": "nothing is pruned"}
    except Exception as error:
        return {"reason": explained(error)[:200]}


def _heads(model: nn.Module) -> dict[nn.Module, tuple[nn.Module, int]]:
    """Each projection of an attention, with the module that holds it and its number of heads."""
    found: dict[nn.Module, tuple[nn.Module, int]] = {}
    for owner in model.modules():
        count = next((n for name in HEADS if isinstance(n := getattr(owner, name, None), int)), None)
        projections = [layer for layer in owner.children() if isinstance(layer, nn.Linear)] if count else []
        for layer in projections:
            parts = 3 if layer.out_features == 3 * layer.in_features else 1
            if parts == 3 or (len(projections) > 2 and layer.out_features % count == 0):
                found[layer] = (owner, count)
    return found


def _tell_widths(heads: dict[nn.Module, tuple[nn.Module, int]]) -> None:
    """Modules that remember the width of a head are told the new one, as Torch-Pruning's examples do.

    The first projection of each decides, in all libraries a query, key or value; the last makes the output.
    """
    for layer, (owner, count) in reversed(heads.items()):
        width = layer.out_features // count // (3 if hasattr(owner, "qkv") else 1)
        for name in WIDTHS:
            if isinstance(getattr(owner, name, None), int):
                setattr(owner, name, width)
        for name in TOTALS:
            if isinstance(getattr(owner, name, None), int):
                setattr(owner, name, width * count)


def _outputs(model: nn.Module, call: Call) -> list[nn.Module]:
    """The layers whose result the model returns, perhaps in another shape."""
    places: dict[int, list[nn.Module]] = {}
    kept: list[Tensor] = []

    def hook(layer: nn.Module, _: Any, result: Tensor) -> None:
        kept.append(result)  # so that its memory is not given to another
        places.setdefault(result.data_ptr(), []).append(layer)

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    results = _leaves(model(*call[0], **call[1]))
    for handle in handles:
        handle.remove()
    found = [layer for leaf in results for layer in places.get(leaf.data_ptr(), [])]
    return found or layers[-1:]


def _leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _shapes(model: nn.Module, call: Call) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in _leaves(model(*call[0], **call[1]))]


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
