"""Numbers that remember where they come from: an input's size, a number that was given, or arithmetic on those.

To code they are the numbers that they are. What is computed from them remembers the computation; where code decides by
one, or uses it as a key, the run that it belongs to is told, for on other inputs the code might go another way.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.fx import Node

__all__ = ["Flag", "Float", "Int", "Origin", "is_whole", "plain", "remembered", "shown"]


class Origin:
    """How a number is computed: a function or method of nodes, numbers that remember, and plain values.

    Attributes:
        function: what is called; a string is a method of the first argument.
        args: its arguments.
    """

    __slots__ = ("args", "function", "node")

    def __init__(self, function: Callable[..., Any] | str, args: tuple[Any, ...], node: Node | None = None) -> None:
        self.function, self.args, self.node = function, args, node


class Run(Protocol):
    """What numbers tell of themselves."""

    def decided(self, origin: Origin, answer: Any) -> Any:
        """Code decides by a number or truth value; returns the one to go on with."""

    def handed_out(self, number: Any, given: Any) -> None:
        """Code is given a plain number, which does not remember."""

    def hashed(self, number: Any) -> None:
        """Code uses a number as a key."""

    def asked_for_mode(self) -> None:
        """Code decides by the training mode."""

    @property
    def is_over(self) -> bool:
        """Whether nothing is captured any more."""

    @property
    def hands_others(self) -> bool:
        """Whether code that asks for a plain number is given the one that is shown."""

    @property
    def stays_in_graphs(self) -> bool:
        """Whether its numbers are written into a graph as they are, and any other run is told in its place."""


def remembered(run: Run, value: Any, origin: Origin, shown_as: Any = None) -> Any:
    """A number that remembers; of what is neither an int nor a float, the value itself.

    Args:
        run: what it belongs to.
        value: the number.
        origin: how it is computed.
        shown_as: another number, for code that does not let it remember, such as ``range`` and all that is written in
            C, and, where the run ``hands_others``, for code that asks for a plain one: what comes of that must be the
            same, or it depends on the number.
    """
    kind: Any = type(value)
    if kind not in (int, float):
        return value
    number: Any = kind.__new__(Int if kind is int else Float, value if shown_as is None else shown_as)
    number.run, number.origin, number.plain = run, origin, value
    return number


def plain(value: Any) -> Any:
    """The plain number in the place of one that remembers; anything else as it is."""
    return value.plain if isinstance(value, _Remembering) else value


def shown(value: Any) -> Any:
    """The number that code sees which does not let it remember."""
    if isinstance(value, Int):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, Float) else value


class _Remembering:
    run: Run
    origin: Origin
    plain: Any

    def __bool__(self) -> bool:
        answer = bool(self.plain)
        return bool(self._decided(operator.ne, (self, 0), answer))

    def __hash__(self) -> int:
        if not self.run.is_over:
            self.run.hashed(self)
        return hash(self.plain)

    def _decided(self, function: Callable[..., Any], args: tuple[Any, ...], answer: Any) -> Any:
        run = _told(self, args[-1])
        return answer if run.is_over else run.decided(Origin(function, args), answer)

    def _given(self) -> Any:
        return shown(self) if self.run.hands_others else self.plain

    def _handed(self, given: Any) -> Any:
        if not self.run.is_over:
            self.run.handed_out(self, given)
        return given

    def __int__(self) -> int:
        return int(self._handed(int(self._given())))

    def __float__(self) -> float:
        return float(self._handed(float(self._given())))

    def __repr__(self) -> str:
        return repr(self._handed(self._given()))

    def __str__(self) -> str:
        return str(self._handed(self._given()))

    def __format__(self, spec: str) -> str:
        return format(self._handed(self._given()), spec)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        given = self._given()
        return type(given), (given,)


class Int(_Remembering, int):
    """An int that remembers."""

    def __new__(cls, *args: Any) -> int:  # type: ignore[misc]
        """To code that calls ``type(n)``, a plain one."""
        return int(*args)


class Float(_Remembering, float):
    """A float that remembers."""

    def __new__(cls, *args: Any) -> float:  # type: ignore[misc]
        """To code that calls ``type(n)``, a plain one."""
        return float(*args)

    def is_integer(self) -> bool:
        """Whether nothing follows the decimal point."""
        answer = float.is_integer(self.plain)
        return bool(self._decided(is_whole, (self,), answer))


def is_whole(number: float) -> bool:
    """Return whether nothing follows the decimal point of a number."""
    return float(number).is_integer()


def _arithmetic(function: Callable[..., Any], turned: bool) -> Callable[[Any, Any], Any]:
    def compute(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        args = (other, self) if turned else (self, other)
        run = _told(self, other)
        return function(*map(plain, args)) if run.is_over else _computed(run, function, args)

    return compute


def _computed(run: Run, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    value, given = function(*map(plain, args)), [*map(shown, args)]
    shown_as = None if given == [*map(plain, args)] else function(*given)
    return remembered(run, value, Origin(function, args), shown_as)


def _told(number: Any, other: Any) -> Run:
    """The run of the result: a capture's, where one number is a size and one a module's attribute."""
    run: Run = other.run if number.run.stays_in_graphs and isinstance(other, _Remembering) else number.run
    return run


def _power(turned: bool) -> Callable[..., Any]:
    compute = _arithmetic(operator.pow, turned)

    def power(self: Any, other: Any, modulo: Any = None) -> Any:
        return compute(self, other) if modulo is None else pow(shown(self), shown(other), shown(modulo))

    return power


def _of_one(function: Callable[..., Any]) -> Callable[..., Any]:
    def compute(self: Any, *args: Any) -> Any:
        given = (self, *args)
        return function(*map(plain, given)) if self.run.is_over else _computed(self.run, function, given)

    return compute


def _comparison(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def compare(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float) or isinstance(other, Tensor) or _told(self, other) is not self.run:
            return NotImplemented  # of a size and a module's attribute, the size is asked, as it is of a plain number
        answer = function(plain(self), plain(other))
        return self._decided(function, (self, other), answer)

    return compare


def _divmod(self: Any, other: Any) -> Any:
    return (self // other, self % other) if isinstance(other, int | float) else NotImplemented


def _rdivmod(self: Any, other: Any) -> Any:
    return (other // self, other % self) if isinstance(other, int | float) else NotImplemented


for _kind, _names in (
    (Int, "add sub mul truediv floordiv mod lshift rshift and or xor"),
    (Float, "add sub mul truediv floordiv mod"),
):
    for _name in _names.split():
        _function = getattr(operator, f"{_name}_" if _name in ("and", "or") else _name)
        setattr(_kind, f"__{_name}__", _arithmetic(_function, turned=False))
        setattr(_kind, f"__r{_name}__", _arithmetic(_function, turned=True))
    for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(_kind, f"__{_name}__", _comparison(getattr(operator, _name)))
    for _name, _one in (
        ("neg", operator.neg),
        ("pos", operator.pos),
        ("abs", abs),
        ("round", round),
        ("floor", math.floor),
        ("ceil", math.ceil),
        ("trunc", math.trunc),
    ):
        setattr(_kind, f"__{_name}__", _of_one(_one))
    _kind.__pow__, _kind.__rpow__ = _power(turned=False), _power(turned=True)  # type: ignore[method-assign]
    _kind.__divmod__, _kind.__rdivmod__ = _divmod, _rdivmod  # type: ignore[method-assign]
    _kind.__hash__ = _Remembering.__hash__  # type: ignore[method-assign]
Int.__invert__ = _of_one(operator.invert)  # type: ignore[method-assign]


class Flag(int):
    """``module.training`` while code is captured: where code decides by it, the run is told."""

    run: Run

    @property
    def __class__(self) -> type[Any]:  # no class can inherit from bool, which ``module.train(mode)`` asks for
        return bool

    @__class__.setter
    def __class__(self, kind: type[Any]) -> None:
        raise TypeError("the class of a truth value cannot be changed")

    def __bool__(self) -> bool:
        self.run.asked_for_mode()
        return int.__bool__(self)

    def __eq__(self, other: object) -> bool:
        self.run.asked_for_mode()
        return int.__eq__(self, other)

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __repr__(self) -> str:
        return repr(bool(self))
