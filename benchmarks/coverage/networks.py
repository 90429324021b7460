"""What a zoo is made of: names, and how to build each network and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol

import torch
from support.exactness import to_double
from support.vision import without_compiled_library
from torch import Tensor, nn

__all__ = ["ZOOS", "Built", "Call", "Inputs", "Zoo", "images", "load", "of_images", "other_images"]

Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of the model, in float32
Inputs = Callable[[int, int], Call]  # (batch, seed) -> arguments
Parts = tuple[str | tuple[str, ...], ...]  # as ``prepare`` takes them


class Built(NamedTuple):
    """A network, its inputs, and by kind, such as ``"length"``, inputs of other sizes, in the order to be tried.

    ``parts``, where there are any, are pruned in the place of the whole network; ``in_double`` says which of the
    arguments are in float64 where the network is.
    """

    model: nn.Module
    inputs: Inputs
    others: dict[str, tuple[Inputs, ...]]
    parts: Parts = ()
    in_double: Callable[[Call], Call] = to_double


class Zoo(Protocol):
    """A module with these two functions; one module for each zoo."""

    def names(self) -> list[str]: ...

    def build(self, name: str) -> Built: ...


ZOOS = {
    "torchvision": "zoo_torchvision",
    "timm": "zoo_timm",
    "timm-all": "zoo_timm_all",
    "transformers": "zoo_transformers",
    "transformers-5": "zoo_transformers",
    "einops": "zoo_einops",
    "packages": "zoo_packages",
    "peers": "zoo_peers",
}


def load(zoo: str) -> Zoo:
    """The module of a zoo. torchvision registers operators of a compiled library, which may be missing, on import."""
    check_version(zoo)
    without_compiled_library()
    return import_module(ZOOS[zoo])


def check_version(zoo: str) -> None:
    """That the records of one major version of transformers are not those of another.

    Raises:
        SystemExit: another one is installed than the zoo is named after.
    """
    if zoo.startswith("transformers"):
        wanted, installed = zoo.partition("-")[2] or "4", version("transformers")
        if installed.split(".")[0] != wanted:
            raise SystemExit(f"{zoo} is of transformers {wanted}, but {installed} is installed")


def of_images(model: nn.Module, *shape: int) -> Built:
    """A network of images, or of clips, and images of other sizes."""
    return Built(model, images(*shape), {"image size": other_images(*shape)})


def other_images(*shape: int) -> tuple[Inputs, ...]:
    """Images that are larger, the first not square; the last, and largest, only if they were small."""
    *first, height, width = shape
    sizes = [(height + 32, width + 64), (height + 32, width + 32), (2 * height, 2 * width)]
    return tuple(images(*first, *size) for size in sizes if max(size) <= max(288, width + 64))


def images(*shape: int) -> Inputs:
    """One batch of images, or of anything dense."""

    def draw(batch: int, seed: int) -> tuple[tuple[Tensor], dict[str, Any]]:
        return (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed)),), {}

    return draw
