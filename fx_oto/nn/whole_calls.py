"""Functions that go onto the tape as one call each, whatever torch makes of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode

__all__ = ["Shown", "WholeCalls"]

# An ``OpOverload``, its arguments, and a function that computes the result.
Shown = tuple[Any, tuple[Any, ...], Callable[[], Any]]


class WholeCalls(TorchFunctionMode, ABC):
    """While it is active, replaces each call of certain functions by what ``run`` makes of it.

    Args:
        run: is given what ``shown`` returns.

    Attributes:
        names: of those functions.
    """

    names: frozenset[str]

    def __init__(self, run: Callable[[Any, tuple[Any, ...], Callable[[], Any]], Any]) -> None:
        super().__init__()
        self.run = run

    @abstractmethod
    def shown(self, func: Any, args: tuple[Any, ...]) -> Shown | None:
        """The op that stands for a call; None to leave the call as it is."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        shown = None if kwargs or getattr(func, "__name__", "") not in self.names else self.shown(func, args)
        return func(*args, **(kwargs or {})) if shown is None else self.run(*shown)
