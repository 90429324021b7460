"""Tensors that stand in for real ones are of the class of these while code is run on them, which may ask for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["disguise", "is_fake", "lies_on", "undisguise"]


def is_fake(value: Any) -> TypeGuard[Tensor]:
    """Whether it is a tensor that stands in for a real one, of whichever class it is now."""
    return isinstance(value, Tensor) and "fake_mode" in value.__dict__


def lies_on(tensor: Tensor) -> torch.device:
    """The device of a tensor, or that which it stands for."""
    found: torch.device = tensor.__dict__.get("_fake_device") or tensor.device
    return found


def disguise(tensors: Iterable[Tensor]) -> None:
    """Let stand-ins be of the class of real tensors, for code that asks ``type(x) is torch.Tensor``."""
    for tensor in tensors:
        if type(tensor) is FakeTensor:
            tensor.__class__ = Tensor  # type: ignore[assignment]


def undisguise(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Let stand-ins be of their own class again, without which torch cannot tell their device; returns those."""
    disguised: list[Any] = [one for one in tensors if type(one) is Tensor and is_fake(one)]
    for tensor in disguised:
        tensor.__class__ = FakeTensor
    return disguised
