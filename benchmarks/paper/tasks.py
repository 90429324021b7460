"""What is trained for: the data, the loss, the score. One object for each kind of data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import fx_oto
from benchmarks.paper.recipes import Recipe

__all__ = ["SHAPES", "Options", "Task", "load", "missing", "spread"]

SHAPES: Mapping[str, tuple[tuple[int, ...], int]] = {
    "CIFAR10": ((3, 32, 32), 10),
    "CIFAR100": ((3, 32, 32), 100),
    "SVHN": ((3, 32, 32), 10),
    "Fashion-MNIST": ((1, 28, 28), 10),
    "ImageNet": ((3, 224, 224), 1000),
    "DIV2K": ((3, 64, 64), 0),
    "SQuAD": ((384,), 2),
}
"""Shape of one sample, and classes."""


@dataclass(frozen=True)
class Options:
    """How data is read: the device, how many samples to train on (None: all), BERT's folder, processes that read."""

    device: str = "cpu"
    subset: int | None = None
    weights: Path | None = None
    workers: int = 0


class Task(Protocol):
    """Data, loss and score.

    Attributes:
        example: inputs of the model, for ``fx_oto.prepare``.
        counts: samples to train on, samples to test on.
        generator: order and augmentation; its state belongs to a checkpoint.
    """

    example: Any
    counts: tuple[int, int]
    generator: torch.Generator

    def steps(self) -> int:
        """Steps in an epoch."""

    def batches(self) -> Iterator[Any]:
        """One epoch."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch, a scalar."""

    def score(self, model: nn.Module) -> dict[str, float]:
        """On the test data, in eval mode: the larger the better."""


def load(recipe: Recipe, root: Path, options: Options) -> Task:
    """Read the data of a recipe.

    Raises:
        InputError: something is not there, or not what it should be.
    """
    if recipe.data == "DIV2K":
        from benchmarks.paper.super_resolution import SuperResolution

        return SuperResolution(recipe, root, options)
    if recipe.data == "SQuAD":
        from benchmarks.paper.squad import QuestionAnswering

        return QuestionAnswering(recipe, root, options)
    from benchmarks.paper.images import Folders, InMemory

    return (Folders if recipe.data == "ImageNet" else InMemory)(recipe, root, options)


def spread(count: int, subset: int | None) -> Tensor:
    """Evenly spaced indices, ``subset`` of ``count``: data sorted by class keeps its classes.

    Raises:
        InputError: more than there are.
    """
    if subset is None:
        return torch.arange(count)
    if not 0 < subset <= count:
        raise fx_oto.InputError(f"--subset must be between 1 and the {count} training samples, found {subset}")
    return torch.arange(subset) * count // subset


def missing(what: str, root: Path, files: str) -> fx_oto.InputError:
    """The error for data that is not there."""
    return fx_oto.InputError(f"expected {what} in {root}: {files}; nothing is downloaded")
