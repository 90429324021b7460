"""Which ZIGs go: limits for each family, the target, and the choice between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fx_oto.errors import SettingsError
from fx_oto.prices import Quantity
from fx_oto.zigs import Family

__all__ = ["Limits", "Target", "select"]

PerFamily = float | Mapping[str, float]


@dataclass(frozen=True)
class Target:
    """How much of a quantity of the full model is to be left.

    Attributes:
        name: what is counted: ``"group sparsity"``, ``"params"``, ``"macs"`` or ``"latency"``.
        left: fraction to be left, in (0, 1).
        quantity: what counts it.
    """

    name: str
    left: float
    quantity: Quantity

    @property
    def uniform(self) -> float:
        """The fraction of its width that each family would keep if all kept the same: costs are products of widths."""
        return self.left if self.name == "group sparsity" else math.sqrt(self.left)

    def part_way(self, fraction: float) -> float:
        """The fraction to be left when this fraction of the way is done."""
        return 1 - fraction * (1 - self.left)

    def fraction(self, removed: Tensor) -> float:
        """The fraction that is left once ``removed[i]`` ZIGs of family i are gone."""
        return self.quantity.left(removed) / self.quantity.total

    def describe(self, left: float) -> str:
        """A fraction left, in the words of the target."""
        return f"{self.name} {1 - left:.4f}" if self.name == "group sparsity" else f"{self.name} left {left:.4f}"


@dataclass(frozen=True)
class Limits:
    """How many ZIGs of each family may go, and in what portions.

    Attributes:
        most: the largest number that may go, for each family.
        steps: channels are kept in multiples of this many ZIGs, for each family.
    """

    most: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    def of(
        cls,
        families: Sequence[Family],
        left_alone: Sequence[bool],
        min_kept: PerFamily,
        max_group_sparsity: PerFamily,
        round_to: int,
    ) -> Limits:
        """Read a user's limits.

        Args:
            families: the partition's families.
            left_alone: for each family, whether nothing is taken from it.
            min_kept: number (int) or fraction (float) of ZIGs to keep, of all families or by glob of their tensors'
                or modules' names.
            max_group_sparsity: largest fraction of a family that may go, of all or by glob.
            round_to: the channels left are a multiple of this number, or all.

        Raises:
            SettingsError: a limit is out of range, or a glob matches no family.
        """
        if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
            raise SettingsError(f"round_to must be a positive integer, found {round_to!r}")
        kept = _per_family("min_kept", min_kept, families, 0.0)
        caps = _per_family("max_group_sparsity", max_group_sparsity, families, 1.0)
        most, steps = [], []
        for family, alone, least, cap in zip(families, left_alone, kept, caps, strict=True):
            step = _step(family, round_to)
            limit = 0 if alone else _most(len(family), least, cap)
            most.append(_portions(len(family), limit, step)[-1])
            steps.append(step)
        return cls(tuple(most), tuple(steps))


def _most(size: int, least: float, cap: float) -> int:
    if isinstance(least, bool) or least < 0 or (isinstance(least, float) and least >= 1):
        raise SettingsError(f"min_kept must be a count (int) or a fraction in [0, 1) (float), found {least!r}")
    if not 0 <= cap <= 1:
        raise SettingsError(f"max_group_sparsity must be in [0, 1], found {cap!r}")
    kept = math.ceil(least * size) if isinstance(least, float) else least
    return max(0, min(size - max(1, kept), math.floor(cap * size + 1e-9)))


def _per_family(name: str, given: PerFamily, families: Sequence[Family], default: float) -> list[float]:
    if not isinstance(given, Mapping):
        return [given] * len(families)
    for pattern in given:
        if not any(family.matches(pattern) for family in families):
            raise SettingsError(
                f"the pattern {pattern!r} in {name} matches no family; families are called "
                + ", ".join(repr(family.name) for family in families[:3])
            )
    hits = ([value for pattern, value in given.items() if family.matches(pattern)] for family in families)
    return [values[0] if values else default for values in hits]


def _step(family: Family, round_to: int) -> int:
    """The least number of ZIGs whose channels are a multiple of ``round_to`` in every slot that makes channels."""
    return math.lcm(*(round_to // math.gcd(round_to, slot.index.shape[1]) for slot in family.variables))


def _portions(size: int, limit: int, step: int) -> list[int]:
    """The numbers of ZIGs that may be gone: the rest is a multiple of ``step``."""
    return [0, *(gone for gone in range(size % step or step, limit + 1, step))]


def select(
    scores: Sequence[Tensor], limits: Limits, target: Target, left: float, gone: Sequence[Tensor] = ()
) -> list[Tensor]:
    """Choose the most redundant ZIGs: the fewest, in the order of their scores, by which the target is met.

    Args:
        scores: for each family, larger = more redundant, shape ``(zigs,)``.
        limits: how many of each family may go, and in what portions; a portion's score is its mean.
        target: what is counted.
        left: fraction of it to be left; where the limits forbid, as little as they allow is left.
        gone: for each family, positions of the ZIGs that go in any case.

    Returns:
        For each family the positions chosen, ascending: int64.
    """
    orders, keys, family_of, sizes = [], [], [], []
    for i, given in enumerate(scores):
        score = given.detach().double().cpu().clone()
        if len(gone):
            score[gone[i]] = math.inf
        orders.append(torch.argsort(score, descending=True, stable=True))
        bounds = _portions(len(score), limits.most[i], limits.steps[i])
        for start, end in pairwise(bounds):
            keys.append(float(score[orders[i][start:end]].mean()))
            family_of.append(i)
            sizes.append(end - start)
    best = torch.argsort(torch.tensor(keys, dtype=torch.float64), descending=True, stable=True)
    family, size = torch.tensor(family_of, dtype=torch.int64)[best], torch.tensor(sizes, dtype=torch.int64)[best]

    def removed(portions: int) -> Tensor:
        counts = torch.zeros(len(scores), dtype=torch.int64)
        return counts.index_add_(0, family[:portions], size[:portions])

    low, high = sum(math.isinf(key) for key in keys), len(keys)
    while low < high:
        middle = (low + high) // 2
        if target.fraction(removed(middle)) <= left + 1e-12:
            high = middle
        else:
            low = middle + 1
    return [order[:count].sort().values for order, count in zip(orders, removed(low).tolist(), strict=True)]
