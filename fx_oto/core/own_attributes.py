"""Dictionaries whose items are their attributes, as configurations often are: how they are copied."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

__all__ = ["copy_own_attributes", "empty_of_own_attributes", "is_own_attributes", "shallow_copy"]


def is_own_attributes(value: Any) -> bool:
    """Whether a dictionary's items are its attributes, as ``self.__dict__ = self`` makes them."""
    return isinstance(value, dict) and getattr(value, "__dict__", None) is value


def empty_of_own_attributes(kind: Any) -> Any:
    """Such a dictionary, of a class, without items."""
    new: Any = dict.__new__(kind)
    new.__dict__ = new
    return new


def shallow_copy(value: Any) -> Any:
    """``copy.copy``, which leaves of such a dictionary one whose attributes are others than its items."""
    if not is_own_attributes(value):
        return copy.copy(value)
    new = empty_of_own_attributes(type(value))
    new.update(value)
    return new


def copy_own_attributes(module: nn.Module, memo: dict[int, Any]) -> None:
    """Copy such dictionaries, as of configurations, for ``copy.deepcopy``, which would leave them no attributes."""
    found, seen = list[Any](), set(memo)

    def find(value: Any) -> None:
        if isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            if is_own_attributes(value):
                memo[id(value)] = empty_of_own_attributes(type(value))
                found.append(value)
            for one in value.values() if isinstance(value, dict) else value:
                find(one)

    for one in module.modules():
        for value in vars(one).values():
            find(value)
    for one in found:
        memo[id(one)].update((copy.deepcopy(key, memo), copy.deepcopy(value, memo)) for key, value in one.items())
