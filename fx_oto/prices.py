"""What removing ZIGs saves: parameters and multiply-adds of the compact model, by the number removed of each family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """A sum of products of axis lengths, each of which is linear in the number of ZIGs removed.

    An item is a parameter or a contraction. What is left of it is its amount times, for each of its axes,
    the fraction of the axis that is left; so what one ZIG saves depends on what else is removed.

    Attributes:
        amounts: of each item, in the full model: float64, shape ``(items,)``.
        cells: number of an axis of an item, ``item · axes + axis``, shape ``(entries,)``.
        families: family with a part in that axis, shape ``(entries,)``.
        shares: fraction of the axis that goes with one of its ZIGs, shape ``(entries,)``.
        axes: most axes of an item.
        count: number of families.
    """

    amounts: Tensor
    cells: Tensor
    families: Tensor
    shares: Tensor
    axes: int
    count: int

    @classmethod
    def of(cls, amounts: Sequence[float], parts: Sequence[tuple[int, int, Tensor]], sizes: Tensor) -> Price:
        """Count the families' parts in the axes.

        Args:
            amounts: of each item.
            parts: item, axis of the item, and the family of each index along it, −1 where it is kept whole.
            sizes: ZIGs of each family, shape ``(families,)``.
        """
        axes = max((axis for _, axis, _ in parts), default=0) + 1
        price = torch.tensor(amounts, dtype=torch.float64)
        if not parts:
            none = torch.zeros(0, dtype=torch.int64)
            return cls(price, none, none, none.double(), axes, len(sizes))
        lengths = torch.tensor([len(along) for *_, along in parts])
        cell = torch.tensor([item * axes + axis for item, axis, _ in parts]).repeat_interleave(lengths)
        length = lengths.repeat_interleave(lengths)
        family = torch.cat([along for *_, along in parts])
        mine = family >= 0
        both, first, counts = _counted(cell[mine] * len(sizes) + family[mine], length[mine])
        family = both % max(len(sizes), 1)
        return cls(price, both // max(len(sizes), 1), family, counts / (first * sizes[family]), axes, len(sizes))

    @property
    def total(self) -> float:
        """What the full model has."""
        return float(self.amounts.sum())

    @property
    def marginal(self) -> Tensor:
        """What one ZIG of each family costs while all others are there, to first order; shape ``(families,)``."""
        cost = self.amounts[self.cells // self.axes] * self.shares
        return torch.zeros(self.count, dtype=torch.float64).index_add_(0, self.families, cost)

    def left(self, removed: Tensor) -> float:
        """What is left once ``removed[i]`` ZIGs of family i are gone; shape ``(families,)``."""
        fractions = torch.ones(len(self.amounts) * self.axes, dtype=torch.float64)
        fractions.index_add_(0, self.cells, -self.shares * removed[self.families])
        return float((self.amounts * fractions.view(-1, self.axes).prod(1)).sum())


def _counted(keys: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct keys, the length that goes with each, and how often it occurs."""
    distinct, place, counts = keys.unique(return_inverse=True, return_counts=True)
    length = torch.zeros(len(distinct), dtype=lengths.dtype).scatter_(0, place, lengths)
    return distinct, length, counts.double()
