"""Values as JSON and back: numbers, texts, containers, and torch's types, devices and functions by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

from fx_oto.core.errors import FileError
from fx_oto.deploy.whitelist import ENUMS, function_named, name_of_function

__all__ = ["Reader", "UnwritableError", "a_dict", "a_list", "a_text", "an_integer", "entry", "given_names", "written"]

_DEEPEST = 32
_LISTS: dict[type, str] = {tuple: "tuple", torch.Size: "size", set: "set", frozenset: "frozenset"}
_NAMED: dict[type, str] = {torch.dtype: "dtype", torch.layout: "layout", torch.memory_format: "memory_format"}
# A file names types by Python's words as well, such as ``float`` for the type of an argument.
_KINDS: dict[type, str] = {bool: "bool", int: "int", float: "float", str: "str"}


class UnwritableError(FileError):
    """A value that no file can hold."""


def written(value: Any) -> Any:
    """A value as JSON: texts, whole numbers and lists as they are, anything else as ``{kind: content}``.

    Raises:
        UnwritableError: it cannot be written.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, dict):
        return {"dict": [[written(key), written(one)] for key, one in value.items()]}
    if type(value) in _LISTS or (isinstance(value, list) and not hasattr(value, "_fields")):
        parts = [written(one) for one in value]
        return {_LISTS[type(value)]: parts} if type(value) in _LISTS else parts
    return _written_object(value)


def _written_object(value: Any) -> Any:
    if isinstance(value, slice | range):
        return {type(value).__name__: [written(one) for one in (value.start, value.stop, value.step)]}
    if isinstance(value, complex):
        return {"complex": [written(value.real), written(value.imag)]}
    if isinstance(value, Enum):
        name = next((name for name, kind in ENUMS.items() if isinstance(value, kind)), None)
        return _tagged(value, "enum", name and [name, value.name])
    if callable(value):
        return _written_callable(value)
    if value is ...:
        return {"ellipsis": None}
    kind = "device" if isinstance(value, torch.device) else _NAMED.get(type(value))
    return _tagged(value, kind, str(value).removeprefix("torch."))


def _written_callable(value: Any) -> Any:
    if isinstance(value, type) and value in _KINDS:
        return {"kind": _KINDS[value]}
    known = name_of_function(value)
    return _tagged(value, "function" if known else "given", known or given_names(value))


def _tagged(value: Any, kind: str | None, content: Any) -> Any:
    if kind is None or content is None:
        raise UnwritableError(f"{type(value).__name__} {value!r:.60}")
    return {kind: content}


def given_names(value: Any) -> str | None:
    """The qualified name of a function, class or operator of the user's, who gives it again when a file is loaded."""
    value = getattr(value, "applies", (value,))[0]
    if isinstance(value, OpOverload):
        return str(value)
    name = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None)}"
    return None if "<" in name or "None" in name else name


@dataclass(frozen=True)
class Reader:
    """Makes values of JSON.

    Attributes:
        nodes: of the graph that is being read, by name.
        given: the functions, classes and operators that the user hands over, by qualified name.
        device: what takes the place of the device that the model was on.
        saved_on: that device.
    """

    nodes: Mapping[str, Node] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device | None = None
    saved_on: torch.device | None = None

    def read(self, value: Any, depth: int = 0) -> Any:
        """The value.

        Raises:
            FileError: there is none of that form or name.
        """
        if depth > _DEEPEST:
            raise FileError(f"values are nested deeper than {_DEEPEST} levels")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list):
            return [self.read(one, depth + 1) for one in value]
        kind, content = entry(value)
        if kind in _CONTAINERS:
            return _CONTAINERS[kind]([self.read(one, depth + 1) for one in a_list(content)])
        if kind not in _MADE:
            raise FileError(f"no value is of the kind {kind!r:.40}")
        try:
            return _MADE[kind](self, content)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, OverflowError) as error:
            raise FileError(f"{content!r:.60} is no {kind}: {error}") from error

    def _node(self, name: str) -> Node:
        if a_text(name) not in self.nodes:
            raise FileError(f"a node reads {name!r:.60}, which no node before it is called")
        return self.nodes[name]

    def _given(self, name: str) -> Any:
        if a_text(name) not in self.given:
            raise FileError(
                f"the graph calls {name!r}, which is neither torch's nor fx_oto's: hand it over with "
                "fx_oto.load(path, functions=[…])"
            )
        return self.given[name]

    def _device(self, name: str) -> torch.device:
        device = torch.device(a_text(name))
        return self.device if self.device is not None and device == self.saved_on else device


