"""Norms over channels of which some were cut out: statistics still divide by the original count.

The channels that are gone were zero, so their part in the sums is known: nothing in the mean, and the squared
mean each in the variance. Results equal those of the full norm on the group-sparse input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from fx_oto.nn.whole_calls import Shown, WholeCalls

__all__ = [
    "GroupNormOver",
    "LayerNormOver",
    "RMSNormOver",
    "WholeNorms",
    "batch_norm_over",
    "group_norm_over",
    "layer_norm_over",
    "mean_over",
    "over_original_count",
    "rms_norm_over",
    "variance_over",
    "worth_beside",
]

_ATEN = torch.ops.aten


def _is_half(value: Tensor) -> bool:
    return value.dtype == torch.float16 or value.dtype == torch.bfloat16  # noqa: PLR1714 - TorchScript compares one by one


def layer_norm_over(value: Tensor, count: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm over the last dimension, as if it had ``count`` channels of which the missing are zero.

    Args:
        value: shape ``(…, kept)``.
        count: original number of channels.
        weight: shape ``(kept,)``, or None.
        bias: shape ``(kept,)``, or None.
        eps: added to the variance.
    """
    if has_torch_function_unary(value):
        return handle_torch_function(layer_norm_over, (value,), value, count, weight, bias, eps)
    # torch.jit.trace checks itself without gradients, and refuses what is another graph then
    if not torch.is_grad_enabled() and not torch._C._get_tracing_state() and not _is_half(value) and eps > 0:
        return _without_gradient(value, value.shape[-1] / count, weight, bias, eps)
    wide = value.float() if _is_half(value) else value
    total = wide.sum(-1, keepdim=True)
    centred = torch.sub(wide, total, alpha=1 / count)
    left = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    squares = torch.addcmul(left * left, total, total * ((count - value.shape[-1]) / count**2))
    scale = torch.rsqrt(squares / count + eps)
    return _affine((centred * scale).to(value.dtype), weight, bias)


