"""How much outputs differ, and how much they may."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from fx_oto.core.fx_utils import tensor_leaves

__all__ = ["lowest_tolerance", "relative_error", "tensors_in", "tolerance_of", "worst_of"]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def worst_of(expected: list[Tensor], found: list[Tensor], least: float) -> tuple[float, float]:
    """The error of the output that exceeds what is allowed by most, and what is: as its type has it, or more."""
    pairs = zip(expected, found, strict=True)
    errors = [(relative_error(*pair), max(tolerance_of(pair[0]), least)) for pair in pairs]
    return max(errors, key=lambda pair: pair[0] - pair[1], default=(0.0, 0.0))


def lowest_tolerance(gm: GraphModule, own: torch.dtype | None = None) -> float:
    """What may differ in the lowest precision that a graph computes in: a softmax in float32 inside of float64.

    Args:
        gm: the graph.
        own: the type that its weights had when it was captured, if it is to be left out: they may have been cast since.
    """
    tensors = (tensor for node in gm.graph.nodes for tensor in tensor_leaves(node.meta.get("val")))
    return max((_TOLERANCE.get(one.dtype, 0.0) for one in tensors if one.dtype != own), default=0.0)


def tolerance_of(tensor: Tensor) -> float:
    """How much may differ from a tensor, relative to its largest value."""
    return _TOLERANCE.get(tensor.dtype, 0.0)


def relative_error(expected: Any, found: Any) -> float:
    """Largest absolute difference of two pytrees of tensors, each relative to the largest value expected there."""
    left, right = tensors_in(expected), tensors_in(found)
    if [t.shape for t in left] != [t.shape for t in right]:
        return float("inf")
    errors = [0.0]
    for one, other in zip(left, right, strict=True):
        same = (one == other) | ((one != one) & (other != other))  # noqa: PLR0124 - NaN differs from itself
        if not same.all():
            error = (one.double() - other.double()).abs().max().item()
            scale = one.double().abs().max().item()
            errors.append(error / scale if scale else error)
    return max(errors)


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a nested value, also in the attributes of objects that torch does not look into."""
    found = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module):
            found += tensors_in(vars(leaf))
    return found
