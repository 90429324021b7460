"""The plain numbers that modules hold, as a model's code reads them: remembered while it is captured, and set anew."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any

from torch import nn

from fx_oto.capture.numbers import Float, Int, Origin, remembered
from fx_oto.capture.whole import is_leaf
from fx_oto.core.own_attributes import is_own_attributes, shallow_copy

__all__ = [
    "Attribute",
    "Attributes",
    "Steps",
    "Values",
    "attributes_in",
    "get_step",
    "holds_numbers",
    "put",
    "resolved",
    "set_attributes",
]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_NO_SETTINGS = (nn.Module, ModuleType, Enum, BaseException)
Steps = tuple[Any, ...]
_DEEPEST = 3  # objects in objects: module.config.text_config.hidden_size


@dataclass(frozen=True)
class Attribute:
    """A number that a module holds.

    Attributes:
        module: the module's path.
        steps: how it is reached from there: names of attributes, keys, and positions.
    """

    module: str
    steps: Steps

    @property
    def name(self) -> str:
        """As code spells it, such as ``config.num_heads`` or ``sizes[1]``."""
        parts = (step if isinstance(step, str) else f"[{step!r}]" for step in self.steps)
        return ".".join(parts).replace(".[", "[")

    def __str__(self) -> str:
        return f"{self.module}.{self.name}".lstrip(".")


Values = Mapping[Attribute, Any]


def _read(attribute: Attribute) -> Any:
    """Stands in an origin for the reading of an attribute."""
    raise NotImplementedError(attribute)


@dataclass
class Attributes:
    """Lets the numbers that a model's modules hold remember where they are held; a ``Run`` of ``numbers``.

    Attributes:
        original: what each was.
        is_over: see ``Run``.
        stays_in_graphs: see ``Run``.
        hands_others: see ``Run``.
    """

    original: dict[Attribute, Any] = field(default_factory=dict)
    is_over: bool = False
    stays_in_graphs: bool = True
    hands_others: bool = False

    def plant(self, model: nn.Module) -> None:
        """Put remembering numbers in the place of plain ones, in all modules whose code is run.

        Objects that modules hold, such as a configuration, become copies, one for each module.
        """
        for path, module in model.named_modules():
            if not is_leaf(module):
                for name, value in (_of_classes(module) | vars(module)).items():
                    if name not in _OF_EVERY_MODULE:
                        module.__dict__[name] = self._planted(value, Attribute(path, (name,)))

    def _planted(self, value: Any, place: Attribute) -> Any:
        if type(value) in (int, float):
            self.original[place] = value
            return remembered(self, value, Origin(_read, (place,)))
        if len(place.steps) > _DEEPEST or not holds_numbers(value):
            return value
        if isinstance(value, tuple | list):
            parts = [self._planted(one, _inside(place, i)) for i, one in enumerate(value)]
            return value if all(map(operator.is_, parts, value)) else _of_parts(value, parts)  # hooks may hold it
        if isinstance(value, dict):  # of any class, which may let code read its items as attributes
            items = {key: self._planted(one, _inside(place, key)) for key, one in value.items()}
            if all(map(operator.is_, items.values(), value.values())):
                return value
            other = shallow_copy(value)
            for key, one in items.items():
                other[key] = one
            return other
        other = shallow_copy(value)
        for name, one in vars(value).items():
            other.__dict__[name] = self._planted(one, _inside(place, name))
        return other

    def decided(self, origin: Origin, answer: Any) -> Any:
        """See ``Run``: where the answer would be another, so will be what the model computes."""
        return answer

    def handed_out(self, number: Any, given: Any) -> None:
        """See ``Run``: what becomes of it is found when models are compared."""

    def hashed(self, number: Any) -> None:
        """See ``Run``."""

    def asked_for_mode(self) -> None:
        """See ``Run``."""


def _of_classes(module: nn.Module) -> dict[str, Any]:
    """The numbers that a module's classes hold, which one of its own may hide."""
    found: dict[str, Any] = {}
    for kind in reversed(type(module).__mro__):
        if issubclass(kind, nn.Module) and kind.__module__.split(".")[0] != "torch":
            numbers = {name: value for name, value in vars(kind).items() if type(value) in (int, float)}
            found |= {name: value for name, value in numbers.items() if name != "_version"}
    return found


