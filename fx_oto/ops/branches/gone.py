"""Which values and parameters belong to ZIGs that are gone, of a graph as it was analysed or of its compact one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from fx_oto.analysis.dependencies import Dependencies
from fx_oto.analysis.labels import Layer
from fx_oto.ops.values import ANALYSED

__all__ = ["Gone"]


class Gone:
    """The classes of atoms of which nothing is left.

    Args:
        found: the dependencies.
        classes: root atoms of families of which every ZIG is gone: int64, shape ``(n,)``.
        compact: whether it is about the compact graph, whose nodes know which of the analysed graph they stand for.
    """

    def __init__(self, found: Dependencies, classes: Sequence[Tensor], compact: bool = False) -> None:
        self._found, self._compact = found, compact
        mask = torch.zeros(len(found.roots), dtype=torch.bool)
        for one in classes:
            mask[one] = True
        self._atoms = mask[found.roots]
        self._axes = {(axis.tensor, axis.dim): axis for axis in found.axes}
        self._known: dict[int, bool] = {}

    def is_zero(self, node: Node) -> bool:
        """Whether a node returns one tensor, and all of it belongs to what is gone and is worth zero."""
        name = node.meta.get(ANALYSED) if self._compact else node.name
        layers = self._found.values.get(name, ()) if name is not None else ()
        return len(layers) == 1 and any(map(self._is_gone, layers[0]))

    def _is_gone(self, layer: Layer) -> bool:
        key = id(layer.labels)
        if key not in self._known:
            self._known[key] = bool(self._atoms[layer.labels].all())
        return self._known[key] and bool((layer.removed == 0).all())

    def holds(self, tensor: str, dim: int) -> bool:
        """Whether every index of an axis of a parameter belongs to what is gone."""
        axis = self._axes.get((tensor, dim))
        return axis is not None and bool(self._atoms[axis.start : axis.start + axis.size].all())
