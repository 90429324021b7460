"""Caches of functions that a model's code uses: what they keep of a capture has no numbers, so they are emptied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import FunctionType
from typing import Any

from torch import nn

from fx_oto.nn.modules import is_torchs

__all__ = ["empty", "namespaces_of"]

_CACHED = type(lru_cache(lambda: None))


def namespaces_of(model: nn.Module) -> list[dict[str, Any]]:
    """Where the code of a model's classes finds functions: the classes, and the global names of their methods."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__ if not is_torchs(kind)}
    found: dict[int, dict[str, Any]] = {}
    for kind in kinds - {object}:
        names = dict(vars(kind))
        found[id(kind)] = names
        for function in filter(None, map(_function, names.values())):
            found[id(function.__globals__)] = function.__globals__
    return list(found.values())


def empty(namespaces: Iterable[dict[str, Any]]) -> None:
    """Empty the caches among the functions of some namespaces, and what decorators have closed over."""
    seen: set[int] = set()
    for names in namespaces:
        for value in list(names.values()):
            for cached in _caches_in(value, seen):
                cached.cache_clear()


def _caches_in(value: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(value, _CACHED):
        yield value
    function = _function(value)
    if function is None or function.__closure__ is None or id(function) in seen:
        return
    seen.add(id(function))
    for cell in function.__closure__:
        try:
            inside = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        yield from _caches_in(inside, seen)


def _function(value: Any) -> FunctionType | None:
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    return value if isinstance(value, FunctionType) else None
