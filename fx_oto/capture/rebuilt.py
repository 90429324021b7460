"""Objects that hold tensors, made again each time that a graph runs."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable
from itertools import takewhile
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import nn

from fx_oto.capture.whole import bound_in
from fx_oto.errors import TraceError

__all__ = ["Rebuilt", "is_its_fields", "is_spelled", "parts_of"]


class Rebuilt(nn.Module):
    """Makes an object as pickle does, of what is in it.

    It is a module so that the graph's code need not spell the object's class, which may have no name there.

    Args:
        make: the class, or a function that makes an empty object.
        fixed: the first arguments that it is called with, such as what ``defaultdict`` fills itself by.
    """

    def __init__(self, make: Callable[..., Any], fixed: tuple[Any, ...]) -> None:
        super().__init__()
        self._recipe = (make, *fixed)

    def makes_as(self, other: Rebuilt) -> bool:
        """Whether another makes the same of the same parts."""
        return len(self._recipe) == len(other._recipe) and all(map(_is, self._recipe, other._recipe))

    def forward(
        self, args: Iterable[Any], state: Any = None, items: Iterable[Any] = (), pairs: Iterable[tuple[Any, Any]] = ()
    ) -> Any:
        """The object."""
        make, *fixed = self._recipe
        made = make(*fixed, *args)
        if state is not None:
            _set_state(made, state)
        for one in items:
            made.append(one)
        for key, one in pairs:
            made[key] = one
        return made


def _itself(value: Any) -> Any:
    return value


def _is(left: Any, right: Any) -> bool:
    """Whether two are the same, or one ``lambda`` that was come by twice."""
    if left is right or not (isinstance(left, FunctionType) and isinstance(right, FunctionType)):
        return left is right
    mine, others = list(bound_in(left)), list(bound_in(right))
    return left.__code__ is right.__code__ and len(mine) == len(others) and all(map(operator.is_, mine, others))


def _set_state(made: Any, state: Any) -> None:
    if hasattr(made, "__setstate__"):
        made.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        made.__dict__.update(attributes)
    for name, value in (slots or {}).items():
        setattr(made, name, value)


def parts_of(value: Any) -> tuple[Rebuilt, list[Any]]:
    """What makes an object again, and what of.

    Raises:
        TraceError: it says nothing of that.
    """
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return Rebuilt(_itself, (value,)), [()]
    try:
        found = value.__reduce_ex__(2)
    except Exception as error:
        raise TraceError(f"a graph cannot hold an object of class {type(value).__name__}: {error}") from error
    if not isinstance(found, tuple):
        raise TraceError(f"a graph cannot hold an object of class {type(value).__name__}, of which there is one only")
    make, args, *rest = found
    state, items, pairs = (*rest[:3], None, None, None)[:3]
    fixed = tuple(takewhile(callable, args))
    parts = [tuple(args[len(fixed) :]), state, list(items or ()), list(pairs or ())]
    while parts[1:] and not parts[-1]:
        parts.pop()
    return Rebuilt(make, fixed), parts


def is_its_fields(value: Any) -> bool:
    """Whether a dataclass does nothing but hold the fields that it is called with."""
    fields = dataclasses.fields(value)
    given = {field.name for field in fields if field.init}
    has_own_init = not value.__dataclass_params__.init or hasattr(value, "__post_init__")
    return not has_own_init and len(given) == len(fields) and given == set(getattr(value, "__dict__", ()))


def is_spelled(key: Any) -> bool:
    """Whether a key of a dictionary is printed as code."""
    if type(key) is tuple:
        return all(map(is_spelled, key))
    return key is None or type(key) in (bool, int, float, str)
