"""Reshapes of channels together with sizes: what is cut at another place on other inputs stays whole, nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.kinds import holds, images_around, tokens_around
from torch import nn

WIDTH = 12


def batch(x):
    return x.shape[0]


# (batch, 12, height, width) to rows of which the mean is taken.
IMAGES_SPELLED_OUT = {
    "view of a literal": lambda h, x: h.view(-1, 192),
    "reshape of a product": lambda h, x: h.reshape(-1, WIDTH * 4 * 4),
    "by name": lambda h, x: torch.reshape(input=h, shape=(-1, WIDTH * 16)),
    "literal images": lambda h, x: h.view(-1, WIDTH, 4, 4).flatten(2).mean(-1),
    "pooled once": lambda h, x: F.max_pool2d(h - 0.5, 4).view(-1, WIDTH),
    "a literal grid of tokens": lambda h, x: h.flatten(2).mT.reshape(batch(x), 4, 4, -1).flatten(1, 2),
}
IMAGES_MIXED = {
    "channels and height": lambda h, x: h.reshape(-1, WIDTH * h.shape[2]),
    "rows of channels": lambda h, x: h.view(-1, WIDTH),
    "flattened before": lambda h, x: h.flatten(1).reshape(-1, 96),
}
IMAGES_ALIKE = {
    "flattened": lambda h, x: h.flatten(2).mean(-1),
    "each example a row": lambda h, x: h.view(batch(x), WIDTH, -1).mean(-1),
    "pixels before channels": lambda h, x: h.permute(0, 2, 3, 1).reshape(-1, WIDTH),
    "pooled to one": lambda h, x: F.adaptive_avg_pool2d(h, 1).view(-1, WIDTH),
    "mean of each": lambda h, x: h.mean((2, 3), keepdim=True).view(-1, WIDTH),
    "there and back": lambda h, x: h.flatten(1).view(batch(x), WIDTH, *h.shape[2:]).mean((2, 3)),
    "tokens": lambda h, x: h.flatten(2).transpose(1, 2).reshape(batch(x), h.shape[2], h.shape[3], -1).flatten(1, 2),
    "as many as tokens": lambda h, x: h.reshape(batch(x), -1, h.flatten(2).transpose(1, 2).shape[1]).mT,
    "windows": lambda h, x: (
        h.permute(0, 2, 3, 1)
        .reshape(batch(x), h.shape[2] // 2, 2, h.shape[3] // 2, 2, WIDTH)
        .transpose(2, 3)
        .reshape(-1, 4, WIDTH)
    ),
    "pixel unshuffle by hand": lambda h, x: (
        h.reshape(batch(x), WIDTH, h.shape[2] // 2, 2, -1, 2).permute(0, 1, 3, 5, 2, 4).flatten(4).mean((2, 3, 4))
    ),
}
# (batch, length, 12) to anything of which the mean is taken.
TOKENS_MIXED = {
    "reshape for transpose": lambda h, x: h.reshape(batch(x), WIDTH, x.shape[1]),
    "reshape for transpose, -1": lambda h, x: h.reshape(batch(x), WIDTH, -1),
    "of its own shape": lambda h, x: h.reshape(h.shape[0], h.shape[2], h.shape[1]),
    "rows of the length": lambda h, x: h.reshape(-1, x.shape[1]),
    "reshape_as": lambda h, x: h.reshape_as(h.mT),
    "unflatten": lambda h, x: h.flatten(1).unflatten(1, (WIDTH, -1)),
    "unflatten by name": lambda h, x: torch.unflatten(input=h.flatten(1), dim=-1, sizes=(WIDTH, x.shape[1])),
    "unflatten by the length": lambda h, x: h.flatten(1).unflatten(1, (-1, x.shape[1])),
}
TOKENS_ALIKE = {
    "all in a row": lambda h, x: h.reshape(-1, x.shape[1] * WIDTH),
    "two steps": lambda h, x: h.reshape(batch(x), -1, 2 * WIDTH),
    "each step": lambda h, x: h.reshape(-1, WIDTH),
    "each step, counted by a float": lambda h, x: h.reshape(int(batch(x) * x.shape[1] / 1.0), WIDTH),
    "each step, counted as halves": lambda h, x: h.view(int(0.5 * (2 * len(h)) * x.shape[1]), WIDTH),
    "each step, times a float": lambda h, x: torch.reshape(h, (int(len(h) * 2.0 * x.shape[1] / 2), -1)),
    "heads and back": lambda h, x: h.view(batch(x), -1, 4, 3).transpose(1, 2).transpose(1, 2).flatten(2),
}


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (4, 3, 4, 4)])
@pytest.mark.parametrize("name", [*IMAGES_MIXED, *IMAGES_ALIKE])
def test_images(name, shape):
    code = (IMAGES_MIXED | IMAGES_ALIKE)[name]
    found = holds(images_around(lambda h, x: (code(h, x).square() * 0.7).mean(-1), None), torch.randn(shape))
    assert (found.zigs == 20) is (name in IMAGES_ALIKE)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (4, 3, 4, 4)])
def test_a_grid_of_what_unbind_gives(shape):
    def code(h, x):
        one, other = h.reshape(batch(x), 2, WIDTH // 2, -1).permute(1, 0, 3, 2).unbind(0)
        return (one * other.sigmoid()).permute(0, 2, 1).reshape(batch(x), -1, h.shape[2], h.shape[3])

    found = holds(images_around(lambda h, x: code(h, x).flatten(1).square().mean(-1), None), torch.randn(shape))
    assert found.zigs == 14


class DownAndUp(nn.Module):
    """Space to depth and depth to space, with layers between, as einops has them: half a size times 2 is the size."""

    def __init__(self, up=(2, 2)):
        super().__init__()
        self.stem, self.down, self.mid, self.head, self.up = *_convolutions(3, 8, 32, 12), nn.Conv2d(8, 3, 1), up
        self.to_up = nn.Conv2d(12, 8 * up[0] * up[1], 1)

    def forward(self, x):
        y = self.stem(x).relu()
        b, c, h, w = y.shape
        y = y.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)
        y = self.to_up(self.mid(self.down(y).relu()).relu())
        b, c, h, w = y.shape
        p, q = self.up
        y = y.reshape(b, c // (p * q), p, q, h, w).permute(0, 1, 4, 2, 5, 3)
        return self.head(y.reshape(b, c // (p * q), h * p, w * q).tanh())


def _convolutions(channels, stem, down, mid):
    return nn.Conv2d(channels, stem, 3, padding=1), nn.Conv2d(down, mid, 1), nn.Conv2d(mid, mid, 3, padding=1)


@pytest.mark.parametrize("up", [(2, 2), (1, 3), (4, 2)], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (4, 12)], ids=str)
def test_half_a_size_is_a_whole_number(size, up):
    found = holds(DownAndUp(up), torch.randn(2, 3, *size), [torch.randn(1, 3, 12, 6)])
    assert found.zigs == 8 + 12 + 12 + 8


@pytest.mark.parametrize("name", IMAGES_SPELLED_OUT)
def test_sizes_that_code_spells_out_are_checked(name):
    """What tutorials do: the channels go, and on larger images, which would be mixed up, the graph says so."""
    code = IMAGES_SPELLED_OUT[name]
    model = images_around(lambda h, x: (code(h, x).square() * 0.7).mean(-1), None)
    found = holds(model, torch.randn(2, 3, 4, 4), [torch.randn(2, 3, 8, 8)], any_size=False)
    assert found.zigs == 20
    with pytest.raises(AssertionError, match=r"where dimension [123] of \w+ was \d.*test_reshapes.py:\d+ spells out"):
        found.small(torch.randn(2, 3, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("length", [2, 4, 12])
@pytest.mark.parametrize("name", [*TOKENS_MIXED, *TOKENS_ALIKE])
def test_tokens(name, length):
    code = (TOKENS_MIXED | TOKENS_ALIKE)[name]
    model = tokens_around(lambda h, x: (code(h, x).square() * 0.7).mean(-1), WIDTH, 0)
    found = holds(model, torch.randn(2, length, 4))
    assert (found.zigs == 20) is (name in TOKENS_ALIKE)


class Windowed(nn.Module):
    """A token of its channels is put before each window of 2 × 2 pixels."""

    def __init__(self, repeated):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, WIDTH, 3, padding=1)
        self.token, self.head, self.repeated = nn.Parameter(torch.randn(WIDTH)), nn.Linear(WIDTH, 3), repeated

    def forward(self, x):
        h = self.second(self.first(x).relu())
        rows, columns = h.shape[2] // 2, h.shape[3] // 2
        windows = h.reshape(len(h), WIDTH, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, WIDTH, 4)
        tokens = self.repeated(self.token, windows, 1 * (len(h) * rows * columns))
        return self.head(torch.cat([tokens, windows], -1).square().mean(-1)).view(len(h), -1, 3).mean(1)


REPEATED = {
    "expand": lambda token, windows, count: token[None].expand(windows.shape[0], -1).reshape(count, WIDTH, 1),
    "expand, of its own size": lambda token, windows, count: (
        token.unsqueeze(0).expand([windows.size(0), -1]).reshape([windows.size(0), WIDTH, 1])
    ),
    "expand, then view": lambda token, windows, count: token.expand(count, WIDTH).view(-1, WIDTH, 1),
    "repeat": lambda token, windows, count: token.repeat(count, 1).reshape(windows.shape[0], WIDTH, 1),
    "expand of all": lambda token, windows, count: token.view(1, -1, 1).expand(count, -1, 1),
}


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (3, 3, 4, 4)])  # 8 windows, and as many as channels
@pytest.mark.parametrize("name", REPEATED)
def test_a_token_before_each_window(name, shape):
    found = holds(Windowed(REPEATED[name]), torch.randn(shape), [torch.randn(2, 3, 6, 8), torch.randn(3, 3, 4, 8)])
    assert found.zigs == 20


PLACES = {
    "sliced": lambda places, n: places[:n].reshape(1, n, 4),
    "narrow": lambda places, n: places.narrow(0, 0, n).reshape(1, -1, 4),
    "index_select": lambda places, n: places.index_select(0, torch.arange(n)).view(-1, 4),
    "split": lambda places, n: places.split([n, len(places) - n])[0].reshape(-1, 4),
    "rolled": lambda places, n: places.flatten()[: 4 * n].view(n, 4),
    "gathered": lambda places, n: places.gather(0, torch.arange(n)[:, None].expand(-1, 4)).reshape(1, n, -1),
}


@pytest.mark.parametrize("length", [3, 4, 8])
@pytest.mark.parametrize("name", PLACES)
def test_a_table_of_which_the_inputs_take_a_part(name, length):
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.places, self.first, self.head = nn.Parameter(torch.randn(16, 4)), nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.first(x + PLACES[name](self.places, x.size(1))).relu())

    holds(Placed(), torch.randn(2, length, 4), [torch.randn(2, 5, 4), torch.randn(3, 12, 4)])
