"""Norms over channels of which some were cut out: statistics still divide by the original count.

The channels that are gone were zero, so their part in the sums is known: nothing in the mean, and the squared
mean each in the variance. Of others it is known what they were worth, such as their column of a table of positions.
Results equal those of the full norm on the group-sparse input.
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
    "beside",
    "group_norm_over",
    "layer_norm_over",
    "mean_over",
    "moments_of",
    "normalized_beside",
    "over_original_count",
    "rms_norm_over",
    "variance_over",
    "worth_beside",
]

_ATEN = torch.ops.aten


def _is_half(value: Tensor) -> bool:
    return value.dtype == torch.float16 or value.dtype == torch.bfloat16  # noqa: PLR1714 - TorchScript compares one by one


def layer_norm_over(
    value: Tensor,
    count: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    known: list[tuple[int, Tensor, Tensor]] | None = None,
) -> Tensor:
    """Layer norm over the last dimension, as if it had ``count`` channels of which the missing are zero.

    Args:
        value: shape ``(…, kept)``.
        count: original number of channels.
        weight: shape ``(kept,)``, or None.
        bias: shape ``(kept,)``, or None.
        eps: added to the variance.
        known: missing channels that are not zero: how many, their mean and their variance, shape ``(…, 1)`` each.
    """
    if has_torch_function_unary(value):
        return handle_torch_function(layer_norm_over, (value,), value, count, weight, bias, eps, known)
    # torch.jit.trace checks itself without gradients, and refuses what is another graph then
    learns = torch.is_grad_enabled() or torch._C._get_tracing_state()
    if known is None and not learns and not _is_half(value) and eps > 0:
        return _without_gradient(value, value.shape[-1] / count, weight, bias, eps)
    centred, _, variance = _over_all(value, count, known)
    return _affine((centred * torch.rsqrt(variance + eps)).to(value.dtype), weight, bias)


def _over_all(
    value: Tensor, count: int, known: list[tuple[int, Tensor, Tensor]] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What is left, minus the mean over all; that mean, and the variance; see ``layer_norm_over``."""
    wide = value.float() if _is_half(value) else value
    total, zeros = wide.sum(-1, keepdim=True), count - value.shape[-1]
    if known is not None:
        for number, mean, _ in known:
            total, zeros = total + number * mean, zeros - number
    centred = torch.sub(wide, total, alpha=1 / count)
    left = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    squares = torch.addcmul(left * left, total, total * (zeros / count**2))
    if known is not None:
        for number, mean, variance in known:
            squares = squares + number * (variance + (mean - total / count).square())
    return centred, total / count, squares / count


def normalized_beside(
    value: Tensor, missing: Tensor, count: int, eps: float, known: list[tuple[int, Tensor, Tensor]]
) -> Tensor:
    """What a layer norm without weights, over ``value``, makes of missing channels, which were worth ``missing``.

    The other arguments are those of ``layer_norm_over``.
    """
    _, mean, variance = _over_all(value, count, known)
    return ((missing - mean) * torch.rsqrt(variance + eps)).to(value.dtype)


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


def group_norm_over(
    value: Tensor,
    count: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    known: list[tuple[int, Tensor, Tensor]] | None = None,
) -> Tensor:
    """Group norm with one group over all of ``(N, kept, …)``, as if dimension 1 had ``count`` channels.

    Args:
        value: shape ``(N, kept, …)``.
        count: original number of channels.
        weight: shape ``(kept,)``, or None.
        bias: shape ``(kept,)``, or None.
        eps: added to the variance.
        known: as in ``layer_norm_over``; shape ``(N, 1, …)`` each, of size 1 along all but the first dimension.
    """
    if has_torch_function_unary(value):
        return handle_torch_function(group_norm_over, (value,), value, count, weight, bias, eps, known)
    spatial = value[0, 0].numel()
    if known is not None:
        known = [(number * spatial, mean.flatten(1), variance.flatten(1)) for number, mean, variance in known]
    flat = layer_norm_over(value.flatten(1), count * spatial, None, None, eps, known).view_as(value)
    return _channels_affine(flat, weight, bias)


