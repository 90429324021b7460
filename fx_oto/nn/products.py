"""Products that compact models compute with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fx_oto.nn.whole_calls import Shown, WholeCalls

__all__ = ["WholeProducts", "grouped_mm_of_any_width"]

_ALIGNED = 16  # bytes, of which torch's kernels want each row of a matrix to be a multiple


def grouped_mm_of_any_width(left: Tensor, right: Tensor, offs: Tensor) -> Tensor:
    """``torch.nn.functional.grouped_mm`` of matrices of any size, with zeros beside those that its kernels refuse.

    Args:
        left: rows of shape ``(n, k)``.
        right: matrices of shape ``(e, k, m)``.
        offs: where the rows of each matrix end, shape ``(e,)``.
    """
    if has_torch_function_unary(left):
        return handle_torch_function(grouped_mm_of_any_width, (left,), left, right, offs)
    step = _ALIGNED // left.element_size()
    inner, width = -right.shape[1] % step, -right.shape[2] % step
    if not (inner or width):
        return torch._grouped_mm(left, right, offs=offs)
    padded = F.pad(right, (0, width, 0, inner))
    return torch._grouped_mm(F.pad(left, (0, inner)), padded, offs=offs)[:, : right.shape[2]]


class WholeProducts(WholeCalls):
    """Show these as torch's own, which lose the same channels."""

    names = frozenset(("grouped_mm_of_any_width",))

    def shown(self, func: Any, args: tuple[Any, ...]) -> Shown | None:
        """Return torch's own product."""
        if func is not grouped_mm_of_any_width:
            return None
        return torch.ops.aten._grouped_mm.default, args, lambda: func(*args)
