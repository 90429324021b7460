"""Chains of movement through a grid: a dimension is split, its parts are moved, and it may be merged again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fx_oto.analysis.labels import Layer, laid_along

__all__ = ["Region"]


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
