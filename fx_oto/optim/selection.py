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
        limits: how many of each family may go, in what portions, and which keep the same fraction: of those, the same
            goes at once. The score of a portion is its mean.
        target: what is counted.
        left: fraction of it to be left; where the limits forbid, as little as they allow is left.
        gone: for each family, positions of the ZIGs that go in any case.

    Returns:
        For each family the positions chosen, ascending: int64.
    """
    settled = [len(one) for one in gone] if gone else [0] * len(scores)
    ranked = [_ranked(score, gone[i] if gone else None) for i, score in enumerate(scores)]
    keys, unit_of, sizes, forced = [], [], [], 0
    parts = limits.parts or [1] * len(scores)
    for number, unit in enumerate(limits.units):
        least, first = max(math.ceil(settled[i] / parts[i]) for i in unit), unit[0]
        of_first = portions(len(scores[first]), limits.most[first], limits.steps[first])
        for start, end in pairwise(count // parts[first] for count in of_first):
            mean = torch.stack([ranked[i].values[start * parts[i] : end * parts[i]].mean() for i in unit]).mean()
            keys.append(math.inf if start < least else float(mean))
            unit_of.append(number)
            sizes.append(end - start)
            forced += start < least
    best = torch.argsort(torch.tensor(keys, dtype=torch.float64), descending=True, stable=True)
    portion_of, size = torch.tensor(unit_of, dtype=torch.int64)[best], torch.tensor(sizes, dtype=torch.int64)[best]
    places = {i: number for number, unit in enumerate(limits.units) for i in unit}
    unit_of_family = torch.tensor([places[i] for i in range(len(scores))], dtype=torch.int64)
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


def _ranked(scores: Tensor, gone: Tensor | None) -> torch.return_types.sort:
    """Scores in descending order, and whose they are; those that are gone come first."""
    score = scores.detach().double().cpu().nan_to_num().clone()
    if gone is not None:
        score[gone] = math.inf
    return torch.sort(score, descending=True, stable=True)