def _channels_affine(value: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = [1, -1] + [1] * (value.dim() - 2)
    weight = None if weight is None else weight.view(shape)
    return _affine(value, weight, None if bias is None else bias.view(shape))


def rms_norm_over(
    value: Tensor,
    shape: list[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    known: list[tuple[int, Tensor, Tensor]] | None = None,
) -> Tensor:
    """RMS norm over the last dimensions, as if they had the sizes ``shape`` and the missing elements were zero.

    The native kernel computes it, for with s, the share that is left, ``1/√(s·m + eps) = s^-½ / √(m + eps/s)``.

    Args:
        value: shape ``(…, *kept)``.
        shape: original sizes of those dimensions.
        weight: shape ``kept``, or None.
        eps: added to the mean square; None for torch's default, the smallest step of the type that it computes in.
        known: missing channels that are not zero: as in ``layer_norm_over``; of size 1 along all of those dimensions.
    """
    if eps is None:
        eps = 2.0**-52 if value.dtype == torch.float64 else 2.0**-23
    kept = value.shape[-len(shape) :]
    share = 1.0
    for left, whole in zip(kept, shape):  # noqa: B905 - TorchScript knows no strict=
        share *= left / whole
    if known is not None:
        wide = value.float() if _is_half(value) else value
        dims = [dim - len(shape) for dim in range(len(shape))]
        square = wide.square().mean(dims, keepdim=True) * share
        for number, mean, variance in known:
            square = square + (variance + mean.square()) * (number / shape[-1])
        return _affine((wide * torch.rsqrt(square + eps)).to(value.dtype), weight, None)
    weight = value.new_full(kept, share**-0.5) if weight is None else weight * share**-0.5
    return F.rms_norm(value, kept, weight, eps / share)


def mean_over(
    value: Tensor,
    dim: int | list[int] | None,
    keepdim: bool,
    share: float,
    dtype: torch.dtype | None = None,
    known: Sequence[tuple[float, Tensor]] = (),
) -> Tensor:
    """Mean over dimensions of which only ``share`` of the elements are left.

    The others are zero, but for those that are ``known``: a share of all, and what they are worth, of size 1 along
    dimensions in which that does not vary.
    """
    mean = value.mean(dim, keepdim=keepdim, dtype=dtype) * share
    for part, worth in known:
        mean = mean + worth.mean(dim, keepdim=keepdim, dtype=dtype) * part
    return mean


def beside(value: Tensor, missing: Tensor, dim: int, size: int) -> Tensor:
    """What ``missing`` holds, of the shape of ``value``, but of its own size along ``dim``."""
    shape = list(value.shape)
    shape[dim] = size
    return missing.expand(shape)


def moments_of(missing: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and variance over some dimensions, which are kept; in at least float32."""
    wide = missing.float() if _is_half(missing) else missing
    variance, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
    return mean, variance


def worth_beside(value: Tensor, dim: int, worth: float) -> Tensor:
    """One more index along ``dim``, worth a constant; it depends on none of those that are there, so any can go."""
    return value.narrow(dim, 0, 0).sum(dim, keepdim=True) + worth


def variance_over(
    function: str, value: Tensor, *args: Any, share: float, known: Sequence[tuple[float, Tensor]] = (), **kwargs: Any
) -> Any:
    """``torch.var``, ``std``, ``var_mean`` or ``std_mean`` of which only ``share`` of the elements are left.

    The missing ones are zero, but for those that are ``known``, as in ``mean_over``. All other arguments are those of
    the torch function.
    """
    names = ("unbiased",) if args and isinstance(args[0], bool) else ("dim", "unbiased", "keepdim")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    lost = given["correction"] if given.get("correction") is not None else float(given.get("unbiased", True))
    how: dict[str, Any] = {"dim": given.get("dim"), "correction": 0, "keepdim": given.get("keepdim", False)}
    variance, mean = torch.var_mean(value, **how)
    count = value.numel() / max(mean.numel(), 1) / share
    parts = [(share, variance, mean), *((part, *torch.var_mean(worth, **how)) for part, worth in known)]
    total: Any = sum(part * mean for part, _, mean in parts)
    zeros = 1 - sum(part for part, _, _ in parts)
    around = sum(part * (variance + (mean - total).square()) for part, variance, mean in parts)
    variance = (around + zeros * total.square()) * (count / (count - lost))
    spread = variance.sqrt() if function.startswith("std") else variance
    return (spread, total) if function.endswith("mean") else spread


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

    def forward(self, value: Tensor, known: list[tuple[int, Tensor, Tensor]] | None = None) -> Tensor:
        """Normalise ``(…, kept)``."""
        return layer_norm_over(value, self.count, self.weight, self.bias, self.eps, known)


class GroupNormOver(_NormOver):
    """``nn.GroupNorm`` with one group, dividing by the original ``count``."""

    def forward(self, value: Tensor, known: list[tuple[int, Tensor, Tensor]] | None = None) -> Tensor:
        """Normalise ``(N, kept, …)``."""
        return group_norm_over(value, self.count, self.weight, self.bias, self.eps, known)


class RMSNormOver(_NormOver):
    """``nn.RMSNorm`` over the last dimensions, dividing by the product of their original sizes ``shape``."""

    def __init__(self, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> None:
        super().__init__(math.prod(shape), weight, None, eps)
        self.shape = list(shape)

    def forward(self, value: Tensor, known: list[tuple[int, Tensor, Tensor]] | None = None) -> Tensor:
        """Normalise ``(…, *kept)``."""
        return rms_norm_over(value, self.shape, self.weight, self.eps, known)


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
        value, _, weight, bias, eps = args[:5]
        given: tuple[Any, ...]
        if func is layer_norm_over:
            op, given = _ATEN.native_layer_norm, (value, [value.size(-1)], weight, bias, eps)
        elif func is group_norm_over:
            sizes = (len(value), value.size(1), value[0, 0].numel())
            op, given = _ATEN.native_group_norm, (value, weight, bias, *sizes, 1, eps)
        else:
            op, given = _ATEN.native_batch_norm, (value, weight, bias, None, None, True, 0.0, eps)
        return op.default, given, lambda: func(*args)
