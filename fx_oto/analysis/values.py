"""Tensors that share memory: a write into one changes the others, whose layers were recorded before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fx_oto.analysis.labels import Layer

__all__ = ["Aliases", "storage_of"]


class Aliases:
    """Which tensors no longer hold what their layers say, because they were written through another one."""

    def __init__(self) -> None:
        self._sharing: dict[int, list[Tensor]] = {}
        self._outdated: dict[int, Tensor] = {}

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Remember what memory these tensors are in."""
        for tensor in tensors:
            self._sharing.setdefault(storage_of(tensor), []).append(tensor)

    def write(self, target: Tensor, before: Sequence[Layer], after: Sequence[Layer]) -> None:
        """A call has written into ``target``, whose layers were others before it."""
        if len(after) == len(before) and all(map(_equivalent, before, after)):
            return
        others = (other for other in self._sharing.get(storage_of(target), ()) if other is not target)
        self._outdated.update((id(other), target) for other in others)

    def written_through(self, value: object) -> Tensor | None:
        """The tensor through which a value was changed after its layers were recorded, None if there is none."""
        return self._outdated.get(id(value))


def storage_of(tensor: Tensor) -> int:
    """A key for the memory that a tensor is in, the same for all its views."""
    return int(tensor.untyped_storage()._cdata)


def _equivalent(left: Layer, right: Layer) -> bool:
    return left.labels is right.labels and (left.removed is right.removed or torch.equal(left.removed, right.removed))
