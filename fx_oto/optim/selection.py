"""Which ZIGs go: the most redundant, as few as meet the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fx_oto.optim.limits import Limits, portions
from fx_oto.optim.targets import Target

__all__ = ["select"]


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
    orders, keys, family_of, sizes, forced = [], [], [], [], 0
    for i, given in enumerate(scores):
        score = given.detach().double().cpu().nan_to_num().clone()
        settled = len(gone[i]) if gone else 0
        if settled:
            score[gone[i]] = math.inf
        orders.append(torch.argsort(score, descending=True, stable=True))
        for start, end in pairwise(portions(len(score), limits.most[i], limits.steps[i])):
            keys.append(math.inf if start < settled else float(score[orders[i][start:end]].mean()))
            family_of.append(i)
            sizes.append(end - start)
            forced += start < settled
    best = torch.argsort(torch.tensor(keys, dtype=torch.float64), descending=True, stable=True)
    family, size = torch.tensor(family_of, dtype=torch.int64)[best], torch.tensor(sizes, dtype=torch.int64)[best]

    def removed(count: int) -> Tensor:
        """How many ZIGs of each family the best ``count`` portions hold."""
        counts = torch.zeros(len(scores), dtype=torch.int64)
        return counts.index_add_(0, family[:count], size[:count])

    low, high = forced, len(keys)
    while low < high:
        middle = (low + high) // 2
        if target.fraction(removed(middle)) <= left + 1e-12:
            high = middle
        else:
            low = middle + 1
    return [order[:count].sort().values for order, count in zip(orders, removed(low).tolist(), strict=True)]
