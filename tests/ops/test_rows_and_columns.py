"""Two dimensions that are flattened into one, such as inputs by basis functions in a Kolmogorov-Arnold network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH = 12


class Bases(nn.Module):
    """A layer over functions of each input: of Gaussians around a grid, mixed by ``code``."""

    def __init__(self, code, inputs, outputs, count=5):
        super().__init__()
        self.register_buffer("grid", torch.linspace(-1, 1, count))
        self.base, self.weight = nn.Linear(inputs, outputs), nn.Parameter(torch.randn(outputs, inputs, count) / 5)
        self.scale = nn.Parameter(torch.randn(outputs, inputs))
        self.flat = nn.Linear(inputs * count, outputs, bias=False)
        self.code, self.outputs = code, outputs

    def forward(self, x):
        return self.base(F.silu(x)) + self.code(self, torch.exp(-((x.unsqueeze(-1) - self.grid) ** 2)), x)


class Splines(nn.Module):
    """B-splines, each order computed of the one before."""

    def __init__(self, inputs, outputs, count=5, order=3):
        super().__init__()
        grid = (torch.arange(-order, count + order + 1) * (2 / count) - 1).expand(inputs, -1).contiguous()
        self.register_buffer("grid", grid)
        self.order, self.inputs, self.outputs, self.base = order, inputs, outputs, nn.Linear(inputs, outputs)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, count + order) / 5)
        self.scaler = nn.Parameter(torch.randn(outputs, inputs))

    def bases(self, x):
        x, grid = x.unsqueeze(-1), self.grid
        bases = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
        for k in range(1, self.order + 1):
            left = (x - grid[:, : -(k + 1)]) / (grid[:, k:-1] - grid[:, : -(k + 1)])
            right = (grid[:, k + 1 :] - x) / (grid[:, k + 1 :] - grid[:, 1:-k])
            bases = left * bases[:, :, :-1] + right * bases[:, :, 1:]
        return bases.contiguous()

    def forward(self, x):
        shape, x = x.shape, x.reshape(-1, self.inputs)
        weight = self.weight * self.scaler.unsqueeze(-1)
        y = self.base(F.silu(x)) + F.linear(self.bases(x).view(x.size(0), -1), weight.view(weight.size(0), -1))
        return y.reshape(*shape[:-1], self.outputs)


def chebyshev(m, bases, x):
    x, orders = x.tanh(), [torch.ones_like(x), x.tanh()]
    for _ in range(2, m.grid.numel()):
        orders.append(2 * x * orders[-1] - orders[-2])
    return torch.einsum("...id,oid->...o", torch.stack(orders, -1), m.weight)


# name: the code of a layer, and whether single basis functions can go
MIXED = {
    "both flattened": (lambda m, b, x: F.linear(b.flatten(-2), m.weight.flatten(1)), True),
    "both viewed": (lambda m, b, x: F.linear(b.reshape(*x.shape[:-1], -1), m.weight.view(m.outputs, -1)), True),
    "scaled": (lambda m, b, x: F.linear(b.flatten(-2), (m.weight * m.scale[..., None]).flatten(1)), True),
    "einsum": (lambda m, b, x: torch.einsum("...ig,oig->...o", b, m.weight), True),
    "multiplied and summed": (lambda m, b, x: (b.unsqueeze(-3) * m.weight).sum((-2, -1)), True),
    "orders written one by one": (chebyshev, False),
    "a linear layer": (lambda m, b, x: m.flat(b.flatten(-2)), False),
    "a linear layer, the grid first": (lambda m, b, x: m.flat(b.mT.flatten(-2)), False),
    "a linear layer of what is worth nothing": (lambda m, b, x: m.flat((b * x.unsqueeze(-1)).flatten(-2)), False),
}


@pytest.mark.parametrize("shape", [(6, 4), (2, 7, 4)])
@pytest.mark.parametrize("name", MIXED)
def test_units_can_go(name, shape):
    code, by_base = MIXED[name]
    torch.manual_seed(0)
    layers = [Bases(code, *sizes) for sizes in ((4, WIDTH), (WIDTH, WIDTH), (WIDTH, 3))]
    found = compress_half(nn.Sequential(*layers), torch.randn(shape), any_size=True)
    units = [len(family) for family in fx_oto.partition(found.gm).families if len(family) == WIDTH]
    assert len(units) >= 2
    assert found.params_left < 0.45
    if by_base:
        assert found.zigs == 2 * WIDTH + 3 * layers[0].grid.numel()


@pytest.mark.parametrize("shape", [(6, 4), (2, 7, 4)])
def test_splines(shape):
    torch.manual_seed(0)
    model = nn.Sequential(Splines(4, WIDTH), Splines(WIDTH, WIDTH), Splines(WIDTH, 3))
    assert compress_half(model, torch.randn(shape), any_size=True).params_left < 0.45


class Pairs(nn.Module):
    """Products of all units of two layers."""

    def __init__(self, code, left, right):
        super().__init__()
        self.a, self.b, self.c, self.code = nn.Linear(5, left), nn.Linear(5, right), nn.Linear(left * right, 3), code

    def forward(self, x):
        return self.c(self.code(self.a(x), self.b(x)))


PAIRS = {
    "einsum": lambda a, b: torch.einsum("ni,nj->nij", a, b).flatten(1),
    "product": lambda a, b: (a.unsqueeze(2) * b.unsqueeze(1)).view(len(a), -1),
    "matrix product": lambda a, b: (a[:, :, None] @ b[:, None]).flatten(1).relu(),
    "worth a half": lambda a, b: (a.sigmoid()[:, :, None] * b[:, None].sigmoid()).flatten(1),
    "roots": lambda a, b: F.normalize((a[:, :, None] * b[:, None]).flatten(1)),
}


@pytest.mark.parametrize(("left", "right"), [(8, 6), (6, 8), (6, 6)])
@pytest.mark.parametrize("name", PAIRS)
def test_the_longer_side_of_an_outer_product_can_go(name, left, right):
    torch.manual_seed(0)
    found = compress_half(Pairs(PAIRS[name], left, right), torch.randn(4, 5))
    (family,) = fx_oto.partition(found.gm).families
    assert len(family) == max(left, right)
    shorter = "b" if left >= right else "a"
    kept = [one for one in fx_oto.partition(found.gm).frozen if one.tensor == f"{shorter}.weight" and one.dim == 0]
    assert "it lies in one dimension with another" in kept[0].reason.why


class Channels(nn.Module):
    """Products of 6 and 4 channels are 24, of which ``code`` makes something."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b, self.c, self.code = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(24, 2, 1), code
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=6)
        self.norms = nn.ModuleList([nn.BatchNorm2d(24), nn.GroupNorm(6, 24), nn.GroupNorm(1, 24), nn.PReLU(24)])
        self.norm, self.cell = nn.LayerNorm(24), nn.GRU(24, 24, batch_first=True)

    def forward(self, x):
        return self.c(self.code(self, (self.a(x)[:, :, None] * self.b(x)[:, None]).flatten(1, 2)))


