"""Height and width of a square example are the same number: what code makes of each, as plain numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from support.kinds import images_around, tokens_around
from torch import nn

EXAMPLE = torch.randn(2, 3, 16, 16)
OTHERS = [torch.randn(2, 3, *size) for size in [(24, 16), (16, 24), (20, 36), (17, 16), (16, 19)]]


def _table(h, height, width):
    """A table of positions that is laid out anew, added to tokens."""
    grid = torch.arange(12.0).reshape(1, 12, 1, 1).repeat(1, 1, 2, 2).to(h)
    grid = F.interpolate(grid, size=[height, width], mode="bilinear")
    grid = grid.permute(0, 2, 3, 1).reshape(1, height * width, -1)
    tokens = F.interpolate(h, size=(height, width)).flatten(2).mT + grid
    return tokens.mT.unflatten(2, (height, width))


GRIDS = {
    "interpolate, of quarters": lambda h, x: F.interpolate(h, size=(int(x.shape[2] // 4), int(x.shape[3] // 4))),
    "interpolate, of halves": lambda h, x: F.interpolate(h, size=(round(x.shape[2] / 2), round(x.shape[3] / 2))),
    "interpolate, turned": lambda h, x: F.interpolate(h, size=(int(x.shape[3] // 4), int(x.shape[2] // 4))),
    "pooling": lambda h, x: F.adaptive_avg_pool2d(h, (int(h.size(2) // 3), int(h.size(3) // 3))),
    "ceil": lambda h, x: F.interpolate(h, size=(math.ceil(x.size(2) / 4), math.ceil(x.size(3) / 4))),
    "slices": lambda h, x: h[:, :, : int(x.size(2) // 4), : int(x.size(3) // 4)],
    "a product": lambda h, x: h.flatten(2)[..., : int(x.shape[2] // 4) * int(x.shape[3] // 2)][..., None],
    "a product, of one": lambda h, x: h.flatten(2)[..., : int(x.shape[3] // 4) * int(x.shape[3] // 4)][..., None],
    "a table": lambda h, x: _table(h, int(x.shape[2] // 4), int(x.shape[3] // 4)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_height_and_width_are_told_apart(name):
    compress_half(images_around(GRIDS[name], nn.Conv2d(12, 3, 1)), EXAMPLE, others=OTHERS, any_size=True)


def test_three_sizes_are_told_apart():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Conv3d(1, 8, 1), nn.Conv3d(8, 8, 1), nn.Conv3d(8, 3, 1)

        def forward(self, x):
            depth, height, width = (int(n // 4) for n in x.shape[2:])
            h = F.interpolate(self.second(self.first(x).relu()), size=(width, depth, height))
            return self.last(h.reshape(len(h), 8, int(depth) * int(width), height, 1))

    others = [torch.randn(2, 1, *size) for size in [(8, 8, 12), (12, 8, 8), (8, 12, 8), (4, 12, 16)]]
    compress_half(Net(), torch.randn(2, 1, 8, 8, 8), others=others, any_size=True)


def test_two_lengths_are_told_apart():
    model = tokens_around(lambda h, x: h.flatten(1)[:, : int(x.size(1) // 2) * int(x.size(0) + 2)], after=0)
    others = [torch.randn(*size, 4) for size in [(8, 12), (12, 8), (9, 16)]]
    compress_half(model, torch.randn(8, 8, 4), others=others)
