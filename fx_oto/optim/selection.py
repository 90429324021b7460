"""Which ZIGs go: the first of each family, as few as meet the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fx_oto.optim.limits import Limits, portions
from fx_oto.optim.targets import Target

__all__ = ["Ranked", "ranked", "select"]


@dataclass(frozen=True, eq=False)
class Ranked:
    """The ZIGs of one family in the order in which they go.

    Attributes:
        scores: in descending order, infinite for those that go in any case; float64, shape ``(zigs,)``.
        indices: positions in the family; int64, shape ``(zigs,)``.
        gone: how many go in any case.
    """

    scores: Tensor
    indices: Tensor
    gone: int


def ranked(scores: Sequence[Tensor], gone: Sequence[Tensor] = ()) -> list[Ranked]:
    """Order the ZIGs of each family.

    Args:
        scores: for each family, larger = more redundant, shape ``(zigs,)``.
        gone: for each family, positions of the ZIGs that go in any case, and first.
    """
    found = []
    for i, family in enumerate(scores):
        score = family.detach().double().cpu().nan_to_num().clone()
        if gone:
            score[gone[i]] = math.inf
        order = torch.sort(score, descending=True, stable=True)
        found.append(Ranked(order.values, order.indices, len(gone[i]) if gone else 0))
    return found


def select(
    ranked: Sequence[Ranked], priorities: Sequence[Tensor], limits: Limits, target: Target, left: float
) -> list[Tensor]:
    """Choose the ZIGs that go: the fewest, by falling priority, by which the target is met.

    Args:
        ranked: for each family, its ZIGs in the order in which they go.
        priorities: for each family, how early its k-th ZIG goes, larger = earlier, shape ``(zigs,)``.
        limits: how many of each family may go, in what portions, and which keep the same fraction: of those, the same
            goes at once. The priority of a portion is the mean of its ZIGs'.
        target: what is counted.
        left: fraction of it to be left; where the limits forbid, as little as they allow is left.

    Returns:
        For each family the positions chosen, ascending: int64.
    """
    keys, unit_of, sizes, forced = [], [], [], 0
    parts = limits.parts or [1] * len(ranked)
    for number, unit in enumerate(limits.units):
        least, first = max(math.ceil(ranked[i].gone / parts[i]) for i in unit), unit[0]
        of_first = portions(len(ranked[first].scores), limits.most[first], limits.steps[first])
        for start, end in pairwise(count // parts[first] for count in of_first):
            mean = torch.stack([priorities[i][start * parts[i] : end * parts[i]].mean() for i in unit]).mean()
            keys.append(math.inf if start < least else float(mean))
            unit_of.append(number)
            sizes.append(end - start)
            forced += start < least
    best = torch.argsort(torch.tensor(keys, dtype=torch.float64), descending=True, stable=True)
    portion_of, size = torch.tensor(unit_of, dtype=torch.int64)[best], torch.tensor(sizes, dtype=torch.int64)[best]
    places = {i: number for number, unit in enumerate(limits.units) for i in unit}
    unit_of_family = torch.tensor([places[i] for i in range(len(ranked))], dtype=torch.int64)
    each = torch.tensor(parts, dtype=torch.int64)

    def removed(count: int) -> Tensor:
        """How many ZIGs of each family the best ``count`` portions hold."""
        counts = torch.zeros(len(limits.units), dtype=torch.int64)
        return counts.index_add_(0, portion_of[:count], size[:count])[unit_of_family] * each

    low, high = forced, len(keys)
    while low < high:
        middle = (low + high) // 2
        if target.fraction(removed(middle)) <= left + 1e-12:
            high = middle
        else:
            low = middle + 1
    return [one.indices[:count].sort().values for one, count in zip(ranked, removed(low).tolist(), strict=True)]
