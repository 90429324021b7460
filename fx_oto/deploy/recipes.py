"""What builds a model: its class, given a configuration, or a callable, given keyword arguments."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import nn

from fx_oto.deploy.attributes import holds_numbers

__all__ = ["Build", "Recipe", "recipe_of"]

Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class Recipe:
    """What builds a model.

    Attributes:
        make: is called with the settings.
        config: an object that has the settings as attributes.
        text: the call, as code spells it.
        optional: settings that may be made besides, with what they are if they are not.
        call: spells the call with other settings; None for a class and a configuration.
    """

    make: Callable[[Any], nn.Module]
    config: Any
    text: str
    optional: Mapping[str, Any]
    call: Callable[[Any], str] | None = None


def recipe_of(model: nn.Module, build: Build | None) -> Recipe | None:
    """What builds a model: ``build``, given keyword arguments, or its class, given its ``config``.

    Returns:
        None if there is neither.
    """
    if build is not None:
        keywords = build.keywords if isinstance(build, partial) else {}
        optional = _numbers_taken(model, keywords)
        return Recipe(
            lambda given: build(**vars(given)),
            SimpleNamespace(),
            _spelled(build, {}),
            optional,
            lambda given: _spelled(build, vars(given)),
        )
    config = getattr(model, "config", None)
    if isinstance(config, dict | list | tuple) or not holds_numbers(config):
        return None
    return Recipe(type(model), config, f"{type(model).__name__}(config)", {})


def _spelled(build: Build, given: Mapping[str, Any]) -> str:
    """A call with some keyword arguments, as code spells it."""
    function: Any = build.func if isinstance(build, partial) else build
    args, keywords = (build.args, build.keywords) if isinstance(build, partial) else ((), {})
    name, module = getattr(function, "__qualname__", "build"), getattr(function, "__module__", None) or ""
    package = module.split(".")[0]
    home = package if getattr(sys.modules.get(package), name, None) is function else module
    parts = [*map(repr, args), *(f"{key}={value!r}" for key, value in {**keywords, **given}.items())]
    return f"{home}.{name}({', '.join(parts)})".removeprefix("__main__.")


def _numbers_taken(model: nn.Module, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model's class that may be numbers, with their defaults."""
    parameters = inspect.signature(type(model).__init__).parameters
    found = {name: one.default for name, one in parameters.items()} | dict(keywords)
    return {name: value for name, value in found.items() if type(value) in (int, float, tuple, type(None))}
