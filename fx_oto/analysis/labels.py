"""Provenance layers: which atom's removal removes an element, and what the element is worth then.

A layer holds two tensors that broadcast to the value they describe. Both have the value's number of
dimensions and size 1 wherever they do not vary, so a layer along the channels of a feature map
``(N, C, H, W)`` is ``(1, C, 1, 1)``. Data movement is followed by running the movement itself on layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["UNKNOWN", "ZERO", "Layer", "Region"]
__all__ += ["align", "compress", "laid_along", "reshape", "runs", "varying", "worth_along", "zero_stays"]

UNKNOWN = torch.full((), math.nan, dtype=torch.float64, device="cpu")
ZERO = torch.zeros((), dtype=torch.float64, device="cpu")


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One axis along which elements of a value can be removed.

    Attributes:
        labels: int64 atoms, broadcastable to the value; varies along at least one dimension.
        removed: float64, broadcastable to the value: the value of an element once the group of its
            atom is zero; NaN where that depends on data.
    """

    labels: Tensor
    removed: Tensor

    @classmethod
    def uniform(cls, labels: Tensor, worth: Tensor = UNKNOWN) -> Layer:
        """A layer of which every element is worth the same once removed; by default, what depends on data."""
        return cls(labels, worth.view((1,) * labels.ndim))

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions along which the labels vary."""
        return varying(self.labels)

    def map(self, move: Callable[[Tensor], Tensor]) -> Layer:
        """The layer after a data movement that treats labels and removed values alike."""
        removed = move(self.removed) if self.removed.numel() > 1 else self.removed
        labels = move(self.labels)
        if removed.numel() == 1:
            removed = removed.reshape((1,) * labels.ndim)
        return Layer(labels, removed)


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Pure data movement since a value whose one tracked dimension was split into a grid.

    Attributes:
        entry: the value before the split.
        dim: its tracked dimension.
        atoms: fresh atoms of that dimension, consecutive, each united with the label it stands for.
        coordinates: for every dimension of ``entry``, where each element came from.
    """

    entry: Tensor
    dim: int
    atoms: Tensor
    coordinates: tuple[Layer, ...]

    @classmethod
    def begin(cls, entry: Tensor, dim: int, atoms: Tensor) -> Region:
        """Before anything is moved."""
        lines = (laid_along(torch.arange(n), d, entry.ndim) for d, n in enumerate(entry.shape))
        return cls(entry, dim, atoms, tuple(map(Layer.uniform, lines)))

    def holds(self, layer: Layer) -> bool:
        """Whether a layer speaks of the dimension that was split."""
        first = int(layer.labels.reshape(-1)[0])
        return int(self.atoms[0]) <= first <= int(self.atoms[-1])

    def ends_in(self, out: Tensor) -> bool:
        """Whether ``out``, where the coordinates are, has the entry's dimensions, all in place but the split one."""
        return out.ndim == self.entry.ndim and all(
            coordinate.dims == (dim,) if dim == self.dim else self._in_place(out, dim)
            for dim, coordinate in enumerate(self.coordinates)
        )

    def _in_place(self, out: Tensor, dim: int) -> bool:
        size, line = out.size(dim), self.coordinates[dim].labels.reshape(-1)
        return size == self.entry.size(dim) and (size <= 1 or torch.equal(line, torch.arange(size)))


def varying(labels: Tensor) -> tuple[int, ...]:
    """The dimensions of size greater than 1: in compressed labels, those along which they vary."""
    return tuple(dim for dim, size in enumerate(labels.shape) if size > 1)


def laid_along(line: Tensor, dim: int, ndim: int) -> Tensor:
    """A line of labels or removed values along one of ``ndim`` dimensions, of size 1 along the others."""
    return line.reshape([-1 if d == dim else 1 for d in range(ndim)])


def zero_stays(removed: Tensor) -> Tensor:
    """What elements are worth after an op of which only is known that it maps zeros to zero."""
    return torch.where(removed == 0, ZERO, UNKNOWN)


def worth_along(removed: Tensor, dims: Collection[int]) -> Tensor:
    """What elements are worth along some dimensions, as far as that is the same along all others."""
    for dim, size in enumerate(removed.shape):
        if size > 1 and dim not in dims:
            first = removed.narrow(dim, 0, 1)
            removed = torch.where((removed == first).all(dim, keepdim=True), first, UNKNOWN)
    return removed


def align(tensor: Tensor, ndim: int) -> Tensor:
    """Put dimensions of size 1 in front until ``tensor`` has ``ndim`` dimensions, as broadcasting does."""
    missing = ndim - tensor.ndim
    return tensor[(None,) * missing] if missing else tensor


def compress(tensor: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """Shrink to size 1 every dimension (of ``dims``) along which the tensor does not vary."""
    for dim in range(tensor.ndim) if dims is None else dims:
        size = tensor.size(dim)
        if size == tensor.stride(dim) == 0:  # of no rows, each of which would be like all
            sizes = [1 if one == dim else n for one, n in enumerate(tensor.shape)]
            tensor = tensor.as_strided(sizes, tensor.stride())
        if size < 2:
            continue
        first = tensor.narrow(dim, 0, 1)
        if tensor.stride(dim) == 0 or _same(first.expand_as(tensor), tensor):
            tensor = first
    return tensor


def _same(left: Tensor, right: Tensor) -> bool:
    if left.is_floating_point():
        return bool(((left == right) | (left.isnan() & right.isnan())).all())
    return torch.equal(left, right)


def reshape(tensor: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Reshape compressed labels of a value of shape ``old`` to those of its reshape to ``new``.

    The two shapes are cut into the shortest runs of equal product; only runs in which the labels vary
    are expanded, so that labels stay as small as they were.
    """
    middle, result, touched = [], [], []
    for left, right in runs(old, new):
        varies = any(tensor.size(dim) > 1 for dim in left)
        middle += [old[dim] if varies else 1 for dim in left]
        result += [new[dim] if varies else 1 for dim in right]
        touched += list(right) if varies and (len(left), len(right)) != (1, 1) else []
    return compress(tensor.expand(middle).reshape(result), touched)


def runs(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Cut two shapes of equal product into the shortest runs of dimensions of equal product."""
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        left = right = 1
        while True:
            if left < right or (left == right and i == start_i and i < len(old)):
                left, i = left * old[i], i + 1
            elif right < left or (j == start_j and j < len(new)):
                right, j = right * new[j], j + 1
            else:
                break
        found.append((range(start_i, i), range(start_j, j)))
    return found
