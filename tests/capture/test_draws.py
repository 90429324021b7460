"""Random numbers by which a type checker looks at one item of a list: the graph is the same without."""

from __future__ import annotations

import random
import sys

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto

# What beartype writes around a function, and what it calls the file of that.
WRAPPER = """
def checked(function, getrandbits=random.getrandbits):
    def checking(self, x, sizes):
        if not isinstance(sizes[getrandbits(32) % len(sizes)], int):
            raise TypeError("not a list of int")
        return function(self, x, sizes)
    return checking
"""


def checked(function, filename):
    names = {"random": random}
    exec(compile(WRAPPER, filename, "exec"), names)
    return names["checked"](function)


class Net(nn.Module):
    def __init__(self, filename):
        super().__init__()
        self.a, self.b, self.parts = nn.Linear(6, 12), nn.Linear(12, 3), checked(Net.parts_of, filename)

    def parts_of(self, x, sizes):
        return sum(x.split(sizes, -1))

    def forward(self, x):
        return self.b(torch.cat([self.parts(self, self.a(x).relu(), [6, 6])] * 2, -1))


def test_what_beartype_draws_is_taken_back():
    torch.manual_seed(0)
    watching = sys.getprofile()
    done = compress_half(Net("<@beartype(net.parts_of) at 0x7f>"), torch.randn(4, 6))
    assert done.zigs == 6
    assert not fx_oto.Context.of(done.gm).capture.opaque
    assert sys.getprofile() is watching


def test_what_others_draw_is_not():
    with pytest.raises(fx_oto.TraceError, match="draws random numbers"):
        fx_oto.prepare(Net("net.py"), torch.randn(4, 6))


# Comparisons with a number from [0, 1) that fail whatever is drawn, as those of layers that are never dropped.
NEVER = {
    "below": lambda drawn, zero: drawn < zero,
    "method": lambda drawn, zero: drawn.lt(zero),
    "function": torch.lt,
    "above": lambda drawn, zero: drawn > 1 - zero,
    "from 1 on": lambda drawn, zero: torch.ge(drawn, 1.0 - zero),
    "at most less": lambda drawn, zero: drawn.le(zero - 1),
    "turned around": lambda drawn, zero: zero > drawn,
    "not": lambda drawn, zero: not drawn >= zero,
}


class Drops(nn.Module):
    def __init__(self, dropped, zero=0.0):
        super().__init__()
        self.a, self.b, self.c, self.dropped, self.zero = (
            nn.Linear(6, 12),
            nn.Linear(12, 12),
            nn.Linear(12, 3),
            dropped,
            zero,
        )

    def forward(self, x):
        x = self.a(x).relu()
        if self.training and self.dropped(torch.rand([]), self.zero):
            return self.c(x)
        return self.c(self.b(x).relu())


@pytest.mark.parametrize("name", NEVER)
def test_layers_that_are_never_dropped_are_captured_in_both_modes(name):
    found = compress_half(Drops(NEVER[name]), torch.randn(4, 6))
    assert found.zigs == 12 + 12
    assert not fx_oto.Context.of(found.gm).capture.opaque


@pytest.mark.parametrize("name", ["below", "method", "function", "turned around"])
@pytest.mark.filterwarnings("ignore:.*captured in evaluation mode")
def test_those_that_may_be_are_not(name):
    with pytest.warns(fx_oto.FxOtoWarning, match="captured in evaluation mode"):
        fx_oto.prepare(Drops(NEVER[name], 0.5), torch.randn(4, 6))
