"""Which ZIGs are chosen, compared with trying one portion more at a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fx_oto.optim.limits import Limits, portions
from fx_oto.optim.selection import ranked, select
from fx_oto.optim.targets import Target


class Count:
    """A quantity that is a weighted count of what is left."""

    def __init__(self, sizes, weights):
        self.sizes, self.weights = sizes, weights
        self.total = self._count(sizes)

    def left(self, removed):
        return self._count(size - int(gone) for size, gone in zip(self.sizes, removed, strict=True))

    def _count(self, sizes):
        return sum(size * weight for size, weight in zip(sizes, self.weights, strict=True))


def by_score(scores, limits, target, left, gone=()):
    order = ranked(scores, gone)
    return select(order, [one.scores for one in order], limits, target, left)


def slowly(scores, limits, target, left, gone):
    """Every portion in the order of its mean score, one at a time, until the target is met."""
    orders, ranked = [], []
    for i, score in enumerate(scores):
        settled = set(gone[i].tolist())
        order = sorted(range(len(score)), key=lambda zig: (zig not in settled, -float(score[zig])))
        orders.append(order)
        for start, end in pairwise(portions(len(score), limits.most[i], limits.steps[i])):
            mean = sum(float(score[zig]) for zig in order[start:end]) / (end - start)
            ranked.append((start >= len(settled), -mean, i, end - start))
    removed = torch.zeros(len(scores), dtype=torch.int64)
    for free, _, i, size in sorted(ranked):
        if free and target.fraction(removed) <= left:
            break
        removed[i] += size
    return [sorted(order[:count]) for order, count in zip(orders, removed.tolist(), strict=True)]


@pytest.mark.parametrize("steps", [(1, 1, 1), (1, 4, 3)])
@pytest.mark.parametrize("most", [(12, 18, 5), (12, 2, 0)])
@pytest.mark.parametrize("settled", [0, 2])
def test_the_fewest_are_chosen_by_which_the_target_is_met(steps, most, settled):
    sizes, generator = (13, 20, 6), torch.Generator().manual_seed(0)
    target = Target("params", 0.5, Count(sizes, (7, 2, 11)))
    limits = Limits(tuple(portions(*of)[-1] for of in zip(sizes, most, steps, strict=True)), steps)
    for left in (0.95, 0.7, 0.4, 0.1, 0.0):
        scores = [torch.randn(size, generator=generator) for size in sizes]
        gone = [torch.arange(1, 1 + min(settled, cap)) for cap in limits.most]
        gone = [part if step == 1 else part[:0] for part, step in zip(gone, steps, strict=True)]
        chosen = [part.tolist() for part in by_score(scores, limits, target, left, gone)]
        assert chosen == slowly(scores, limits, target, left, gone)


def test_scores_that_are_equal_go_in_their_order():
    target, limits = Target("params", 0.5, Count((4, 4), (1, 1))), Limits((3, 3), (1, 1))
    chosen = by_score([torch.zeros(4), torch.zeros(4)], limits, target, 0.5)
    assert [part.tolist() for part in chosen] == [[0, 1, 2], [0]]


def test_a_target_that_is_met_by_a_hair_asks_for_no_more():
    target, limits = Target("params", 0.9, Count((10,), (0.1,))), Limits((9,), (1,))
    assert [len(by_score([torch.arange(10.0)], limits, target, 1 - gone / 10)[0]) for gone in range(10)] == [*range(10)]


def test_families_that_are_alike_lose_as_many():
    generator = torch.Generator().manual_seed(0)
    target = Target("params", 0.5, Count((12, 8, 12, 8, 5), (3, 1, 2, 4, 1)))
    limits = Limits((11, 7, 11, 7, 4), (1, 1, 1, 1, 1), ((0, 2), (1, 3)))
    for left in (0.9, 0.6, 0.3, 0.0):
        scores = [torch.randn(size, generator=generator) for size in (12, 8, 12, 8, 5)]
        gone = [part[:settled] for part, settled in zip(map(torch.argsort, scores), (2, 0, 0, 1, 1), strict=True)]
        chosen = by_score(scores, limits, target, left, gone)
        counts = [len(part) for part in chosen]
        assert counts[0] == counts[2] >= 2
        assert counts[1] == counts[3] >= 1
        assert all(set(settled.tolist()) <= set(part.tolist()) for settled, part in zip(gone, chosen, strict=True))
        assert target.fraction(torch.tensor(counts)) <= max(left, target.fraction(torch.tensor(limits.most)))


def test_of_families_that_are_alike_the_mean_of_equal_ranks_decides():
    target = Target("params", 0.9, Count((3, 3, 3), (1, 1, 1)))
    scores = [torch.tensor([0.0, 9.0, 1.0]), torch.tensor([2.0, 0.0, 1.0]), torch.tensor([5.0, 5.4, 5.6])]
    limits = Limits((2, 2, 2), (1, 1, 1), ((0, 1),))
    assert [part.tolist() for part in by_score(scores, limits, target, 8 / 9)] == [
        [],
        [],
        [2],
    ]  # 5.6 before (9 + 2) / 2
    assert [part.tolist() for part in by_score(scores, limits, target, 6 / 9)] == [[1], [0], [2]]
