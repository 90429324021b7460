"""Equations in the numbers that modules hold: what code computes from them must be what the compact graph says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.fx import Node

from fx_oto.capture.numbers import Origin
from fx_oto.deploy.attributes import Attribute, Values, attributes_in, resolved

__all__ = ["Equation", "solve"]

_MOST_TRIED = 1 << 14


@dataclass(frozen=True, eq=False)
class Equation:
    """A number in the arguments of a node, or what code decides by, and what it must be.

    Attributes:
        node: where it is read.
        number: how it is computed.
        wanted: what it must be.
    """

    node: Node
    number: Origin
    wanted: Any

    @property
    def attributes(self) -> set[Attribute]:
        """The attributes that it is computed from."""
        return set(attributes_in(self.number))

    @property
    def alone(self) -> Attribute | None:
        """The attribute that the number is, if it is one."""
        (first, *others) = self.attributes
        return first if not others and self.number.args == (first,) else None

    def holds(self, values: Values, original: Values) -> bool:
        """Whether it is true where attributes have these values."""
        try:
            found = resolved(self.number, values, original)
        except (ArithmeticError, ValueError, TypeError, IndexError):
            return False
        return type(found) is type(self.wanted) and bool(found == self.wanted)


class _Solver:
    def __init__(self, equations: Sequence[Equation], original: Values) -> None:
        self.equations, self.original = equations, original
        self.values: dict[Attribute, Any] = {}
        self.pinned: set[Attribute] = set()
        self.by_attribute: dict[Attribute, list[Equation]] = {}
        for equation in equations:
            for attribute in equation.attributes:
                self.by_attribute.setdefault(attribute, []).append(equation)

    def solved(self) -> dict[Attribute, Any]:
        # Where a number is an attribute, as in view(B, T, self.heads, self.width), there is nothing to compute. Others
        # follow from these: of self.heads * self.width = 128 with 4 heads, the width is 32.
        for equation in self.equations:
            if (alone := equation.alone) is not None and alone not in self.pinned:
                self._set(alone, equation.wanted)
        while self._step(most=1):
            pass
        while self._step(most=2) or self._step(most=3):
            pass
        return {place: value for place, value in self.values.items() if value != self.original[place]}

    def _set(self, place: Attribute, value: Any) -> None:
        self.values[place] = value
        self.pinned.add(place)

    def _step(self, most: int) -> bool:
        """Solve one equation in which at most so many attributes are not known, for one of them."""
        for equation in self.equations:
            free = equation.attributes - self.pinned
            if not free or len(free) > most or equation.holds(self.values, self.original):
                continue
            # Of self.width // self.heads = 16 with 2 heads, the width may be 32 or 33: both are right, and the first is
            # what somebody would have written. But whether the width or the heads are another, nobody can tell.
            found = [(place, value) for place in free for value in islice(self._candidates(place, equation), 1)]
            if len(found) == 1:
                self._set(*found[0])
                return True
        return False

    def _candidates(self, place: Attribute, equation: Equation) -> Iterator[Any]:
        """The values of an attribute with which all equations hold that it alone could mend, and this one."""
        mine = [one for one in self.by_attribute[place] if one is equation or one.attributes - self.pinned == {place}]
        for value in self._tried(place, equation):
            values = {**self.values, place: value}
            if all(one.holds(values, self.original) for one in mine):
                yield value

    def _tried(self, place: Attribute, equation: Equation) -> Iterable[Any]:
        if not isinstance(self.original[place], int):
            return ()
        numbers = [self.original[place], equation.wanted, *_literals(equation.number)]
        return range(1, min(max(int(one) for one in numbers), _MOST_TRIED) + 1)


def _literals(origin: Origin) -> Iterator[int]:
    for one in origin.args:
        if isinstance(one, Attribute):
            continue
        inner = getattr(one, "origin", None)
        if inner is not None:
            yield from _literals(inner)
        elif isinstance(one, int | float):
            yield int(one)


def solve(equations: Sequence[Equation], original: Values) -> dict[Attribute, Any]:
    """Values of attributes with which as many equations hold as can be told; of those that must have another, alone.

    Args:
        equations: see ``Equation``.
        original: what the attributes are.
    """
    return _Solver(equations, original).solved()
