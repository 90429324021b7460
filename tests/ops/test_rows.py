"""Rows that are gathered, or written to, by an index: graphs, mixtures of experts. Channels are cut all the same."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH = 8


class Graph(nn.Module):
    """Two layers, and what ``code`` does to the nodes of a graph with its edges, of which it has any number."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b, self.code = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3), code

    def forward(self, x, edges):
        return self.b(self.code(self.a(x).relu(), edges[0], edges[1]))


def column(index, like):
    return index.unsqueeze(1).expand_as(like)


def written(h, at, value):
    h = h.clone()
    h[at] = value
    return h


def experts(h, source, target):
    """Each expert takes the rows that are routed to it, and adds what it makes of them."""
    result = torch.zeros_like(h)
    for expert in range(2):
        rows = (source[: h.size(0)] % 2 == expert).nonzero()[:, 0]
        result.index_add_(0, rows, h[rows] * (expert + 1))
    return result


def rows_of(h):
    return (h.sum(1) > 0)[:, None].expand_as(h)


def grid(h):
    return torch.stack([h, 2 * h], 1)


def counted(h, source, target):
    """As models of images and text do that put features in the place of some tokens."""
    features = h[source[:2]]
    mask = torch.arange(h.size(0)).lt(2).unsqueeze(-1).expand_as(h)
    if h[mask].numel() != features.numel():
        raise ValueError(f"{mask.sum()} rows")
    return h.masked_scatter(mask, features)


CODE = {
    "scatter_add_": lambda h, i, j: h.new_zeros(h.shape).scatter_add_(0, column(j, h[i]), h[i]),
    "scatter_add": lambda h, i, j: torch.zeros_like(h).scatter_add(0, column(j, h[i]), h.index_select(0, i)),
    "scatter_add to what is there": lambda h, i, j: h.scatter_add(0, column(j, h[i]), h[i].sigmoid()),
    "mean": lambda h, i, j: torch.zeros_like(h).scatter_reduce_(0, column(j, h[i]), h[i], "mean", include_self=False),
    "amax": lambda h, i, j: torch.zeros_like(h).scatter_reduce(0, column(j, h[i]), h[i], "amax"),
    "scatter": lambda h, i, j: torch.zeros_like(h).scatter(0, column(torch.arange(3), h[:3]), h[:3]),
    "scatter of a number": lambda h, i, j: h.scatter(0, column(torch.arange(2), h[:2]), 0.0),
    "index_add": lambda h, i, j: h.index_add(0, j, h[i]),
    "index_add_": lambda h, i, j: torch.zeros_like(h).index_add_(-2, j, h[i], alpha=0.5),
    "index_copy": lambda h, i, j: h.index_copy(0, torch.arange(2), h[2:4] * 2),
    "index_fill": lambda h, i, j: h.index_fill(0, i[:3], 0),
    "gather": lambda h, i, j: h.gather(0, column(i, h[i])),
    "take_along_dim": lambda h, i, j: torch.take_along_dim(h, j[:, None], 0),
    "index that is repeated": lambda h, i, j: h.gather(0, i[:, None].repeat(1, WIDTH)),
    "index that is tiled": lambda h, i, j: torch.gather(h, 0, torch.tile(i[:, None], (1, h.size(1)))),
    "index that is repeated in front": lambda h, i, j: h.T.gather(1, j.repeat(h.size(1), 1)).T,
    "mask that is repeated": lambda h, i, j: h * (h.sum(1, keepdim=True) > 0).repeat(1, WIDTH),
    "weights that are repeated": lambda h, i, j: h * h.mean(1, keepdim=True).repeat((1, h.shape[1])),
    "index_select": lambda h, i, j: h.index_select(-2, i),
    "rows of a grid": lambda h, i, j: torch.stack([h, 2 * h], 1)[i[:, None], (j % 2)[None]].mean(1),
    "rows are written": lambda h, i, j: written(h, torch.arange(2), h[2:4]),
    "rows are masked": lambda h, i, j: written(h, h.sum(1) > 1, 0.0),
    "rows are added": lambda h, i, j: torch.zeros_like(h).index_put((j,), h[i], accumulate=True),
    "masked rows are replaced": lambda h, i, j: h.masked_scatter(rows_of(h), torch.stack([h, 2 * h])),
    "masked rows are replaced in place": lambda h, i, j: (h * 1).masked_scatter_((h.sum(1, True) > 0), h.tanh()),
    "rows of a grid are masked": lambda h, i, j: grid(h)[(h.sum(1) > 0)[:, None, None].expand_as(grid(h))].view(
        -1, WIDTH
    ),
    "masked rows are counted": counted,
    "experts": experts,
}


def inputs(nodes, edges):
    dice = torch.Generator().manual_seed(nodes)
    return torch.randn(nodes, 6, generator=dice), torch.randint(0, nodes, (2, edges), generator=dice)


@pytest.mark.parametrize("name", CODE)
def test_channels_are_cut(name):
    found = compress_half(Graph(CODE[name]), inputs(5, 9), others=[inputs(7, 13)], sensitive=False)
    assert found.zigs == WIDTH


KEPT = {
    "masked elements are replaced": lambda h, i, j: h.masked_scatter(h > 0, 2 * h),
    "masked columns are replaced": lambda h, i, j: h.T.masked_scatter(rows_of(h.T), 2 * h.T).T,
    "rows of other rows": lambda h, i, j: h.masked_scatter(rows_of(h), torch.stack([h, h], -1).flatten(1)),
    "masked elements": lambda h, i, j: h * h[h > 0].mean(),
    "along the channels": lambda h, i, j: torch.zeros_like(h).scatter(1, torch.arange(WIDTH).expand_as(h), h),
    "fewer channels": lambda h, i, j: torch.zeros_like(h).scatter_add(0, column(j, h[i])[:, :3], h[i][:, :3]),
    "channels are written": lambda h, i, j: written(h.T, i[:2] % WIDTH, 1.0).T,
    "places between others": lambda h, i, j: written(h[:, :, None], (slice(None), i[:3] % WIDTH), 0.0)[..., 0],
}


@pytest.mark.parametrize("name", KEPT)
def test_what_moves_channels_keeps_them(name):
    assert fx_oto.partition(fx_oto.prepare(Graph(KEPT[name]), inputs(5, 9))).num_zigs == 0


def test_of_tokens_and_images():
    class Tokens(nn.Module):
        def __init__(self, code, layer):
            super().__init__()
            self.a, self.b, self.code = layer(4, WIDTH, 1), layer(WIDTH, 3, 1), code

        def forward(self, x):
            return self.b(self.code(self.a(x)))

    order = torch.tensor([2, 0, 1])
    one = Tokens(lambda h: h.gather(2, order.view(1, 1, -1).expand(h.size(0), h.size(1), -1)), nn.Conv1d)
    assert compress_half(one, torch.randn(2, 4, 5)).zigs == WIDTH
    two = Tokens(lambda h: torch.zeros_like(h).index_add(3, order, h[..., :3]), nn.Conv2d)
    assert compress_half(two, torch.randn(2, 4, 5, 5)).zigs == WIDTH
