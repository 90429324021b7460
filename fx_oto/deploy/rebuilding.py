"""Models built anew from their configuration, as ``from_pretrained`` builds them, and how their sizes depend on it."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fx_oto.core.preserve import Dice
from fx_oto.deploy.attributes import Attribute, Attributes, Steps, get_step, holds_numbers, put
from fx_oto.deploy.recipes import Recipe

__all__ = ["Configured", "Key", "Place", "Sizes", "dims_of", "fill", "named", "number_at", "numbers_of", "shapes_of"]

Key = Steps  # how a setting is reached in a configuration: names of attributes, keys, and positions
Place = tuple[str, int] | Attribute  # a dimension of a tensor, by its name, or a number that a module holds
Sizes = dict[Place, Any]
_Values = Mapping[Key, Any]

_DEEPEST = 3  # config.text_config.hidden_sizes[1]
_PROBES = (3, 2, 8, 1)  # for settings that say nothing


def named(key: Key) -> str:
    """A setting as code spells it, such as ``num_heads`` or ``vision_config.depths[1]``."""
    return Attribute("", key).name


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters and buffers, under each of their names."""
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def dims_of(model: nn.Module) -> Sizes:
    """The size of each dimension of each of these."""
    return {(name, dim): size for name, shape in shapes_of(model).items() for dim, size in enumerate(shape)}


