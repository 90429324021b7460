"""Arguments of optimizers that are none of a base's, a target or limits: what they must be."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fx_oto.core.errors import InputError, SettingsError

__all__ = ["as_loss", "check_not_wrapped", "checked", "number_of"]


def number_of(value: Any) -> float | None:
    """A number, or what holds a single one, as tensors of torch and arrays of NumPy may; None of anything else."""
    if hasattr(value, "item") and math.prod(getattr(value, "shape", (0,))) == 1:
        value = value.item()
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None


def as_loss(loss: Any) -> Any:
    """A loss as it was given, if it is one.

    Raises:
        InputError: it is neither a number nor a tensor of one element.
    """
    if (isinstance(loss, Tensor) and loss.numel() == 1) or isinstance(loss, Real):
        return loss
    found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    raise InputError(f"the loss must be a number or a tensor of one element, found {found}")


def checked(name: str, value: Any, holds: Callable[[Any], bool], expected: str, kind: type = Real) -> Any:
    """A number as it was given, if it is of a kind and satisfies a condition.

    Raises:
        SettingsError: it is not, or does not.
    """
    if isinstance(value, bool) or not isinstance(value, kind) or not holds(value):
        raise SettingsError(f"{name} must be {expected}; found {value!r}")
    return value


def check_not_wrapped(base: Any, own: type[Optimizer]) -> None:
    """A base must not be a group-sparse optimizer itself: each would undo what the other does.

    Raises:
        SettingsError: it is.
    """
    kind = base if isinstance(base, type) else type(base)
    if issubclass(kind, own):
        raise SettingsError(
            f"base is {kind.__name__}, which drives groups to zero itself: pass the optimizer that it wraps, such as "
            "torch.optim.AdamW"
        )
