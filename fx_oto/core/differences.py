"""How much outputs differ, and how much they may."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from fx_oto.core.fx_utils import tensor_leaves

__all__ = [
    "largest_gap",
    "largest_value",
    "lowest_tolerance",
    "relative_error",
    "tensors_in",
    "tolerance_of",
    "worst_of",
]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_WIDE = (torch.float32, torch.float64, torch.complex64, torch.complex128)  # differences in which say enough


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
        if gap := largest_gap(one, other):
            errors.append(gap / (largest_value(one) or 1.0))
    return max(errors)


def largest_gap(expected: Tensor, found: Tensor) -> float:
    """The largest absolute difference of two tensors of one shape.

    NaN equals NaN, and an infinity itself; each is infinitely far from anything else.
    """
    same = (expected == found) | ((expected != expected) & (found != found))  # noqa: PLR0124 - NaN differs from itself
    if same.all():
        return 0.0
    gaps = (_wide(expected) - _wide(found)).abs().masked_fill_(same, 0.0)
    gap: float = gaps.nan_to_num_(nan=math.inf, posinf=math.inf).max().item()
    return gap if gap or expected.dtype in _TOLERANCE else 1.0  # two integers of 60 bits, as floats, may be one number


def largest_value(tensor: Tensor) -> float:
    """The largest finite absolute value, 0 if there is none."""
    return _wide(tensor).abs().nan_to_num_(nan=0.0, posinf=0.0).max().item() if tensor.numel() else 0.0


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in _WIDE else tensor.double()


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a nested value, also in the attributes of objects that torch does not look into."""
    found = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
            continue
        if isinstance(leaf, dict | list | tuple):  # of a class that torch has not been told of
            found += tensors_in(dict(leaf) if isinstance(leaf, dict) else list(leaf))
        if hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module) and vars(leaf) is not leaf:
            found += tensors_in(vars(leaf))
    return found
