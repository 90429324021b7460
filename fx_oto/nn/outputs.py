"""Named tuples that a graph returns where their class is not known: of the same name and fields, made anew."""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

__all__ = ["class_of_named", "named_tuple"]


def named_tuple(names: str, fields: tuple[str, ...], *values: Any) -> Any:
    """A named tuple, as a node of a graph.

    Args:
        names: its class, qualified.
        fields: of the class.
        *values: one for each.

    Raises:
        ValueError: the class, or a field, has no name of a named tuple's.
    """
    return class_of_named(names, tuple(fields))(*values)


@cache
def class_of_named(names: str, fields: tuple[str, ...]) -> Any:
    """The class of a named tuple, the same for the same names.

    Raises:
        ValueError: it, or a field, has no name of a named tuple's.
    """
    make: Any = namedtuple  # whose names type checkers want to read
    found = make(names.rpartition(".")[2], fields, rename=True)
    if found._fields != fields:  # what Python takes for no field it calls by its place, as ``rename`` has asked for
        raise ValueError(f"no named tuple has the fields {', '.join(fields)}")
    found.__reduce__ = lambda self: (named_tuple, (names, fields, *self))  # pickle would not find the class
    return found
