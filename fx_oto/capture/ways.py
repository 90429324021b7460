"""How a plain number in a graph follows from numbers that remember where they come from."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fx_oto.capture.groups import Group

__all__ = ["OfHanded", "OfTwo", "Product", "Way", "Ways", "function_of"]

_FUNCTIONS: tuple[Callable[[Any], Any], ...] = (
    math.sqrt,
    math.log,
    math.log2,
    math.log10,
    math.exp,
    math.floor,
    math.ceil,
    operator.neg,
    math.isqrt,  # the side of a square, also of code that rounds math.sqrt
)


@dataclass(frozen=True)
class OfHanded:
    """A function of a number that code was handed, or a whole number that is larger or smaller by some.

    Attributes:
        function: the function.
        event: which of the numbers that were handed out, in order.
        more: by how many.
    """

    function: Callable[[Any], Any]
    event: int
    more: int = 0

    def of(self, number: Any) -> Any:
        """What follows from a plain number that was handed out."""
        return _of_plain(self.function, number) + self.more


@dataclass(frozen=True)
class Product:
    """A multiple of sizes of the inputs, which is what C code makes of shapes.

    Attributes:
        factor: the rest of the product.
        groups: whose sizes are in it.
    """

    factor: int
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class OfTwo:
    """The product of two whole numbers that code was handed, such as of the rows and the columns of a grid.

    Attributes:
        events: which of the numbers that were handed out, in order.
    """

    events: tuple[int, int]


Way = OfHanded | OfTwo | Product
# Height and width are one number as long as images are square: which of them it is, others tell.
Ways = tuple[Way, ...]


def function_of(
    left: Any, right: Any, mine: Any, theirs: Any, *, may_add: bool
) -> tuple[Callable[[Any], Any], int] | None:
    """How two numbers follow from two others, and by how many they are larger, if they may be."""
    if (mine, theirs) == (left, right):
        return type(left), 0
    for function in _FUNCTIONS if mine > 0 and theirs > 0 else ():
        try:
            found = _of_plain(function, mine), _of_plain(function, theirs)
        except OverflowError:  # exp of a length
            continue
        if found == (left, right) and type(found[0]) is type(left):
            return function, 0
    if may_add and type(left) is type(mine) is int and left - mine == right - theirs:
        return int, left - mine
    return None


def _of_plain(function: Callable[[Any], Any], number: Any) -> Any:
    return function(int(number) if function is math.isqrt else number)