def entry(value: Any) -> tuple[str, Any]:
    """The kind and the content of ``{kind: content}``.

    Raises:
        FileError: it is something else.
    """
    if not isinstance(value, dict) or len(value) != 1:
        raise FileError(f"expected a value of one kind, found {value!r:.60}")
    return next(iter(value.items()))


def a_list(value: Any, length: int | None = None) -> list[Any]:
    """The value, which must be a list.

    Raises:
        FileError: it is something else, or has another length.
    """
    if not isinstance(value, list) or length not in (None, len(value)):
        raise FileError(f"expected a list{'' if length is None else f' of {length}'}, found {value!r:.60}")
    return value


def a_dict(value: Any) -> dict[str, Any]:
    """The value, which must be an object of JSON.

    Raises:
        FileError: it is something else.
    """
    if not isinstance(value, dict):
        raise FileError(f"expected an object, found {value!r:.60}")
    return value


def a_text(value: Any) -> str:
    """The value, which must be a text.

    Raises:
        FileError: it is something else.
    """
    if not isinstance(value, str):
        raise FileError(f"expected a text, found {value!r:.60}")
    return value


def an_integer(value: Any) -> int:
    """The value, which must be a whole number, not negative.

    Raises:
        FileError: it is something else.
    """
    if type(value) is not int or not 0 <= value < 2**63:
        raise FileError(f"expected a whole number, found {value!r:.60}")
    return value


def _torchs(kind: type) -> Callable[[Reader, Any], Any]:
    def named(reader: Reader, name: Any) -> Any:
        found = getattr(torch, a_text(name), None) if name.isidentifier() else None
        if not isinstance(found, kind):
            raise ValueError("torch has none of this name")
        return found

    return named


def _dict(pairs: list[Any]) -> dict[Any, Any]:
    try:
        return dict(a_list(pair, 2) for pair in pairs)
    except TypeError as error:  # not hashable
        raise FileError(f"the keys of a dictionary are wrong: {error}") from error


def _hashable(make: Callable[[Any], Any]) -> Callable[[list[Any]], Any]:
    def made(parts: list[Any]) -> Any:
        try:
            return make(parts)
        except TypeError as error:
            raise FileError(f"what is in a container is wrong: {error}") from error

    return made


def _float(reader: Reader, text: Any) -> float:
    return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[a_text(text)]


def _range(reader: Reader, parts: Any) -> range:
    return range(*(int(reader.read(one, _DEEPEST)) for one in a_list(parts, 3)))


def _function(reader: Reader, name: Any) -> Any:
    found = function_named(a_text(name))
    if found is None:
        raise FileError(
            f"files may not name the function {name!r:.60}: it is none of torch's that compute with tensors, or this "
            f"torch ({torch.__version__}) has it no more"
        )
    return found


_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "dict": _dict,
    "size": _hashable(torch.Size),
    "set": _hashable(set),
    "frozenset": _hashable(frozenset),
}
_MADE: dict[str, Callable[[Reader, Any], Any]] = {
    "float": _float,
    "node": lambda reader, name: reader._node(name),
    "slice": lambda reader, parts: slice(*(reader.read(one, _DEEPEST - 2) for one in a_list(parts, 3))),
    "range": _range,
    "device": lambda reader, name: reader._device(name),
    "complex": lambda reader, parts: complex(*(reader.read(one) for one in a_list(parts, 2))),
    "ellipsis": lambda reader, _: ...,
    "kind": lambda reader, name: {word: kind for kind, word in _KINDS.items()}[name],
    "enum": lambda reader, parts: ENUMS[a_list(parts, 2)[0]][a_text(parts[1])],
    "function": _function,
    "given": lambda reader, name: reader._given(name),
    **{name: _torchs(kind) for kind, name in _NAMED.items()},
}
