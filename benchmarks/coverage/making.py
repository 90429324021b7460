"""How networks of packages are made, and what they are called with."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from networks import Built, Call, Inputs, of_images
from torch import Tensor, nn

__all__ = [
    "TOKENS",
    "Make",
    "Told",
    "called_with",
    "dense",
    "dice_of",
    "first_of",
    "many",
    "named",
    "of_class",
    "on_images",
    "tokens",
]

Make = Callable[[Any], Built]  # of the imported module

TOKENS = 96


def of_class(module: str, *shape: int, **options: Any) -> Make:
    """A class or function, given by ``"module:name"`` below the package, and the shape of its images."""
    path, _, kind = module.partition(":")

    def make(package: str) -> Built:
        return of_images(getattr(import_module(f"{package}.{path}".rstrip(".")), kind)(**options), *shape)

    return make


def on_images(make: Callable[[Any], nn.Module], *shape: int) -> Make:
    return lambda package: of_images(make(import_module(package)), *shape)


def called_with(make: Callable[[Any], nn.Module], inputs: Inputs, **others: Inputs) -> Make:
    """A network and its inputs; of other kinds, such as another length, by keyword."""
    return lambda package: Built(
        make(import_module(package)), inputs, {key.replace("_", " "): (other,) for key, other in others.items()}
    )


def dice_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(length: int, batch: int, seed: int) -> Call:
    return (torch.randint(0, TOKENS, (batch, length), generator=dice_of(seed)),), {}


def dense(shape: tuple[int, ...], batch: int, seed: int) -> Call:
    return (torch.randn(batch, *shape, generator=dice_of(seed)),), {}


def many(shapes: tuple[tuple[int, ...] | int, ...], batch: int, seed: int) -> Call:
    """Dense inputs by their shape, times of a diffusion by their number."""
    dice = dice_of(seed)
    return tuple(_one(shape, batch, dice) for shape in shapes), {}


def _one(shape: tuple[int, ...] | int, batch: int, dice: torch.Generator) -> Tensor:
    if isinstance(shape, int):
        return torch.randint(0, shape, (batch,), generator=dice)
    return torch.randn(batch, *shape, generator=dice)


class Told(nn.Module):
    """A network, and how it is called: options, a method, a part of what it returns."""

    def __init__(self, net: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.net, self.call = net, call

    def forward(self, *given: Tensor) -> Any:
        return self.call(self.net, *given)


def first_of(net: nn.Module, *given: Tensor) -> Any:
    """The first of what a network returns."""
    return net(*given)[0]


def named(path: str, *sizes: Any, **options: Any) -> Callable[[Any], nn.Module]:
    """What makes ``"module:name"``, a class or a function of a package, or a name of its own."""
    module, _, name = path.rpartition(":")

    def make(package: Any) -> nn.Module:
        found = import_module(f"{package.__name__}.{module}") if module else package
        network: nn.Module = getattr(found, name)(*sizes, **options)
        return network

    return make
