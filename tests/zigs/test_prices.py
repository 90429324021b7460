"""What ZIGs cost, counted by hand, and how tables show it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fx_oto
from fx_oto.zigs.prices import Price


def along(*families):
    """The family of each index of an axis, from pairs of family and how many of its indices follow."""
    return torch.cat([torch.full((count,), family) for family, count in families])


@pytest.fixture
def price():
    """A bias (8,), a weight (8, 6), and one (2, 24) over a concatenation, of 8, 6 and 8 ZIGs."""
    parts = [
        (0, 0, along((0, 8))),
        (1, 0, along((0, 8))),
        (1, 1, along((1, 6))),
        (2, 0, along((-1, 2))),
        (2, 1, along((0, 8), (2, 16))),
    ]
    return Price.of([8, 48, 48], parts, torch.tensor([8, 6, 8]))


@pytest.mark.parametrize(
    ("removed", "left"),
    [([0, 0, 0], 8 + 48 + 48), ([4, 0, 0], 4 + 24 + 40), ([4, 3, 0], 4 + 12 + 40), ([7, 5, 7], 1 + 1 + 2 * 3)],
)
def test_what_is_left_is_the_product_of_what_is_left_of_each_axis(price, removed, left):
    assert price.left(torch.tensor(removed)) == left


def test_one_zig_costs_what_lies_at_its_indices(price):
    assert price.total == 104
    assert price.marginal.tolist() == [1 + 6 + 2, 8, 4]


@pytest.mark.parametrize(("removed", "left"), [(0, 60), (1, 40), (2, 0)])
def test_a_sum_over_a_single_index_costs_nothing(removed, left):
    """Of two contractions over 3 and over 5 indices, the first is a product once one of its three is left."""
    parts = [(0, 1, along((0, 3))), (1, 0, along((-1, 5)))]
    price = Price.of([60, 50], parts, torch.tensor([3]), summed=[(0, 1)])
    assert price.left(torch.tensor([removed])) == left + 50


def test_nothing_costs_nothing():
    price = Price.of([], [], torch.zeros(0, dtype=torch.int64))
    assert (price.total, price.left(torch.zeros(0, dtype=torch.int64)), price.marginal.tolist()) == (0, 0, [])


def test_tables_group_thousands_and_show_multiply_adds_as_the_report_does():
    net = nn.Sequential(nn.Linear(2000, 1500), nn.ReLU(), nn.Linear(1500, 2))
    zigs = fx_oto.partition(fx_oto.prepare(net, torch.randn(64, 2000)))
    row = str(zigs).splitlines()[4].split()
    assert row[:4] == ["0.weight", "1,500", "2,003", "2,002"]  # multiply-adds of one sample
    assert zigs.frozen[0].size == 2000
    assert "  2,000  " in str(zigs).partition("kept whole")[2]
    assert zigs.explain("0.weight").axes[0].cells[2] == "2,000"
