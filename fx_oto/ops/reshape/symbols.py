"""Sizes as products of numbers and of symbols, one for each size that inputs of other sizes change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

__all__ = ["Size", "product", "steps_of"]


@dataclass(frozen=True)
class Size:
    """A number times powers of symbols; a symbol is named by what it is on the example inputs.

    Attributes:
        number: the number.
        powers: of each symbol.
        is_rounded: whether it is a quotient that need not be whole, such as ``T // 2``, taken for the quotient itself.
    """

    number: Fraction = Fraction(1)
    powers: dict[Any, int] = field(default_factory=dict)
    is_rounded: bool = field(default=False, compare=False)

    @classmethod
    def symbol(cls, name: Any) -> Size:
        """A size that inputs change."""
        return cls(Fraction(1), {name: 1})

    def __mul__(self, other: Size) -> Size:
        return self._with(other, self.number * other.number, 1)

    def __truediv__(self, other: Size) -> Size:
        return self._with(other, self.number / other.number, -1)

    def _with(self, other: Size, number: Fraction, sign: int) -> Size:
        names = self.powers.keys() | other.powers.keys()
        powers = {name: self.powers.get(name, 0) + sign * other.powers.get(name, 0) for name in names}
        rounded = self.is_rounded or other.is_rounded
        return Size(number, {name: power for name, power in powers.items() if power}, rounded)

    def is_whole(self) -> bool:
        """Return whether it is a whole number on all inputs."""
        return self.number.denominator == 1 and all(power > 0 for power in self.powers.values())

    def pinned(self, names: Sequence[Any]) -> Size:
        """The same where some symbols are numbers."""
        rest = {name: power for name, power in self.powers.items() if name not in names}
        return Size(self.in_steps({name: name for name in names}).number, rest)

    def in_steps(self, steps: Mapping[Any, int]) -> Size:
        """The same where some symbols stand for so many of themselves."""
        factors = (Fraction(steps.get(name, 1)) ** power for name, power in self.powers.items())
        return replace(self, number=math.prod(factors, start=self.number))


def product(sizes: Sequence[Size]) -> Size:
    """How many elements there are of all these dimensions."""
    return math.prod(sizes, start=Size())


def steps_of(sizes: Sequence[Size]) -> dict[Any, int]:
    """How many of it a symbol stands for, where parts of it are sizes."""
    steps: dict[Any, int] = {}
    for size in sizes:
        if list(size.powers.values()) == [1]:
            (name,) = size.powers
            steps[name] = math.lcm(steps.get(name, 1), size.number.denominator)
    return steps