class _WithoutMemory(TorchFunctionMode):
    """Tensors that wait to be filled are made on the meta device; what code computes, such as buffers, is computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class Configured:
    """What builds a model, and the settings that it reads, whose numbers can be given other values.

    Attributes:
        recipe: what builds it.
        like: the model.
        places: numbers that modules hold, which ``sizes`` gives as well.
    """

    def __init__(self, recipe: Recipe, like: nn.Module, places: tuple[Attribute, ...] = ()) -> None:
        self.recipe, self.like, self.places = recipe, like, places
        kinds = (tensor.dtype for tensor in like.parameters() if tensor.is_floating_point())
        self.dtype = next(kinds, torch.get_default_dtype())
        self._sizes: dict[frozenset[tuple[Key, Any]], Sizes | None] = {}
        self._effects: dict[Key, tuple[Any, Sizes] | None] = {}

    def build(self, values: _Values, filled: bool = False) -> nn.Module:
        """A model of the configuration with some numbers set.

        Args:
            values: of settings.
            filled: whether tensors that wait to be filled are; otherwise they hold no numbers, and take no memory.

        Raises:
            Exception: whatever its code raises.
        """
        return self.build_from(self.with_values(values), filled)

    def with_values(self, values: _Values) -> Any:
        """A copy of the configuration with some numbers set."""
        config = copy.deepcopy(self.recipe.config)
        for key, value in values.items():
            put(config, key, value)
        return config

    def build_from(self, config: Any, filled: bool = False) -> nn.Module:
        """A model of a configuration, as ``build`` returns it."""
        before, dice, logged = torch.get_default_dtype(), Dice(), logging.root.manager.disable
        torch.set_default_dtype(self.dtype)
        logging.disable()  # what a library has to say of the values that are tried
        try:
            with warnings.catch_warnings(), nullcontext() if filled else _WithoutMemory():
                warnings.simplefilter("ignore")
                return self.recipe.make(config)
        finally:
            logging.disable(logged)
            torch.set_default_dtype(before)
            dice.put_back()

    def sizes(self, values: _Values) -> Sizes | None:
        """The size of each dimension, and each of the ``places``, with some numbers set; None if that cannot be."""
        known = frozenset(values.items())
        if known not in self._sizes:
            try:
                built = self.build(values)
            except Exception:  # such as a width that the number of heads does not divide
                self._sizes[known] = None
            else:
                self._sizes[known] = dims_of(built) | {place: number_at(built, place) for place in self.places}
        return self._sizes[known]

    def numbers(self) -> list[Key]:
        """The settings that are numbers."""
        return [key for key, value in _settings(self.recipe.config, ()) if value is not None]

    def effect(self, key: Key) -> tuple[Any, Sizes] | None:
        """Another value of a setting, and the sizes that it changes; None if no other can be, or none changes."""
        if key not in self._effects:
            self._effects[key] = self._tried(key)
        return self._effects[key]

    def _tried(self, key: Key) -> tuple[Any, Sizes] | None:
        value, base = self.value(key), self.sizes({})
        if not value or base is None:
            return None
        for other in (2 * value, value + 1, value / 2 if isinstance(value, float) else value // 2):
            found = self.sizes({key: other})
            if found is not None and found.keys() == base.keys():
                changed = {place: size for place, size in found.items() if size != base[place]}
                return (other, changed) if changed else None
        return None

    def value(self, key: Key) -> Any:
        """What a setting is."""
        here = self.recipe.config
        for step in key:
            here = get_step(here, step)
        return here

    def explicit(self) -> Configured:
        """The same with settings made that it leaves out, at the numbers that change nothing.

        Where a configuration has no ``head_dim``, code divides the width by the number of heads; with a ``head_dim``
        it does not, and each of them can be set alone.
        """
        found = self.left_out()
        if not found:
            return self
        return Configured(replace(self.recipe, config=self.with_values(found)), self.like, self.places)

    def left_out(self) -> dict[Key, Any]:
        """Settings that are left out, with the numbers that change nothing."""
        found: dict[Key, Any] = {}
        names = [(name,) for name in self.recipe.optional] or self._asked_for()
        for key in (*(key for key, value in _settings(self.recipe.config, ()) if value is None), *names):
            value = self._neutral(key, self.recipe.optional.get(key[0]))
            if value is not None and self.sizes({**found, key: value}) == self.sizes({}):
                found[key] = value
        return found

    def _asked_for(self) -> list[Key]:
        """Names that the code asks for and the configuration lacks."""
        asked: dict[str, None] = {}
        config = copy.deepcopy(self.recipe.config)
        kind = type(config)

        def missing(self: Any, name: str) -> Any:
            if not name.startswith("_"):
                asked[name] = None
            if hasattr(kind, "__getattr__"):
                return kind.__getattr__(self, name)
            raise AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")

        try:
            config.__class__ = type(kind.__name__, (kind,), {"__getattr__": missing})
            self.build_from(config)
        except Exception:  # such as a class that cannot be derived from
            return []
        return [(name,) for name in asked if not hasattr(kind, name)]

    def _neutral(self, key: Key, default: Any) -> Any:
        """The number of a setting that changes no size, where others do; None if there is none."""
        base = self.sizes({})
        if isinstance(default, tuple):
            return default if self.sizes({key: default}) == base else None
        for probe in _PROBES if default is None else (2 * default, default):
            found = self.sizes({key: probe})
            if found is None or base is None or found.keys() != base.keys():
                continue
            wanted = (base[place] * probe / size for place, size in found.items() if size and size != base[place])
            value = next(wanted, None)
            if value is not None and not isinstance(default, float):
                return int(value) if value == int(value) else None
            return value
        return None


def _settings(holder: Any, path: Key) -> Iterator[tuple[Key, Any]]:
    """The numbers in a configuration, and its settings that say nothing."""
    if len(path) > _DEEPEST:
        return
    items = (
        holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list | tuple) else ()
    )
    is_object = not isinstance(holder, dict | list | tuple)
    for step, value in vars(holder).items() if is_object else items:
        if is_object and str(step).startswith("_"):
            continue
        if type(value) in (int, float) or (value is None and is_object):
            yield (*path, step), value
        elif holds_numbers(value):
            yield from _settings(value, (*path, step))


def number_at(model: nn.Module, place: Attribute) -> Any:
    """What a path of attributes, keys and positions leads to; None if it leads nowhere."""
    try:
        here: Any = model.get_submodule(place.module)
        for step in place.steps:
            here = get_step(here, step)
    except (AttributeError, LookupError, TypeError):
        return None
    return here


def numbers_of(model: nn.Module) -> dict[Attribute, Any]:
    """All plain numbers that the modules of a model hold; the model is of no use afterwards."""
    found = Attributes()
    found.plant(model)
    return found.original


def fill(model: nn.Module, tensors: Mapping[str, Tensor], like: nn.Module) -> bool:
    """Give a model the tensors of a state dict; what else it holds goes to the device of what another one holds.

    Returns:
        Whether all that it holds has numbers.
    """
    model.load_state_dict(dict(tensors), assign=True)
    theirs = dict(like.named_buffers(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            full = f"{path}.{name}".lstrip(".")
            if buffer is not None and buffer.device.type != "meta" and full in theirs:
                module._buffers[name] = buffer.to(theirs[full].device)
    return not any(tensor.device.type == "meta" for tensor in (*model.parameters(), *model.buffers()))