READERS = {
    "a convolution": lambda m, h: h,
    "one for each channel": lambda m, h: m.depthwise(h),
    "one in groups": lambda m, h: m.grouped(h),
    "batch norm": lambda m, h: m.norms[0](h),
    "group norm": lambda m, h: m.norms[1](h),
    "group norm, one group": lambda m, h: m.norms[2](h),
    "PReLU": lambda m, h: m.norms[3](h),
    "layer norm": lambda m, h: m.norm(h.movedim(1, -1)).movedim(-1, 1),
    "a recurrence": lambda m, h: m.cell(h.flatten(2).mT)[0].mT.unflatten(2, h.shape[2:]),
    "means": lambda m, h: h * h.mean(1, keepdim=True),
    "a norm": lambda m, h: F.normalize(h, dim=1),
    "both": lambda m, h: h + m.norms[0](h),
    "another order": lambda m, h: h.unflatten(1, (6, 4)).transpose(1, 2).flatten(1, 2),
}


@pytest.mark.parametrize("name", READERS)
def test_what_reads_an_outer_product(name):
    torch.manual_seed(0)
    found = compress_half(Channels(READERS[name]), torch.randn(2, 3, 6, 6))
    assert sorted(map(len, fx_oto.partition(found.gm).families))[0] == 6
    assert found.params_left < 0.9


def test_rows_and_columns_that_are_the_same_channels_stay():
    class Gram(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g, self.o = nn.Conv2d(3, 12, 3), nn.Linear(144, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = self.f(x).relu().flatten(2)
            return self.o(self.g((x @ x.transpose(1, 2)).flatten(1)).relu())

    zigs = fx_oto.partition(fx_oto.prepare(Gram(), torch.randn(2, 3, 8, 8)))
    assert list(map(len, zigs.families)) == [5]
    reasons = {(axis.tensor, axis.dim): axis.reason.why for axis in zigs.frozen}
    assert "what reads both ties them together" in reasons["f.weight", 0]
