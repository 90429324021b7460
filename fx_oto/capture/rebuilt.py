"""Objects that hold tensors, made again each time that a graph runs."""

from __future__ import annotations

import dataclasses
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.fx.node import base_types, map_arg

from fx_oto.capture.sheet import Sheet
from fx_oto.capture.whole import bound_in
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import tensor_leaves
from fx_oto.core.own_attributes import empty_of_own_attributes
from fx_oto.nn.modules import is_torchs

__all__ = ["Rebuilt", "is_spelled", "node_of_object", "rebuilt"]


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


def _parts_of(value: Any) -> tuple[Rebuilt, list[Any]]:
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
    if state is value:
        make, args, state = empty_of_own_attributes, (type(value),), None
    fixed = list(takewhile(callable, args))
    parts = [tuple(args[len(fixed) :]), state, list(items or ()), list(pairs or ())]
    while parts[1:] and not parts[-1]:
        parts.pop()
    if make.__name__ == "__newobj__" and fixed[0].__init__ is object.__init__:  # to call the class is the same
        make, *fixed = fixed
    return Rebuilt(make, tuple(fixed)), parts


def _is_its_fields(value: Any) -> bool:
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


_UNSPELLED = (nn.Module, torch.Generator, MethodType, Iterator)


def node_of_object(run: Sheet, value: Any) -> Any:
    """The node that makes an object; what a graph can hold as it is, is returned.

    Raises:
        TraceError: a graph can neither hold nor make it.
    """
    kind: Any = type(value)
    if isinstance(value, (*base_types, range)) or value is ...:
        return value
    if kind.__module__ == "numpy" and hasattr(value, "item"):
        return value.item()
    if call := _call_of(run, value):
        node = _class_call(run, value, *call)
        return rebuilt(run, value) if node is None else node
    if _is_rebuilt(run, value):
        return rebuilt(run, value)
    if (kind.__module__ == "builtins" or is_torchs(kind)) and not isinstance(value, _UNSPELLED):
        return value
    raise TraceError(f"a graph cannot hold an object of class {kind.__name__}")


def _call_of(run: Sheet, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """What a class is called with to make an object again, where it is known; in order and by name."""
    if type(value) is OrderedDict:
        return ([(key, run.nodes(one)) for key, one in value.items()],), {}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return tuple(map(run.nodes, value)), {}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return None
    if isinstance(value, dict):  # a ModelOutput
        return (), {key: run.nodes(one) for key, one in value.items()}
    return ((), {key: run.nodes(one) for key, one in vars(value).items()}) if _is_its_fields(value) else None


def _class_call(run: Sheet, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node | None:
    """The node that calls a class; None where pickle would not find the class, or make no node of the call."""
    kind, used = type(value), list[Node]()
    map_arg((args, kwargs), used.append)
    if not used or is_torchs(kind) or "." in kind.__qualname__:
        return None
    node = run.create("call_function", kind, args, kwargs)
    node.meta["val"], node.meta["is_wrapped"] = value, True
    return node


def _is_rebuilt(run: Sheet, value: Any) -> bool:
    """Whether an object is made again of what is in it."""
    if isinstance(value, dict | list | tuple | FunctionType | BuiltinFunctionType):
        return True
    if isinstance(value, type):
        return run.is_at_output
    if callable(value) or isinstance(value, torch.Generator):
        return False
    kind = type(value)
    if kind in (set, frozenset):
        return run.is_at_output
    if kind.__module__ == "builtins" or is_torchs(kind):
        return bool(tensor_leaves(getattr(value, "__dict__", None)))
    return run.is_at_output or bool(tensor_leaves(_parts_of(value)[1]))


def rebuilt(run: Sheet, value: Any) -> Node:
    """The node that makes an object again."""
    made, parts = _parts_of(value)
    args = tuple(map(run.nodes, parts))
    known = (name for name, one in run.constants.items() if isinstance(one, Rebuilt) and one.makes_as(made))
    name = next(known, f"_rebuilt{len(run.constants)}")
    run.held[name] = run.constants.setdefault(name, made)
    node = run.create("call_module", name, args)
    node.meta["val"] = value
    return node
