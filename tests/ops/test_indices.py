"""Indexing channels by lists that code writes out, which is as good as by a constant tensor."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH = 8


class Indexed(nn.Module):
    """Channels of a convolution are taken by some code, which leaves ``after`` of them."""

    def __init__(self, take, after):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(after, 6, 1)
        self.c, self.take, self.order = nn.Conv2d(6, 2, 1), take, [3, 1, 0, 2, 7, 6, 5, 4]

    def forward(self, x):
        return self.c(self.b(self.take(self, self.a(x)).relu()).relu())


# Each with how many channels it returns.
TAKES = {
    "all, in another order": (lambda m, x: x[:, m.order], 8),
    "from the end": (lambda m, x: x[:, [3, -1, 0, -2]], 4),
    "twice": (lambda m, x: x[:, [3, 3, 1, 1]], 4),
    "behind an ellipsis": (lambda m, x: x[..., [2, 0, 1], :, :], 3),
    "a tuple": (lambda m, x: x[:, (3, 1, 0, 2)], 4),
    "a range": (lambda m, x: x[:, range(1, 8, 3)], 3),
    "truth values": (lambda m, x: x[:, [True, False] * 4], 4),
    "lists in a list": (lambda m, x: x[:, [[3, 1], [0, 2]]].flatten(1, 2), 4),
    "lists in a list, one read alone": (lambda m, x: x[:, [[3, 1, 0], [2, 7, 6]]].relu().mean(1), 3),
    "one list in a tuple": (lambda m, x: x[:, ([3, 1, 0, 2],)].squeeze(1), 4),
    "first": (lambda m, x: x.movedim(1, 0)[[3, 1, 0]].movedim(0, 1), 3),
    "last": (lambda m, x: x.movedim(1, -1)[..., [2, 0, 1]].movedim(-1, 1), 3),
    "beside a slice": (lambda m, x: x[:, [0, 2, 5], :3], 3),
    "beside a slice of a size": (lambda m, x: x[:, [0, 2, 5], : x.size(2) - 1], 3),
    "beside a new dimension": (lambda m, x: x[:, [0, 2, 5], None].squeeze(2), 3),
    "the number of channels": (lambda m, x: x[:, [x.size(1) - 1, 0, 1]], 3),
    "columns of pixels": (lambda m, x: x[..., [0, 1, 0]], 8),
    "within groups": (lambda m, x: x.unflatten(1, (2, 4))[:, :, [3, 1, 0]].flatten(1, 2), 6),
    "of groups": (lambda m, x: x.unflatten(1, (2, 4))[:, [1, 0]].flatten(1, 2), 8),
}
# Pairs of channels go together, and two that are not taken by themselves.
JOINED = {"lists in a list, one read alone": 5}


@pytest.mark.parametrize("name", TAKES)
def test_lists_of_numbers(name):
    torch.manual_seed(0)
    take, after = TAKES[name]
    found = compress_half(Indexed(take, after), torch.randn(3, 3, 6, 6), any_size=True)
    assert found.zigs == JOINED.get(name, WIDTH) + 6


@pytest.mark.parametrize(
    ("take", "after"),
    [(lambda m, x: x[:, [x.size(0), 0, 1]], 3), (lambda m, x: x[:, [0, 2], [1, 0]].unsqueeze(2), 2)],
    ids=["a list with the size of a batch", "two lists"],
)
def test_other_lists_keep_what_they_index_whole(take, after):
    model = Indexed(take, after)
    partition = fx_oto.partition(fx_oto.prepare(model, torch.randn(3, 3, 6, 6)))
    assert [family.name for family in partition.families] == ["b.weight"]


@pytest.mark.parametrize("in_a_buffer", [False, True])
def test_a_mask_of_several_dimensions(in_a_buffer):
    mask = torch.zeros(WIDTH, 6, dtype=torch.bool)
    mask[[0, 2, 5, 5], [1, 2, 3, 5]] = True

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b = nn.Linear(5, 7), nn.Linear(7, WIDTH), nn.Linear(4, 3)
            self.register_buffer("mask", mask)

        def forward(self, x):
            h = self.a(self.first(x))[:, :, None].expand(-1, -1, 6)
            return self.b(h[:, self.mask if in_a_buffer else mask.tolist()])

    assert compress_half(Masked(), torch.randn(3, 5)).zigs == 7
