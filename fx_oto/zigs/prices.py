"""What removing ZIGs saves: parameters and multiply-adds of the compact model, by the number removed of each family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Price", "Quantity"]


class Quantity(Protocol):
    """Something of a model that shrinks as ZIGs are removed."""

    @property
    def total(self) -> float:
        """What the full model has of it."""
        ...

    def left(self, removed: Tensor) -> float:
        """What is left once ``removed[i]`` ZIGs of family i are gone; int64, shape ``(families,)``."""
        ...


@dataclass(frozen=True, eq=False)
class Price:
    """A sum of products of axis lengths, each of which shrinks with the number of ZIGs removed.

    An item is a parameter or a contraction: its cost is a constant times the length of each of its axes, so what one
    ZIG saves depends on what else is removed: of a weight ``(8, 6)`` with 4 rows and 3 columns left, 12 elements are.

    Attributes:
        units: the constant of each item: float64, shape ``(items,)``.
        lengths: of the axes of each item in the full model, 1 where there is none; float64, shape ``(items, axes)``.
        cells: axes in which a family has a part, numbered ``item · axes + axis``: int64, shape ``(entries,)``.
        families: the families: int64, shape ``(entries,)``.
        counts: indices of the axis that go with one of its ZIGs: float, shape ``(entries,)``.
        sizes: ZIGs of each family: int64, shape ``(families,)``.
        summed: cells of axes that are summed over, where an item costs nothing once a single index is left: torch only
            multiplies then, as ``einsum`` does; int64, shape ``(n,)``.
        depth: given the families of which nothing is left, which fraction of each item still is, for whole branches go
            with them, and what no output depends on goes anyway; shape ``(items,)``. None: all is kept.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> macs = fx_oto.partition(gm).macs
        >>> macs.total, macs.left(torch.tensor([4]))  # four of the eight ZIGs removed
        (96.0, 48.0)
    """

    units: Tensor
    lengths: Tensor
    cells: Tensor
    families: Tensor
    counts: Tensor
    sizes: Tensor
    summed: Tensor
    depth: Callable[[frozenset[int]], Tensor] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        amounts: Sequence[float],
        parts: Sequence[tuple[int, int, Tensor]],
        sizes: Tensor,
        summed: Sequence[tuple[int, int]] = (),
    ) -> Price:
        """Count the families' parts in the axes.

        Args:
            amounts: cost of each item in the full model.
            parts: item, axis of the item, and the family of each index along it, −1 where it is kept whole.
            sizes: ZIGs of each family, shape ``(families,)``.
            summed: item and axis where it costs nothing once a single index of the axis is left.
        """
        # Items are padded to the same number of axes, so that the axis k of item i is the cell i · axes + k of one
        # matrix. A bias (8,) and a weight (8, 6) of 8 and 6 ZIGs: lengths ((8, 1), (8, 6)), cells 0, 2 and 3.
        axes = max((axis for _, axis, _ in parts), default=0) + 1
        number = torch.tensor([item * axes + axis for item, axis, _ in parts], dtype=torch.int64)
        length = torch.tensor([len(along) for *_, along in parts], dtype=torch.int64)
        lengths = torch.ones(len(amounts) * axes, dtype=torch.float64)
        lengths[number] = length.double()
        lengths = lengths.view(-1, axes)
        # An entry for each family in each cell. A concatenation of two families of 8 ZIGs, where each ZIG of the second
        # has 2 indices, is an axis of 24. Counted are the pairs of cell and family, each one number: one occurs 8
        # times, the other 16, so 1 index and 2 indices go with one ZIG.
        family = torch.cat([torch.zeros(0, dtype=torch.int64), *(along for *_, along in parts)])
        count = max(len(sizes), 1)
        keys = number.repeat_interleave(length) * count + family
        keys, occurrences = keys[family >= 0].unique(return_counts=True)
        families = keys % count
        units = (torch.tensor(amounts, dtype=torch.float64) / lengths.prod(1)).nan_to_num()  # what has no elements
        counts = occurrences / sizes[families]
        single = torch.tensor([item * axes + axis for item, axis in summed], dtype=torch.int64)
        return cls(units, lengths, keys // count, families, counts, sizes, single)

    @property
    def total(self) -> float:
        """What the full model has."""
        return float((self.units * self.lengths.prod(1)).sum())

    @property
    def marginal(self) -> Tensor:
        """What one ZIG of each family costs while all others are there, to first order; shape ``(families,)``."""
        amounts = self.units * self.lengths.prod(1)
        cost = amounts[self.cells // self.lengths.size(1)] * self.counts / self.lengths.view(-1)[self.cells]
        return torch.zeros(len(self.sizes), dtype=torch.float64).index_add_(0, self.families, cost)

    def left(self, removed: Tensor) -> float:
        """What is left once ``removed[i]`` ZIGs of family i are gone; shape ``(families,)``."""
        whole = frozenset((removed >= self.sizes).nonzero().flatten().tolist())
        if self.depth is not None:  # what does not go with a branch keeps one of its ZIGs
            removed = torch.minimum(removed, self.sizes - 1)
        gone = (self.counts * removed[self.families]).double()
        kept = self.lengths.reshape(-1).index_add(0, self.cells, gone, alpha=-1)
        costs = self.units * kept.view_as(self.lengths).prod(1)
        costs[self.summed[kept[self.summed] == 1] // self.lengths.size(1)] = 0
        if self.depth is not None and (whole or removed.any()):
            costs = costs * self.depth(whole)
        return float(costs.sum())
