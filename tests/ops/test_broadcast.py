"""Tensors that are broadcast together, and then read apart, as means and deviations of distributions are."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import fx_oto


class Two(nn.Module):
    """Two layers of the same width; ``read`` makes of both what is returned."""

    def __init__(self, read):
        super().__init__()
        self.body, self.left, self.right = nn.Linear(4, 16), nn.Linear(16, 12), nn.Linear(16, 12)
        self.first, self.second, self.scale = nn.Linear(12, 3), nn.Linear(12, 2), nn.Parameter(torch.randn(12))
        self.read = read

    def forward(self, x):
        h = self.body(x).relu()
        return self.read(self, self.left(h), self.right(h).exp())


def apart(net, left, right):
    return net.first(left), net.second(right)


def mixture(net, left, right):
    parts = Independent(Normal(left.unflatten(-1, (4, 3)), right.unflatten(-1, (4, 3))), 1)
    return MixtureSameFamily(Categorical(logits=left[:, :4]), parts).mean


READ = {
    "apart": lambda net, left, right: apart(net, *torch.broadcast_tensors(left, right)),
    "one is an output": lambda net, left, right: (torch.broadcast_tensors(left, right)[0], net.second(right)),
    "a list": lambda net, left, right: apart(net, *torch.broadcast_tensors(*[left, right])),
    "a new dimension": lambda net, left, right: apart(
        net, *torch.broadcast_tensors(left[:, None], right[:, None, None])
    ),
    "as many as examples": lambda net, left, right: apart(net, *torch.broadcast_tensors(left[:, None], right[None])),
    "a parameter": lambda net, left, right: apart(net, *torch.broadcast_tensors(left, net.scale)),
    "one alone": lambda net, left, right: net.first(torch.broadcast_tensors(left, right)[0]),
    "together": lambda net, left, right: net.first(torch.stack(torch.broadcast_tensors(left, right)).sum(0)),
    "a mean": lambda net, left, right: Normal(left, right).mean,
    "a mean, and a deviation": lambda net, left, right: (
        Normal(left, right).mean,
        net.second(Normal(left, right).stddev),
    ),
    "a density": lambda net, left, right: Normal(left, right).log_prob(left.detach() + 1).sum(-1),
    "a mixture": mixture,
}


@pytest.mark.parametrize("name", READ)
def test_exact(name):
    found = compress_half(Two(READ[name]), torch.randn(3, 4), others=[torch.randn(5, 4)])
    assert found.zigs


def test_those_that_nothing_combines_lose_their_own():
    torch.manual_seed(0)
    model = Two(READ["apart"]).eval()
    gm = fx_oto.prepare(model, torch.randn(3, 4))
    found = fx_oto.partition(gm)
    found.zero_zigs_(next(i for i, one in enumerate(found.families) if one.name == "left.weight"), torch.arange(8))
    small = fx_oto.compress(gm)
    assert (small.left.out_features, small.right.out_features) == (4, 12)
    x = torch.randn(5, 4)
    torch.testing.assert_close(small(x), model(x))
