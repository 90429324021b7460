"""Code that decides by sizes once, and keeps what it decided where no capture finds it."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from support.exactness import compress_half
from torch import nn


def _by_text(decide):
    kept = {}

    def plan(size):
        if f"{size}" not in kept:
            kept[f"{size}"] = decide(size)
        return kept[f"{size}"]

    return plan


def _by_numbers(decide):
    kept = {}

    def plan(size):
        key = (int(size), "plan")
        if key not in kept:
            kept[key] = decide(size)
        return kept[key]

    return plan


KEEPERS = {"a dictionary by text": _by_text, "a dictionary by numbers": _by_numbers}


def _decide(size):
    return "nc,dc->nd" if size < 10**9 and size != 0 else "dc,nc->nd"


@pytest.fixture(params=KEEPERS)
def plan(request):
    """A function of a module that the model's code reaches through a table only."""
    module = ModuleType("plans")
    module.plan = KEEPERS[request.param](_decide)
    sys.modules["plans"] = module
    yield
    del sys.modules["plans"]


class Planned(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.first, self.last, self.dim = nn.Linear(6, 8), nn.Linear(8, 3), dim
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        equation = sys.modules["plans"].plan(x.shape[self.dim])
        hidden = self.first(x).relu().flatten(0, -2)
        terms = (hidden, self.weight) if equation.startswith("n") else (self.weight, hidden)
        return self.last(torch.einsum(equation, *terms)).unflatten(0, x.shape[:-1])


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("called", [(), (2,), (2, 3, 4)])
def test_sizes_stay_open_whichever_were_met_before(plan, dim, called):
    net = Planned(dim)
    for batch in called:
        net(torch.randn(batch, 5, 6))
    found = compress_half(net, torch.randn(2, 5, 6), others=[torch.randn(4, 5, 6), torch.randn(7, 9, 6)])
    assert not found.checked
