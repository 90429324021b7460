"""Runs in which other things are chosen than the numbers say: other experts, other places above a threshold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Steered"]

_aten = torch.ops.aten
# What makes a choice of floating-point numbers, and where its arguments name the dimension along which it does.
_CHOICES: dict[Any, int | None] = {
    _aten.topk.default: 2,
    _aten.sort.default: 1,
    _aten.sort.stable: 2,
    _aten.argsort.default: 1,
    _aten.argmax.default: 1,
    _aten.argmin.default: 1,
    _aten.max.dim: 1,
    _aten.min.dim: 1,
    _aten.kthvalue.default: 2,
    **{getattr(getattr(_aten, name), kind): None for name in ("gt", "ge", "lt", "le") for kind in ("Scalar", "Tensor")},
}
_MASKED = 1e4  # what is as large stays out of the choice


class Steered(TorchDispatchMode):
    """Pushes a random half of what can be chosen up, and the rest down: the same wherever there are as many.

    What is compared with a bound is pushed so, or all of it.

    Args:
        number: which of the ways; 0 leaves everything as it is, and each even one turns the one before around.
    """

    def __init__(self, number: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._number, self._calls = number, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        chooses = self._number and func in _CHOICES and args[0].is_floating_point()
        if not chooses or not args[0].ndim or not args[0].numel():  # of one number there is no other to choose
            return func(*args, **kwargs)
        scores, place = args[0], _CHOICES[func]
        dim = -1 if place is None else args[place] if len(args) > place else kwargs.get("dim", -1)
        dim = -1 if dim is None else dim
        found = func(self._pushed(scores, dim, place is None), *args[1:], **kwargs)
        if isinstance(found, Tensor):
            return found
        _, places = found
        is_kept = places.ndim == scores.ndim
        values = scores.gather(dim, places if is_kept else places.unsqueeze(dim))
        return (values if is_kept else values.squeeze(dim)), places

    def _pushed(self, scores: Tensor, dim: int, is_compared: bool) -> Tensor:
        self._calls += 1
        size, (way, is_turned) = scores.shape[dim], divmod(self._number - 1, 2)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(way))
        is_up = (order < (size if is_compared and way % 2 else (size + 1) // 2)) ^ bool(is_turned)
        noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(97 * self._number + self._calls))
        along = [1] * scores.ndim
        along[dim] = size
        push = (torch.where(is_up, 1, -1).reshape(along) + noise / 4).to(scores.device, scores.dtype)
        usual = scores[scores.abs() < _MASKED]
        return scores + push * (1 + 4 * usual.abs().max()) if usual.numel() else scores
