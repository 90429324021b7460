"""Bilinear forms, distances between rows, and kernels that each example has of its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH = 8


class Net(nn.Module):
    """Two layers one after the other, whose results meet in ``code``, and a last one."""

    def __init__(self, code, after=WIDTH, **layers):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(after, 3)
        self.code = code
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        x = self.a(x)
        return self.c(self.code(self, x, self.b(x)))


BILINEAR = {
    "module": lambda m, x, y: m.form(x, y),
    "function": lambda m, x, y: F.bilinear(x, y, m.form.weight, m.form.bias),
    "without bias": lambda m, x, y: F.bilinear(x, y, m.form.weight),
    "what is not zero once removed": lambda m, x, y: m.form(x.sigmoid(), y.cos()),
    "with itself": lambda m, x, y: m.form(y, y),
}


@pytest.mark.parametrize("shape", [(4, 6), (2, 5, 6)])
@pytest.mark.parametrize("name", BILINEAR)
def test_bilinear_forms(name, shape):
    torch.manual_seed(0)
    found = compress_half(Net(BILINEAR[name], 5, form=nn.Bilinear(WIDTH, WIDTH, 5)), torch.randn(shape))
    assert found.zigs == WIDTH + WIDTH + 5
    if name == "module":
        form = found.small.form
        assert (form.in1_features, form.in2_features, form.out_features) == (WIDTH // 2, WIDTH // 2, 3)


DISTANCES = {
    "of all pairs": lambda m, x, y: torch.cdist(y, 2 * y).softmax(-1) @ x,
    "of all pairs, p 1": lambda m, x, y: torch.cdist(y, 2 * y, p=1).softmax(-1) @ x,
    "of all pairs, largest": lambda m, x, y: torch.cdist(y, 2 * y, p=float("inf")).softmax(-1) @ x,
    "by products": lambda m, x, y: torch.cdist(y, 2 * y, compute_mode="use_mm_for_euclid_dist").softmax(-1) @ x,
    "to learned rows": lambda m, x, y: torch.cdist(y, m.rows).neg().softmax(-1) @ m.values @ m.mix.T,
}


@pytest.mark.parametrize("tokens", [5, 30])
@pytest.mark.parametrize("name", DISTANCES)
def test_distances(name, tokens):
    torch.manual_seed(0)
    rows, values, mix = (nn.Parameter(torch.randn(n, WIDTH) / 2) for n in (7, 7, WIDTH))
    found = compress_half(Net(DISTANCES[name], rows=rows, values=values, mix=mix), torch.randn(2, tokens, 6))
    assert found.zigs == (4 if name == "to learned rows" else 2) * WIDTH


def test_distances_over_what_differs_once_removed_are_kept():
    net = Net(lambda m, x, y: torch.cdist(y.sigmoid(), y).softmax(-1) @ x)
    gm = fx_oto.prepare(net, torch.randn(2, 5, 6))
    assert fx_oto.partition(gm).num_zigs == WIDTH
    assert "the distance over it would change" in str(fx_oto.partition(gm).explain())


ROWS = {
    "dist": lambda m, x, y: torch.dist(x, y),
    "dist, p 1": lambda m, x, y: torch.dist(x, y, 1),
    "dist, largest": lambda m, x, y: torch.dist(y, x, float("inf")),
    "dist of what is broadcast": lambda m, x, y: torch.dist(y, y[:1, :1]),
    "pdist": lambda m, x, y: F.pdist(y[0]).sum(),
    "pdist, p 1": lambda m, x, y: torch.pdist(y[0] + 1.0 * x[0], 1).mean(),
    "pdist, largest": lambda m, x, y: F.pdist(y[0], float("inf"))[:3],
    "pdist of what is worth the same": lambda m, x, y: F.pdist(y[0].sigmoid()).max(),
}


@pytest.mark.parametrize("name", ROWS)
def test_one_distance(name):
    torch.manual_seed(0)
    net = Net(lambda m, x, y: x * y + ROWS[name](m, x, y).sum())
    assert compress_half(net, torch.randn(4, 5, 6)).zigs == WIDTH


def test_one_distance_over_what_differs_once_removed_is_kept():
    for distance in (torch.dist, lambda x, y: F.pdist(y + x[:, :1])):
        net = Net(lambda m, x, y, distance=distance: x + distance(x, y.sigmoid()).sum())
        explained = str(fx_oto.partition(fx_oto.prepare(net, torch.randn(5, 6))).explain())
        assert "over it would change" in explained


def test_a_norm_to_which_zero_adds_something():
    gm = fx_oto.prepare(Net(lambda m, x, y: x + torch.dist(x, y, -1)), torch.randn(5, 6))
    assert fx_oto.partition(gm).num_zigs == 0


class Image(nn.Module):
    """A convolution whose kernel is mixed anew for each example, between two others."""

    def __init__(self, kernel, *sizes):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(6, 3, 1)
        self.route, self.kernel, self.weight = nn.Linear(WIDTH, 4), kernel, nn.Parameter(torch.randn(4, *sizes) / 9)

    def forward(self, x):
        x = self.a(x)
        kernels = self.kernel(self, self.route(x.mean((2, 3))).sigmoid())
        made = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, padding=1, groups=x.size(0))
        return self.b(made.view(x.size(0), -1, *made.shape[2:]).relu())


def test_kernels_of_each_example():
    def mixed(m, weights):
        return torch.einsum("be,eoikl->boikl", weights, m.weight).flatten(0, 1)

    torch.manual_seed(0)
    found = compress_half(Image(mixed, 6, WIDTH, 3, 3), torch.randn(2, 3, 8, 8))
    assert found.zigs == WIDTH + 6 + 4  # the kernels that are mixed as well


def test_kernels_in_one_line():
    torch.manual_seed(0)
    line = Image(lambda m, weights: (weights @ m.weight).view(-1, WIDTH, 3, 3), 6 * WIDTH * 9)
    found = compress_half(line, torch.randn(2, 3, 8, 8))
    assert found.zigs == 6 + 4  # rows of the kernel; of its columns, none


class Fields(nn.Module):
    """Layers of several fields, (batch, 8) each, whose products in pairs are read, as recommenders do."""

    def __init__(self, interact):
        super().__init__()
        self.fields = nn.ModuleList(nn.Linear(4, WIDTH) for _ in range(3))
        self.read, self.interact = nn.Linear(3 + WIDTH, 2), interact

    def forward(self, x):
        rows = [field(x) for field in self.fields]
        return self.read(torch.cat([rows[0], self.interact(rows)], 1))


def pairs(products):
    row, column = torch.tril_indices(3, 3, -1)
    return products[:, row, column]


INTERACTIONS = {
    "stacked": lambda rows: pairs((h := torch.stack(rows, 1)) @ h.mT),
    "beside each other": lambda rows: pairs((h := torch.cat(rows, 1).view(len(rows[0]), -1, WIDTH)) @ h.mT),
    "bmm": lambda rows: pairs(torch.bmm(h := torch.stack(rows, 1), h.transpose(1, 2))),
    "einsum": lambda rows: pairs(torch.einsum("bic,bjc->bij", h := torch.stack(rows, 1), h)),
    "einsum of others": lambda rows: pairs(
        torch.einsum("bic,bjc->bij", torch.stack(rows, 1), torch.stack(rows, 1).relu())
    ),
    "all": lambda rows: ((h := torch.stack(rows, 1)) @ h.mT).flatten(1)[:, [1, 2, 5]],
    "one by one": lambda rows: torch.stack([(rows[i] * rows[j]).sum(1) for i, j in ((0, 1), (0, 2), (1, 2))], 1),
    "of one with the others": lambda rows: torch.cat([torch.stack(rows, 1) @ rows[1][..., None]], 2).squeeze(2),
}


@pytest.mark.parametrize("name", INTERACTIONS)
def test_fields_lose_the_same(name):
    torch.manual_seed(0)
    found = compress_half(Fields(INTERACTIONS[name]), torch.randn(4, 4), others=[torch.randn(7, 4)])
    assert found.zigs == WIDTH
    assert all(field.out_features == WIDTH // 2 for field in found.small.fields.children())
