"""What stands in the way of a capture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from types import CodeType, TracebackType
from typing import Any, TypeVar

from fx_oto.analysis.fakes import text_of
from fx_oto.capture.whole import Part, WrappedFunction
from fx_oto.core.errors import InputError, TraceError

__all__ = [
    "AUTOCAST",
    "BEFORE",
    "DRAWS",
    "GRADIENTS",
    "LAYOUT",
    "ON_VALUES",
    "AskedError",
    "Decision",
    "NotCapturedError",
    "NotHashedError",
    "RandomError",
    "Site",
    "Way",
    "told_of",
    "unless_refused",
]

_Found = TypeVar("_Found")
Site = tuple[CodeType, int]  # an instruction in the user's code
BEFORE = "do that once, before prepare, such as by calling the model"
DRAWS = "draws random numbers that a capture cannot see: they would stay the same for ever"
ON_VALUES = "control flow depends on the values in a tensor"
# What code asks of how it is called.
GRADIENTS, AUTOCAST = "whether there are gradients", "whether torch.autocast is on"
LAYOUT = "how tensors lie in memory"
_DERIVATIVES = (
    "code computes derivatives (torch.autograd.grad, or backward), and while it is captured there are none; "
    "torch.func.grad(lambda x: energy(x).sum())(x), which can be captured, computes the same"
)


def told_of(error: Exception) -> str:
    """What went wrong while code was captured."""
    text = text_of(error) or type(error).__name__
    in_autograd = isinstance(error, RuntimeError) and ("not require grad" in text or "differentiated Tensors" in text)
    return _DERIVATIVES if in_autograd else text


@dataclass(frozen=True)
class Way:
    """Where code goes that raises an error otherwise, or does the same: see ``raising``.

    Attributes:
        answer: what code is told.
        text: which error it would raise, and where; empty of code that does the same.
        error: the class of that error: see ``checks.name_of_error``.
    """

    answer: bool
    text: str = ""
    error: str = "AssertionError"


@dataclass(frozen=True)
class Decision:
    """Where code decided last by a truth value that nobody knows, before it could not be captured.

    Attributes:
        site: the place.
        is_told: whether it was given an answer.
        graph: what was written down until then, if it was not.
        way: how it goes on, if it has raised an error after the answer.
    """

    site: Site
    is_told: bool
    graph: str = ""
    way: Way | None = None


class NotCapturedError(TraceError):
    """The model's code does something that a capture has no answer to.

    Attributes:
        parts: the methods of the model's modules, and the functions, in which that happened, outermost first; found
            when they are asked for, as most models that do not take some inputs are not asked.
        where: the place, to be read after what has happened.
        by_values: whether code asked for the numbers in a tensor.
        trace: how code came to that place.
        in_training: whether evaluation can be captured as it is.
        selects: whether code does not do the same where nothing was selected.
        raises: whether code raised an error by itself.
        decision: what code decided last by a truth value that nobody knows.
    """

    def __init__(
        self, message: str, parts: Iterable[Part | WrappedFunction] = (), where: str = "", by_values: bool = False
    ) -> None:
        super().__init__(message)
        self._parts, self.where, self.by_values = parts, where, by_values
        self.in_training = False
        self.trace: TracebackType | None = None
        self.selects = False
        self.raises = False
        self.decision: Decision | None = None

    @cached_property
    def parts(self) -> tuple[Part | WrappedFunction, ...]:
        """See the class."""
        return tuple(self._parts)


class RandomError(NotCapturedError):
    """The model's code draws random numbers that a capture does not see."""


class AskedError(NotCapturedError):
    """What code computes depends on what it asks of how it is called.

    Attributes:
        asked: that.
    """

    def __init__(self, message: str, asked: Collection[str]) -> None:
        super().__init__(message)
        self.asked = frozenset(asked)


class NotHashedError(TypeError):
    """A number that remembers was used as a key: code that caches by sizes goes another way then, or is run again.

    Attributes:
        site: the place in the code.
    """

    def __init__(self, site: Any) -> None:
        super().__init__("unhashable type: a size that is captured")
        self.site = site


def unless_refused(again: Callable[[Any], _Found], other: Any) -> _Found | None:
    """Captures on something else; None if the model does not take it."""
    try:
        return again(other)
    except (NotCapturedError, NotHashedError, InputError):
        return None
