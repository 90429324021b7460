"""Code that takes single examples beside batches: the graph refuses what it was not captured for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fx_oto


class Either(nn.Module):
    """Takes batches of sequences, or one sequence."""

    def __init__(self, is_one):
        super().__init__()
        self.first, self.last, self.is_one = nn.Linear(6, 16), nn.Linear(16, 4), is_one

    def forward(self, x):
        if alone := self.is_one(x):
            x = x.unsqueeze(0)
        h = self.first(x).relu()
        y = self.last(h + h.mean(1, keepdim=True))
        return y.squeeze(0) if alone else y


def by_dim(x):
    return x.dim() == 2


def by_ndim(x):
    return x.ndim < 3


def by_length_of_shape(x):
    return len(x.shape) == 2


def by_length_of_size(x):
    return len(x.size()) == 2


@pytest.mark.parametrize("asked", [by_dim, by_ndim, by_length_of_shape, by_length_of_size])
@pytest.mark.parametrize("example", [(5, 7, 6), (7, 6)], ids=str)
def test_another_number_of_dimensions_is_refused(asked, example):
    model = Either(asked).eval()
    gm = fx_oto.prepare(model, torch.randn(*example))
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm)
    for sizes in ((3, 4, 6), (4, 6)):
        x = torch.randn(*sizes)
        if len(sizes) == len(example):
            torch.testing.assert_close(small(x), model(x))
        else:
            with pytest.raises(AssertionError, match=f"had {len(example)} dimensions"):
                small(x)


class Layers(nn.Module):
    """Asks how many dimensions there are, but takes any."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x):
        if x.dim() == 0:
            raise ValueError("no vector")
        return self.last(self.first(x).relu())


def test_code_that_does_the_same_takes_any():
    model = Layers().eval()
    gm = fx_oto.prepare(model, torch.randn(2, 6))
    for sizes in ((6,), (3, 6), (2, 3, 6)):
        x = torch.randn(*sizes)
        torch.testing.assert_close(gm(x), model(x))
