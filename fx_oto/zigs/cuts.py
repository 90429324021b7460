"""What is left of every axis and of every value, once the ZIGs that are gone are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fx_oto.analysis.dependencies import Dependencies, Work
from fx_oto.analysis.labels import Layer, compress, varying
from fx_oto.core.errors import SlicingError

__all__ = ["Cuts"]


@dataclass(frozen=True, eq=False)
class Cuts:
    """The indices that are kept, derived from which classes of atoms are.

    Attributes:
        found: the dependencies.
        keep: for each atom whether it is kept, shape ``(atoms,)``; atom 0 always is.
    """

    found: Dependencies
    keep: Tensor
    _known: dict[str, list[dict[int, Tensor] | None]] = field(default_factory=dict, init=False, repr=False)
    _along: dict[int, tuple[int | None, Tensor | None]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def axes(self) -> dict[tuple[str, int], Tensor]:
        """Kept indices of each parameter axis that loses some, by tensor name and dimension.

        Raises:
            SlicingError: nothing of an axis would be left.
        """
        cut = {}
        for axis in self.found.axes:
            kept = self.keep[axis.start : axis.start + axis.size]
            if not kept.all():
                if not kept.any():
                    raise SlicingError(
                        f"every index of {axis} is zero, so nothing of it would be left and the network would be cut "
                        "in two: keep at least one ZIG that it belongs to (a smaller target, or a minimum per family)"
                    )
                cut[axis.tensor, axis.dim] = kept.nonzero().reshape(-1)
        return cut

    def of_value(self, node: str) -> list[dict[int, Tensor] | None]:
        """For each tensor in a node's value: kept indices by dimension, or None if no rectangle is left."""
        if node not in self._known:
            self._known[node] = [self._of_layers(layers) for layers in self.found.values.get(node, ())]
        return self._known[node]

    def of_tensor(self, node: str) -> dict[int, Tensor]:
        """The same for a node whose value is one tensor; nothing is cut from any other."""
        cuts = self.of_value(node)
        return cuts[0] or {} if len(cuts) == 1 else {}

    def _of_layers(self, layers: Sequence[Layer]) -> dict[int, Tensor] | None:
        cut: dict[int, Tensor] = {}
        for layer in layers:
            dim, index = self._of_labels_once(layer.labels)
            if dim is None:
                return None
            if index is not None:  # of rows and columns that lie in one row, what is left of both
                cut[dim] = index[torch.isin(index, cut[dim])] if dim in cut else index
        return cut

    def _of_labels_once(self, labels: Tensor) -> tuple[int | None, Tensor | None]:
        """As ``_of_labels``: most values have the labels of the value before."""
        if id(labels) not in self._along:
            self._along[id(labels)] = self._of_labels(labels)
        return self._along[id(labels)]

    def _of_labels(self, labels: Tensor) -> tuple[int | None, Tensor | None]:
        """The dimension that is cut, None if no rectangle is left, and what is kept of it, None if all is."""
        kept = self.keep[labels]
        if kept.all():
            return 0, None
        kept = compress(kept)
        dims = varying(kept)
        return (dims[0], kept.reshape(-1).nonzero().reshape(-1)) if len(dims) == 1 else (None, None)

    @cached_property
    def saved_macs(self) -> int:
        """Multiply-adds that are saved: each contraction runs over what is left of each of its axes."""
        return sum(map(self._saved, self.found.works))

    def macs_left(self, node: str) -> int:
        """Multiply-adds that are left of what a node makes."""
        return sum(work.macs - self._saved(work) for work in self.found.works if work.node == node)

    def _saved(self, work: Work) -> int:
        if work.summed is not None:
            labels, _ = work.operands[work.summed]
            left, full = self._lengths(labels, (labels.ndim - 1,))
            if left == 1 < full:
                return work.macs
        lengths = [self._lengths(*operand) for operand in work.operands]
        return work.macs - work.macs * math.prod(left for left, _ in lengths) // math.prod(n for _, n in lengths)

    def _lengths(self, labels: Tensor, dims: tuple[int, ...]) -> tuple[int, int]:
        """How much is left of the one of these dimensions that is cut, and how long it was; 1 of 1 if none is."""
        dim, index = self._of_labels_once(labels)
        return (1, 1) if index is None or dim not in dims else (len(index), labels.size(dim))

    def apply(self, tensor: Tensor, cut: dict[int, Tensor]) -> Tensor:
        """Select the kept indices of a tensor."""
        for dim, index in cut.items():
            tensor = tensor.index_select(dim, index.to(tensor.device))
        return tensor

    def kept_labels(self, labels: Tensor) -> Tensor:
        """Whether each of these atoms is kept."""
        return self.keep[labels]
