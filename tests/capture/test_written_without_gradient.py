"""What code writes into buffers and into a teacher's parameters under ``torch.no_grad`` has no history in the graph."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fx_oto

X = torch.randn(4, 5, dtype=torch.float64)


class Net(nn.Module):
    """A layer that learns, another that follows it, and buffers into which code writes what the first returns."""

    def __init__(self, write, always):
        super().__init__()
        self.write, self.always = write, always
        self.a, self.teacher, self.b = nn.Linear(5, 8), nn.Linear(5, 8).requires_grad_(False), nn.Linear(8, 3)
        self.register_buffer("bank", torch.randn(6, 8))
        self.register_buffer("last", torch.randn(1, 8))

    def forward(self, x):
        h = self.a(x).relu()
        mean = h.mean(0, keepdim=True)
        if self.training or self.always:
            with torch.no_grad():
                self.write(self, mean)
        return self.b(h + self.teacher(x) + self.bank.sum(0) + self.last)


def rows(net, h):
    net.bank[1:2] = h


def places(net, h):
    net.bank[torch.tensor([0, 2])] = h


def added_in_place(net, h):
    net.last *= 0.9
    net.last += h


def averaged(net, h):
    for theirs, ours in zip(net.teacher.parameters(), net.a.parameters(), strict=True):
        theirs.mul_(0.9).add_(ours, alpha=0.1)


def interpolated(net, h):
    for theirs, ours in zip(net.teacher.parameters(), net.a.parameters(), strict=True):
        theirs.lerp_(ours, weight=0.1)


def copied(net, h):
    net.teacher.weight.copy_(net.a.weight)
    net.last.copy_(h)


WRITES = {
    "rows": rows,
    "places": places,
    "added in place": added_in_place,
    "added": lambda net, h: net.last.mul_(0.9).add_(h, alpha=0.1),
    "a product added": lambda net, h: net.last.addcmul_(h, h, value=0.1),
    "added to rows": lambda net, h: net.bank.index_add_(0, torch.tensor([2]), h),
    "an average of parameters": averaged,
    "interpolated parameters": interpolated,
    "copied": copied,
}


KEPT = ["rows"]  # written through a view


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_training_through_the_graph_writes_the_same(name, always):
    torch.manual_seed(0)
    model = Net(WRITES[name], always).double()
    gm = fx_oto.prepare(model, X)
    twin = copy.deepcopy(model)
    for one in (gm.train(), twin.train()):
        optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.01)
        for step in range(3):
            optimizer.zero_grad()
            one(X + step).square().mean().backward()
            optimizer.step()
    assert all(parameter.is_leaf for parameter in model.parameters())
    assert not any(buffer.requires_grad for buffer in model.buffers())
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-10, atol=1e-12)
    if name in KEPT:
        assert not fx_oto.partition(gm).num_zigs
        return
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    torch.testing.assert_close(small.eval()(X), model.eval()(X), rtol=1e-10, atol=1e-12)
