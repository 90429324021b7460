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
