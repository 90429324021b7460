"""Random numbers that code draws in training: the graph draws the same, and what they meet is pruned all the same."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fx_oto

DRAWS = {
    "normal_": lambda h: h + torch.empty_like(h).normal_(),
    "of old code": lambda h: h + h.data.new(h.size()).normal_().mul(0.1),
    "of older code": lambda h: h + torch.FloatTensor(*h.shape).normal_(),
    "uniform_": lambda h: h * torch.empty(h.shape[0], 1, h.shape[2]).uniform_(0, 1),
    "exponential_": lambda h: h - torch.empty_like(h).exponential_().log(),
    "log_normal_": lambda h: h * torch.empty_like(h).log_normal_(),
    "cauchy_": lambda h: h + torch.empty_like(h).cauchy_().clamp(-1, 1),
    "geometric_": lambda h: h * torch.empty_like(h).geometric_(0.5),
    "random_": lambda h: h * torch.empty_like(h).random_(0, 2),
    "bernoulli_": lambda h: h * torch.empty_like(h).bernoulli_(0.5),
    "bernoulli": lambda h: h * torch.bernoulli(torch.full_like(h, 0.5)),
    "poisson": lambda h: h + torch.poisson(h.relu()),
    "normal of tensors": lambda h: torch.normal(h, torch.ones_like(h)),
    "normal of a size": lambda h: h + torch.normal(0.0, 1.0, size=h.shape),
    "randint": lambda h: h + torch.randint(0, 3, h.shape),
    "gumbel_softmax": lambda h: h + F.gumbel_softmax(h, dim=1),
    "mixed examples": lambda h: 0.3 * h + 0.7 * h[torch.randperm(h.size(0))],
    "dropped channels": lambda h: h * (torch.rand(h.shape[-1]) > 0.5),
}


class Noisy(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.a, self.b, self.draw = nn.Linear(4, 8), nn.Linear(8, 3), draw

    def forward(self, x):
        h = self.a(x).relu()
        return self.b(self.draw(h) if self.training else h)


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn_in_training(name):
    torch.manual_seed(0)
    model, x = Noisy(DRAWS[name]), torch.randn(3, 5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", fx_oto.FxOtoWarning)
        gm = fx_oto.prepare(model, x)
    torch.manual_seed(1)
    expected = model.train()(x)
    torch.manual_seed(1)
    torch.testing.assert_close(gm.train()(x), expected, rtol=0, atol=0)
    assert fx_oto.partition(gm).num_zigs == 8
    fx_oto.partition(gm).zero_(0.5)
    small, other = fx_oto.compress(gm), torch.randn(2, 7, 4)
    torch.testing.assert_close(small.eval()(other), model.eval()(other))
    assert small.train()(other).shape == (2, 7, 3)


@pytest.mark.parametrize("name", ["normal_", "uniform_", "poisson", "normal of tensors"])
def test_what_is_drawn_in_evaluation_as_well(name):
    """Removed channels would be noise: kept whole."""

    class Always(Noisy):
        def forward(self, x):
            return self.b(self.draw(self.a(x).relu()))

    gm = fx_oto.prepare(Always(DRAWS[name]), torch.randn(3, 5, 4))
    zigs = fx_oto.partition(gm).num_zigs
    assert zigs == (8 if name == "uniform_" else 0)  # of zero, times noise, nothing is left
