"""Channels that are merged with the examples of a batch, and split again."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto

BETWEEN = {
    "in groups": lambda x, b: x.reshape(b * 8, 6).view(b, 2, 4, 6).flatten(1, 2),
    "in groups again": lambda x, b: x.view(b, 2, 4, 6).flatten(0, 2).unflatten(0, (b, 2, 4)).reshape(b, 8, 6),
    "in groups of three": lambda x, b: x.reshape(b * 8, 6).view(b, 2, 2, 2, 6).relu().reshape(b, 8, 6),
    "turned": lambda x, b: x.reshape(b * 8, 6).view(b, 2, 4, 6).transpose(1, 2).reshape(b, 8, 6),
    "by batched products": lambda x, b: (
        (x.view(b, 2, 4, 2, 3).mT @ x.view(b, 2, 4, 2, 3))[..., :2].flatten(3).flatten(1, 2)
    ),
    "with places after them": lambda x, b: x.reshape(-1).view(b, 2, 4, 6).reshape(b, 8, 6),
    "with places in the middle": lambda x, b: x.flatten(1).view(b, 2, 4, 6).softmax(-1).flatten(1).view(b, 8, 6),
}


# What code creates for heads beside examples, as the scores that torch.baddbmm adds products to.
CREATED = {
    "zeros": lambda x, n: torch.zeros(n, 6),
    "ones": lambda x, n: torch.ones((n, 6)) * 0.5,
    "full": lambda x, n: torch.full((n, 6), 2.0),
    "new_zeros": lambda x, n: x.new_zeros(n, 6),
    "new_full": lambda x, n: x.new_full((n, x.size(-1)), 0.5),
    "expand": lambda x, n: x.mean((0, 1)).expand(n, 6),
    "expand of a number": lambda x, n: x.mean().view(1, 1).expand(n, 6),
    "broadcast_to": lambda x, n: torch.broadcast_to(x.mean((0, 1)), (n, 6)),
}


@pytest.mark.parametrize("name", CREATED)
def test_what_is_created_beside_the_batch_is_as_large_as_what_is_left(name):
    def move(x, b):
        merged = x.reshape(b * 8, 6)
        return (merged + CREATED[name](x, merged.size(0)).to(x.dtype)).view(b, 8, 6)

    found = compress_half(Between(move), torch.randn(2, 3, 6), others=[torch.randn(5, 3, 6)], any_size=True, sizes=1)
    assert found.params_left < 0.7


class Between(nn.Module):
    def __init__(self, move):
        super().__init__()
        self.first, self.last, self.move = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 4, 1), move

    def forward(self, x):
        return self.last(self.move(self.first(x).relu(), x.shape[0]))


@pytest.mark.parametrize("move", BETWEEN.values(), ids=BETWEEN)
def test_channels_go_that_were_merged_with_the_batch(move):
    found = compress_half(Between(move), torch.randn(2, 3, 6), others=[torch.randn(5, 3, 6)])
    assert found.params_left < 0.7
    assert ("first.weight", 0) not in {(axis.tensor, axis.dim) for axis in fx_oto.partition(found.gm).frozen}
