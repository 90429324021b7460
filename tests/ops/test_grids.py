"""Linear maps along one axis of a grid of channels: rows of it go, or columns, whichever leaves more."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto


class OfSteps(nn.Module):
    """Steps of a forecast, each with a width, from one layer; each step becomes what ``head`` makes of its width."""

    def __init__(self, head, last=None, act=torch.relu, steps=6, width=16):
        super().__init__()
        self.first, self.norm = nn.Linear(10, steps * width), nn.Linear(width, width)
        self.proj, self.gains = nn.Linear(width, 3), nn.Parameter(torch.randn(steps, width, 2))
        self.head, self.last, self.act, self.shape = head, last, act, (steps, width)

    def forward(self, x):
        made = self.head(self, self.act(self.first(x)).unflatten(-1, self.shape))
        return made if self.last is None else self.last(made.flatten(1))


HEADS = {
    "linear": lambda net, y: net.proj(y),
    "two linear": lambda net, y: net.proj(net.norm(y).relu()),
    "an equation": lambda net, y: torch.einsum("bsw,ow->bso", y, net.proj.weight),
    "a product": lambda net, y: y @ net.proj.weight.T,
    "a vector": lambda net, y: y @ net.proj.weight[0],
    "turned": lambda net, y: (net.proj.weight @ y.mT).mT,
    "a map for each step": lambda net, y: torch.einsum("bsw,swo->bso", y, net.gains),
}


def groups_of(gm, name):
    """How many groups take rows of a parameter."""
    families = [one for one in fx_oto.partition(gm).families if any((s.tensor, s.dim) == (name, 0) for s in one.slots)]
    return sum(len(next(s.index for s in one.slots if s.tensor == name and s.dim == 0)) for one in families)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("steps", [6, 20])
def test_widths_of_steps_that_are_returned_go(head, steps):
    found = compress_half(OfSteps(head, steps=steps), torch.randn(2, 10), others=[torch.randn(5, 10)])
    assert groups_of(found.gm, "first.weight") == 16
    assert found.params_left < 0.6


@pytest.mark.parametrize("head", [HEADS[name] for name in ("linear", "an equation", "turned")])
@pytest.mark.parametrize(("steps", "groups"), [(6, 16), (20, 20)])
def test_what_leaves_more_goes_where_both_may(head, steps, groups):
    net = OfSteps(head, last=nn.Linear(3 * steps, 4), steps=steps)
    found = compress_half(net, torch.randn(2, 10), others=[torch.randn(5, 10)])
    assert groups_of(found.gm, "first.weight") == groups


@pytest.mark.parametrize("head", [HEADS[name] for name in ("linear", "an equation", "turned")])
def test_widths_that_are_not_zero_once_removed(head):
    net = OfSteps(head, act=torch.sigmoid)
    compress_half(nn.Sequential(nn.Linear(4, 10), nn.ReLU(), net), torch.randn(2, 4), others=[torch.randn(5, 4)])


def test_widths_of_heads_that_share_a_map_go():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.each, self.out = nn.Linear(10, 72), nn.Linear(8, 8), nn.Linear(24, 5)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
            made = (self.each(q) @ k.mT).softmax(-1) @ v
            return self.out(made.transpose(1, 2).flatten(2))

    found = compress_half(Heads(), torch.randn(2, 4, 10), others=[torch.randn(3, 7, 10)], attention="head_dim")
    assert found.params_left < 0.7