def _without_gradient(value: Tensor, share: float, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The same from the native kernel, whose statistics have no gradient, in fewer passes over memory.

    With m and d, the mean and the deviation of what is left, eps/s in its square, and q = m / d, the mean over the
    original count is s·m, and the deviation is ``d · √(s + s·(1 - s)·q²)``.
    """
    scaled, mean, inverse = torch.native_layer_norm(value, value.shape[-1:], weight, None, eps / share)
    ratio = mean * inverse
    if weight is None:
        scaled.add_(ratio, alpha=1 - share)
    else:
        scaled.addcmul_(ratio, weight, value=1 - share)
    one_share = torch.scalar_tensor(share, dtype=ratio.dtype, device=ratio.device)
    square = torch.addcmul(one_share, ratio, ratio, value=share * (1 - share))
    scale = square.rsqrt_()
    return scaled.mul_(scale) if bias is None else torch.addcmul(bias, scaled, scale)


def _affine(value: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is None:
        return value if bias is None else value + bias
    return value * weight if bias is None else torch.addcmul(bias, value, weight)


def group_norm_over(value: Tensor, count: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Group norm with one group over all of ``(N, kept, …)``, as if dimension 1 had ``count`` channels."""
    if has_torch_function_unary(value):
        return handle_torch_function(group_norm_over, (value,), value, count, weight, bias, eps)
    spatial = value[0, 0].numel()
    flat = layer_norm_over(value.flatten(1), count * spatial, None, None, eps).view_as(value)
    return _channels_affine(flat, weight, bias)


def _channels_affine(value: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = [1, -1] + [1] * (value.dim() - 2)
    weight = None if weight is None else weight.view(shape)
    return _affine(value, weight, None if bias is None else bias.view(shape))


def rms_norm_over(value: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """RMS norm over the last dimensions, as if they had the sizes ``shape`` and the missing elements were zero.

    The native kernel computes it, for with s, the share that is left, ``1/√(s·m + eps) = s^-½ / √(m + eps/s)``.

    Args:
        value: shape ``(…, *kept)``.
        shape: original sizes of those dimensions.
        weight: shape ``kept``, or None.
        eps: added to the mean square; None for torch's default, the smallest step of the type that it computes in.
    """
    if eps is None:
        eps = 2.0**-52 if value.dtype == torch.float64 else 2.0**-23
    kept = value.shape[-len(shape) :]
    share = 1.0
    for left, whole in zip(kept, shape):  # noqa: B905 - TorchScript knows no strict=
        share *= left / whole
    weight = value.new_full(kept, share**-0.5) if weight is None else weight * share**-0.5
    return F.rms_norm(value, kept, weight, eps / share)


def mean_over(
    value: Tensor,
    dim: int | list[int] | None,
    keepdim: bool,
    share: float,
    dtype: torch.dtype | None = None,
    missing: Tensor | None = None,
) -> Tensor:
    """Mean over dimensions of which only ``share`` of the elements are left.

    The others are zero, or worth what ``missing`` holds: it has size 1 along the dimension that is cut.
    """
    left = value.mean(dim, keepdim=keepdim, dtype=dtype) * share
    return left if missing is None else left + missing.mean(dim, keepdim=keepdim, dtype=dtype) * (1 - share)


def worth_beside(value: Tensor, dim: int, worth: float) -> Tensor:
    """One more index along ``dim``, worth a constant; it depends on none of those that are there, so any can go."""
    return value.narrow(dim, 0, 0).sum(dim, keepdim=True) + worth


def variance_over(function: str, value: Tensor, *args: Any, share: float, **kwargs: Any) -> Any:
    """``torch.var``, ``std``, ``var_mean`` or ``std_mean`` of which only ``share`` of the elements are left.

    The missing ones are zero. Arguments other than ``function`` and ``share`` are those of the torch function.
    """
    names = ("unbiased",) if args and isinstance(args[0], bool) else ("dim", "unbiased", "keepdim")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    lost = given["correction"] if given.get("correction") is not None else float(given.get("unbiased", True))
    variance, mean = torch.var_mean(value, given.get("dim"), correction=0, keepdim=given.get("keepdim", False))
    count = value.numel() / max(mean.numel(), 1) / share
    variance = (variance + mean.square() * (1 - share)) * (share * count / (count - lost))
    spread = variance.sqrt() if function.startswith("std") else variance
    return (spread, mean * share) if function.endswith("mean") else spread


def batch_norm_over(value: Tensor, share: float, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Batch norm by the statistics of ``value``, shape ``(N, C, …)``; of each channel only ``share`` is left."""
    if has_torch_function_unary(value):
        return handle_torch_function(batch_norm_over, (value,), value, share, weight, bias, eps)
    dims = [dim for dim in range(value.ndim) if dim != 1]
    variance, mean = variance_over("var_mean", value, dims, share=share, correction=0, keepdim=True)
    return _channels_affine((value - mean) * torch.rsqrt(variance + eps), weight, bias)


class _NormOver(nn.Module):
    """A norm's parameters at the kept channels, and the original channel count."""

    def __init__(self, count: int, weight: Tensor | None, bias: Tensor | None, eps: Any) -> None:
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


class RMSNormOver(_NormOver):
    """``nn.RMSNorm`` over the last dimensions, dividing by the product of their original sizes ``shape``."""

    def __init__(self, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> None:
        super().__init__(math.prod(shape), weight, None, eps)
        self.shape = list(shape)

    def forward(self, value: Tensor) -> Tensor:
        """Normalise ``(…, *kept)``."""
        return rms_norm_over(value, self.shape, self.weight, self.eps)


def over_original_count(module: nn.Module, count: int) -> nn.Module:
    """The norm that takes the place of a layer, RMS or one-group group norm with cut parameters."""
    if isinstance(module, _NormOver):  # shared, and replaced before
        return module
    if isinstance(module, nn.RMSNorm):
        return RMSNormOver(module.normalized_shape, module.weight, module.eps).train(module.training)
    kind = GroupNormOver if isinstance(module, nn.GroupNorm) else LayerNormOver
    return kind(count, module.weight, module.bias, module.eps).train(module.training)  # type: ignore[arg-type]


# The functions that ``WholeNorms`` shows as torch's.
_SHOWN = (layer_norm_over, group_norm_over, batch_norm_over)


class WholeNorms(WholeCalls):
    """Show each layer, group or batch norm over an original count as torch's own, which loses the same channels."""

    names = frozenset(function.__name__ for function in _SHOWN)

    def shown(self, func: Any, args: tuple[Any, ...]) -> Shown | None:
        """Return torch's own norm that stands for a call."""
        if func not in _SHOWN:
            return None
        value, _, weight, bias, eps = args
        given: tuple[Any, ...]
        if func is layer_norm_over:
            op, given = _ATEN.native_layer_norm, (value, [value.size(-1)], weight, bias, eps)
        elif func is group_norm_over:
            sizes = (len(value), value.size(1), value[0, 0].numel())
            op, given = _ATEN.native_group_norm, (value, weight, bias, *sizes, 1, eps)
        else:
            op, given = _ATEN.native_batch_norm, (value, weight, bias, None, None, True, 0.0, eps)
        return op.default, given, lambda: func(*args)