def _inside(place: Attribute, step: Any) -> Attribute:
    return Attribute(place.module, (*place.steps, step))


def holds_numbers(value: Any) -> bool:
    """Whether a container or a plain object may hold numbers that can be set."""
    if type(value) in (tuple, list, dict) or is_own_attributes(value):
        return True
    if type(getattr(value, "__dict__", None)) is not dict or callable(value) or isinstance(value, _NO_SETTINGS):
        return False
    return type(value).__module__.split(".")[0] not in ("torch", "fx_oto")


def _is_ours(number: Any) -> bool:
    return isinstance(number, Int | Float) and number.run.stays_in_graphs


def attributes_in(number: Any) -> Iterator[Attribute]:
    """The attributes that a number, or a decision, is computed from."""
    origin = number if isinstance(number, Origin) else number.origin if _is_ours(number) else None
    if origin is not None and origin.function is _read:
        yield origin.args[0]
    elif origin is not None:
        for one in origin.args:
            yield from attributes_in(one)


def resolved(number: Any, values: Values, original: Values) -> Any:
    """What a number, or a decision, is where attributes have other values.

    Args:
        number: a number, or the origin of one.
        values: of the attributes that have another.
        original: of all.
    """
    origin = number if isinstance(number, Origin) else number.origin if _is_ours(number) else None
    if origin is None:
        return number
    if origin.function is _read:
        return values.get(origin.args[0], original[origin.args[0]])
    args = [resolved(one, values, original) for one in origin.args]
    return getattr(args[0], origin.function)(*args[1:]) if isinstance(origin.function, str) else origin.function(*args)


def set_attributes(model: nn.Module, values: Values, read: set[Attribute]) -> None:
    """Set attributes of modules. What several modules hold is set for all, or copied for those that want another value.

    Args:
        model: the model to change.
        values: of the attributes that have another now.
        read: the attributes that the model's code reads.
    """
    for place, value in values.items():
        module = model.get_submodule(place.module)
        if len(place.steps) > 1 and _wanted_otherwise(model, place, value, values, read):
            _own(module, place.steps[:-1])
        put(module, place.steps, value)


def _holder(model: nn.Module, place: Attribute) -> Any:
    """The object that holds a number."""
    here: Any = model.get_submodule(place.module)
    for step in place.steps[:-1]:
        here = get_step(here, step)
    return here


def _wanted_otherwise(model: nn.Module, place: Attribute, value: Any, values: Values, read: set[Attribute]) -> bool:
    """Whether another module reads the same number of the same object, and wants another value of it."""
    holder = _holder(model, place)
    others = (other for other in read if other.steps[-1] == place.steps[-1] and other.module != place.module)
    return any(values.get(other, _SAME) != value and _holder(model, other) is holder for other in others)


_SAME = object()


def _own(module: nn.Module, steps: Steps) -> None:
    """Give a module copies of its own of the objects on a path."""
    here: Any = module
    for step in steps:
        inside = shallow_copy(get_step(here, step))
        _put_step(here, step, inside)
        here = inside


def _of_parts(value: Any, parts: list[Any]) -> Any:
    """A tuple or list as another one is, of other parts."""
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def get_step(holder: Any, step: Any) -> Any:
    """What an object holds under a name, a key or a position."""
    if isinstance(holder, tuple | list | dict):
        return holder[step]
    return holder.__dict__[step] if step in getattr(holder, "__dict__", {}) else getattr(holder, step)


def _put_step(holder: Any, step: Any, value: Any) -> None:
    if isinstance(holder, list | dict):
        holder[step] = value
    else:
        holder.__dict__[step] = value


def put(holder: Any, steps: Steps, value: Any) -> None:
    """Set what a path leads to; tuples on the way are made anew."""
    step, *rest = steps
    if rest:
        inside = get_step(holder, step)
        if isinstance(inside, tuple):
            parts = list(inside)
            put(parts, tuple(rest), value)
            _put_step(holder, step, _of_parts(inside, parts))
            return
        put(inside, tuple(rest), value)
    else:
        _put_step(holder, step, value)
