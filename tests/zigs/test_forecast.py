"""What would be left is told before any training, and is what is left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fx_oto


@pytest.fixture
def gm():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 5))
    return fx_oto.prepare(net, torch.randn(2, 3, 8, 8))


def test_it_is_what_is_left(gm):
    zigs = fx_oto.partition(gm)
    rows = {fraction: (params, macs) for fraction, params, macs in zigs.forecast()}
    assert list(rows) == [0.25, 0.5, 0.75, 0.9]
    zigs.zero_(0.5)
    left = fx_oto.cost(fx_oto.compress(gm), torch.randn(2, 3, 8, 8))
    assert rows[0.5] == (left.params, left.macs)
    assert [row[0] for row in zigs.forecast(0, 1)] == [0, 1]
    full = fx_oto.cost(gm, torch.randn(2, 3, 8, 8))
    assert zigs.forecast(0).rows == ((0, full.params, full.macs),)


def test_nothing_is_foretold_where_nothing_can_go():
    found = fx_oto.partition(fx_oto.prepare(nn.Linear(4, 2), torch.randn(2, 4))).forecast()
    assert (found.rows, str(found)) == ((), "")


def test_a_fraction_is_a_fraction(gm):
    with pytest.raises(fx_oto.SettingsError, match=r"fraction must be a number in \[0, 1\], found 50"):
        fx_oto.partition(gm).forecast(50)
