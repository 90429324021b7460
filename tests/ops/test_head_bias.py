"""Learned numbers of each head and width, combined with queries: heads go with their part of them."""

import copy
import math

import pytest
import torch
from support.exactness import randomise
from torch import nn

import fx_oto


class Attention(nn.Module):
    """Attention whose queries are combined with something of the grid of heads and widths."""

    def __init__(self, shape, combine, transposed=False, heads=4, width=4):
        super().__init__()
        d = heads * width
        self.heads, self.width, self.combine, self.transposed = heads, width, combine, transposed
        self.e, self.q, self.k, self.v = nn.Linear(5, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.o, self.u, self.w = nn.Linear(d, 3), nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape))

    def forward(self, x):
        x = self.e(x)
        b, t, d = x.shape
        q, k, v = (f(x).view(b, t, self.heads, self.width) for f in (self.q, self.k, self.v))
        if self.transposed:
            q = self.combine(q.transpose(1, 2), self.u, self.w)
        else:
            q = self.combine(q, self.u, self.w).transpose(1, 2)
        scores = q @ k.permute(0, 2, 3, 1) / math.sqrt(self.width)
        return self.o((scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).reshape(b, t, d))


def cut(model, **options):
    model = randomise(model.double()).eval()
    gm = fx_oto.prepare(model, torch.randn(2, 7, 5, dtype=torch.float64), **options)
    found = fx_oto.partition(gm)
    found.zero_(0.5, generator=torch.Generator().manual_seed(0))
    sparse = copy.deepcopy(model)
    sparse.load_state_dict(
        {name: value for name, value in gm.state_dict().items() if name in model.state_dict()}, strict=False
    )
    small = fx_oto.compress(gm).eval()
    for shape in ((2, 7, 5), (3, 11, 5)):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(small(x), sparse(x), rtol=1e-10, atol=1e-10)
    return [len(family) for family in found.families if any(slot.tensor == "q.weight" for slot in family.variables)]


CASES = {
    "bias": ((4, 4), lambda q, u, w: q + u, False),
    "bias (heads, 1, width)": ((4, 1, 4), lambda q, u, w: q + u, True),
    "bias (1, heads, 1, width)": ((1, 4, 1, 4), lambda q, u, w: q + u, True),
    "product": ((4, 4), lambda q, u, w: q * u, False),
    "product and bias": ((4, 4), lambda q, u, w: q * u + w, False),
    "difference": ((4, 1, 4), lambda q, u, w: w - q * u, True),
    "temperature": ((4, 1, 1), lambda q, u, w: q * u, True),
    "bounded temperature": ((4, 1, 1), lambda q, u, w: q * u.clamp(max=0.5), True),
    "activated": ((4, 4), lambda q, u, w: (q + u).tanh(), False),
    "twice": ((4, 4), lambda q, u, w: (q + u) * 0.5 + (q + w), False),
}


@pytest.mark.parametrize("name", CASES)
def test_whole_heads_go(name):
    assert cut(Attention(*CASES[name])) == [4]


@pytest.mark.parametrize("name", CASES)
def test_the_same_width_of_every_head_goes(name):
    assert cut(Attention(*CASES[name]), attention="head_dim") == [4]


@pytest.mark.parametrize("attention", ["heads", "head_dim"])
def test_a_bias_of_each_head_or_of_each_width_is_exact(attention):
    for shape in ((4, 1), (4,), (1, 4)):
        cut(Attention(shape, lambda q, u, w: q + u, False), attention=attention)


class Relative(nn.Module):
    """Transformer-XL: the two halves of the scores have biases of their own."""

    def __init__(self, heads=4, width=4):
        super().__init__()
        d = heads * width
        self.heads, self.width = heads, width
        self.e, self.q, self.k, self.v = nn.Linear(5, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.r, self.o = nn.Linear(5, d, bias=False), nn.Linear(d, 3)
        self.u, self.w = nn.Parameter(torch.randn(heads, width)), nn.Parameter(torch.randn(heads, width))

    def forward(self, x):
        r, x = self.r(x), self.e(x)
        b, t, d = x.shape
        q, k, v, r = (f.view(b, t, self.heads, self.width) for f in (self.q(x), self.k(x), self.v(x), r))
        scores = torch.einsum("bihd,bjhd->bhij", q + self.u, k) + torch.einsum("bihd,bjhd->bhij", q + self.w, r)
        weights = (scores / math.sqrt(self.width)).softmax(-1)
        return self.o(torch.einsum("bhij,bjhd->bihd", weights, v).reshape(b, t, d))


@pytest.mark.parametrize("attention", ["heads", "head_dim"])
def test_relative_positions_with_two_biases(attention):
    assert cut(Relative(), attention=attention) == [4]
