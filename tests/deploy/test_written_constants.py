"""Tensors that code makes in each call, past torch's functions, and that lose channels: written back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fx_oto


class Scaled(nn.Module):
    """A layer whose channels are multiplied by numbers that numpy makes."""

    def __init__(self, table):
        super().__init__()
        self.layer, self.width, self.table = nn.Linear(4, 8), 8, table

    def forward(self, x):
        return self.layer(x) * torch.from_numpy(self.table(self.width)).to(x)


class Transform(nn.Module):
    """PointNet's: a matrix for each example, the identity if its layer is zero."""

    def __init__(self, width=8):
        super().__init__()
        self.layer, self.width = nn.Linear(4, width * width), width

    def forward(self, x):
        ones = torch.from_numpy(np.eye(self.width).flatten().astype(np.float32)).view(1, self.width * self.width)
        return (self.layer(x) + ones.repeat(x.size(0), 1).to(x)).view(-1, self.width, self.width)


class PointNet(nn.Module):
    """Points between two of these."""

    def __init__(self):
        super().__init__()
        self.near, self.far = Transform(4), Transform(8)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.bmm(x, self.near(x.mean(1)))
        return self.last(torch.bmm(self.first(x).relu(), self.far(x.mean(1))).amax(1))


TABLES = {
    "growing": lambda width: np.linspace(1, 2, width),
    "ones": np.ones,
    "of floats": lambda width: np.array([float(i + 1) for i in range(width)]),
}


@pytest.mark.parametrize("name", TABLES)
def test_numbers_of_the_channels_that_are_left_are_written_back(name):
    model = nn.Sequential(nn.Linear(4, 4), Scaled(TABLES[name]), nn.ReLU(), nn.Linear(8, 3)).double()
    _is_written_back(model, torch.randn(2, 4).double(), [torch.randn(5, 4).double()])


def test_pointnet_is_written_back():
    _is_written_back(PointNet().double(), torch.randn(2, 6, 4).double(), [torch.randn(3, 9, 4).double()])


def _is_written_back(model, x, others):
    gm = fx_oto.prepare(model, x)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm)
    new = fx_oto.write_back(small, model)
    assert type(new) is type(model)
    assert sum(p.numel() for p in new.parameters()) < sum(p.numel() for p in model.parameters())
    for inputs in (x, *others):
        torch.testing.assert_close(new(inputs), model(inputs))
