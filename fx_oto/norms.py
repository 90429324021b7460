"""Norms over channels of which some were cut out: statistics still divide by the original count.

The channels that are gone were zero, so their part in the sums is known: nothing in the mean, and the squared
mean each in the variance. Results equal those of the full norm on the group-sparse input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = [
    "GroupNormOver",
    "LayerNormOver",
    "group_norm_over",
    "layer_norm_over",
    "mean_over",
    "over_original_count",
]


def layer_norm_over(value: Tensor, count: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm over the last dimension, as if it had ``count`` channels of which the missing are zero.

    Args:
        value: shape ``(…, kept)``.
        count: original number of channels.
        weight: shape ``(kept,)``, or None.
        bias: shape ``(kept,)``, or None.
        eps: added to the variance.
    """
    wide = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    mean = wide.sum(-1, keepdim=True) / count
    centred = wide - mean
    missing = count - value.shape[-1]
    variance = (centred.square().sum(-1, keepdim=True) + missing * mean.square()) / count
    result = (centred * torch.rsqrt(variance + eps)).to(value.dtype)
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


def group_norm_over(value: Tensor, count: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Group norm with one group over all of ``(N, kept, …)``, as if dimension 1 had ``count`` channels."""
    spatial = value[0, 0].numel()
    flat = layer_norm_over(value.flatten(1), count * spatial, None, None, eps).view_as(value)
    shape = [1, -1] + [1] * (value.ndim - 2)
    flat = flat if weight is None else flat * weight.view(shape)
    return flat if bias is None else flat + bias.view(shape)


def mean_over(
    value: Tensor, dim: int | list[int] | None, keepdim: bool, share: float, dtype: torch.dtype | None = None
) -> Tensor:
    """Mean over dimensions of which only ``share`` of the elements are left, the missing ones being zero."""
    return value.mean(dim, keepdim=keepdim, dtype=dtype) * share


class _NormOver(nn.Module):
    """A norm's parameters at the kept channels, and the original channel count."""

    def __init__(self, count: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        super().__init__()
        self.weight: Tensor | None
        self.bias: Tensor | None
        self.count, self.eps = count, eps
        self.register_parameter("weight", weight)  # type: ignore[arg-type]
        self.register_parameter("bias", bias)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Shown in the module's repr."""
        return f"count={self.count}, eps={self.eps}"


class LayerNormOver(_NormOver):
    """``nn.LayerNorm`` over the last dimension, dividing by the original ``count``."""

    def forward(self, value: Tensor) -> Tensor:
        """Normalise ``(…, kept)``."""
        return layer_norm_over(value, self.count, self.weight, self.bias, self.eps)


class GroupNormOver(_NormOver):
    """``nn.GroupNorm`` with one group, dividing by the original ``count``."""

    def forward(self, value: Tensor) -> Tensor:
        """Normalise ``(N, kept, …)``."""
        return group_norm_over(value, self.count, self.weight, self.bias, self.eps)


def over_original_count(module: nn.Module, count: int) -> nn.Module:
    """The norm that takes the place of ``nn.LayerNorm`` or one-group ``nn.GroupNorm`` with cut parameters."""
    if isinstance(module, _NormOver):  # shared, and replaced before
        return module
    kind = GroupNormOver if isinstance(module, nn.GroupNorm) else LayerNormOver
    return kind(count, module.weight, module.bias, module.eps).train(module.training)  # type: ignore[arg-type]
