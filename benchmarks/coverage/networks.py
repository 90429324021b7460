"""What a zoo is made of: names, and how to build each network and its inputs."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["ZOOS", "Built", "Inputs", "Zoo", "images", "load"]

# (batch, seed) -> positional and keyword arguments of the model, in float32
Inputs = Callable[[int, int], tuple[tuple[Any, ...], dict[str, Any]]]
Built = tuple[nn.Module, Inputs]


class Zoo(Protocol):
    """A module with these two functions; one module for each zoo."""

    def names(self) -> list[str]: ...

    def build(self, name: str) -> Built: ...


ZOOS = {
    "torchvision": "zoo_torchvision",
    "timm": "zoo_timm",
    "timm-all": "zoo_timm_all",
    "transformers": "zoo_transformers",
    "peers": "zoo_peers",
}


def load(zoo: str) -> Zoo:
    """The module of a zoo. torchvision registers operators of a compiled library, which may be missing, on import."""
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    return import_module(ZOOS[zoo])


def images(*shape: int) -> Inputs:
    """One batch of images, or of anything dense."""

    def draw(batch: int, seed: int) -> tuple[tuple[Tensor], dict[str, Any]]:
        return (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed)),), {}

    return draw
