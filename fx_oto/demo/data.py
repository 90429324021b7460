"""Real images: scikit-learn's handwritten digits, or Fashion-MNIST from its standard idx files."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fx_oto.core.errors import InputError

__all__ = ["Images", "digits", "fashion_mnist", "read_idx"]

_FASHION = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True)
class Images:
    """Images ``(n, 1, h, w)``, normalised to mean 0 and variance 1, and labels ``(n,)``, for training and testing."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled pass over the training images; an incomplete last batch is left out."""
        order = torch.randperm(len(self.train), generator=generator)
        for index in order[: len(order) // size * size].split(size):
            yield self.train[index], self.train_labels[index]

    def steps(self, size: int) -> int:
        """Batches in one pass."""
        return len(self.train) // size


def _normalised(name: str, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> Images:
    mean, std = train.mean(), train.std()
    return Images(name, (train - mean) / std, train_labels, (test - mean) / std, test_labels)


def digits() -> Images:
    """1,797 images of 8 × 8 pixels that come with scikit-learn; every fifth is for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("the demo's data comes with scikit-learn: pip install 'fx-oto[demo]'") from error
    raw = load_digits()
    images = torch.from_numpy(raw.images).float().unsqueeze(1)
    labels = torch.from_numpy(raw.target).long()
    held_out = torch.arange(len(labels)) % 5 == 0
    return _normalised("digits", images[~held_out], labels[~held_out], images[held_out], labels[held_out])


def fashion_mnist(root: Path) -> Images:
    """60,000 + 10,000 images of 28 × 28 pixels from the four standard idx files, gzipped or not.

    Raises:
        InputError: a file is missing or is not an idx file.
    """
    train, train_labels, test, test_labels = (read_idx(_find(root, name)) for name in _FASHION)
    images = [part.float().unsqueeze(1) for part in (train, test)]
    return _normalised("fashion-mnist", images[0], train_labels.long(), images[1], test_labels.long())


def _find(root: Path, name: str) -> Path:
    for path in (root / f"{name}.gz", root / name):
        if path.is_file():
            return path
    raise InputError(
        f"expected {name}.gz or {name} in {root}; give the folder of the Fashion-MNIST idx files with --root"
    )


def read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes: uint8, of the shape that its header gives.

    Raises:
        InputError: the header is not that of an idx file of bytes, or the data is incomplete.
    """
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(
            f"{path} is not an idx file of unsigned bytes: it starts with {content[:4].hex(' ')}, expected 00 00 08"
        )
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) - start != math.prod(shape):
        raise InputError(f"{path} should hold {shape} bytes, found {len(content) - start}: the file is incomplete")
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(shape)
