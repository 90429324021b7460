"""Reshapes of what was repeated some times, such as beams, views and samples, that leave the width to torch."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH = 12


class Repeated(nn.Module):
    """Some code repeats the units of a layer, ``(batch, length, 12)``, and merges the repeats with what is beside."""

    def __init__(self, repeat):
        super().__init__()
        self.a, self.b, self.repeat = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 4), repeat
        self.shift = nn.Parameter(torch.randn(3, 1, WIDTH))

    def forward(self, x):
        return self.b(self.repeat(self, self.a(x)).relu()).cumsum(0)  # repeats of one example are alike


def beams(h, n=3):
    return h.unsqueeze(1).expand(-1, n, -1, -1)


def merged(h, n=3):
    """``(batch, n, length, 12)`` to ``(batch n, length, 12)``."""
    return h.reshape(h.size(0) * n, h.size(2), -1)


REPEATS = {
    "expand": lambda m, h: merged(beams(h)),
    "expand, told in full": lambda m, h: merged(h[:, None].expand(h.size(0), 3, h.size(1), WIDTH)),
    "broadcast": lambda m, h: merged(torch.broadcast_to(h, (3, *h.shape)).transpose(0, 1)),
    "expand in front": lambda m, h: h.expand(3, -1, -1, -1).reshape(3 * h.size(0), h.size(1), -1),
    "expand as often as there are steps": lambda m, h: merged(beams(h, h.size(1)), h.size(1)),
    "stack": lambda m, h: torch.stack([h, h * 2], 1).view(2 * h.size(0), h.size(1), -1),
    "stack in front": lambda m, h: torch.stack((h, h * 2, -h)).view(-1, 3 * h.size(1), WIDTH),
    "stack behind": lambda m, h: torch.stack([h, h * 2], dim=-2).view(h.size(0), 2 * h.size(1), -1),
    "repeat": lambda m, h: h[:, :, None].repeat(1, 1, 3, 1).view(h.size(0), h.size(1) * 3, -1),
    "repeat along": lambda m, h: h.repeat(3, 1, 1).view(3, h.size(0), h.size(1), -1).mean(0),
    "repeat in front": lambda m, h: h.repeat(3, 1, 1, 1).view(3 * h.size(0), h.size(1), -1),
    "tile": lambda m, h: torch.tile(h, (3, 1)).view(h.size(0), 3, h.size(1), -1),
    "interleaved": lambda m, h: h.repeat_interleave(3, 0).view(h.size(0), 3, h.size(1), -1),
    "interleaved, by names": lambda m, h: torch.repeat_interleave(input=h, repeats=3, dim=1).view(
        h.size(0), h.size(1), 3, -1
    ),
    "interleaved twice": lambda m, h: (
        h.repeat_interleave(3, dim=0).repeat_interleave(2, dim=0).view(h.size(0), 2 * 3, h.size(1), -1)
    ),
    "channels, repeated": lambda m, h: h.repeat(1, 1, 3).view(h.size(0), h.size(1), 3, -1).sum(2),
    "channels, tiled": lambda m, h: torch.tile(h, (1, 1, 3)).relu().unflatten(2, (3, -1)).sum(2),
    "channels, side by side": lambda m, h: (
        torch.cat([h, h.relu(), h.tanh()], 2).view(h.size(0), h.size(1), 3, -1).sum(2)
    ),
    "channels, side by side as rows": lambda m, h: torch.cat([h] * 3, dim=-1).view(h.size(0), h.size(1) * 3, -1),
    "channels, interleaved": lambda m, h: h.repeat_interleave(3, 2).view(h.size(0), h.size(1), -1, 3).sum(3),
    "beams of their own": lambda m, h: merged((beams(h) + m.shift).relu()),
    "and back": lambda m, h: merged(beams(h)).view(h.size(0), 3, h.size(1), -1).amax(1),
    "as a number for each beam": lambda m, h: merged(beams(h)).sum(1).view(h.size(0), -1, WIDTH),
}


@pytest.mark.parametrize("name", REPEATS)
def test_channels_are_cut(name):
    torch.manual_seed(0)
    assert compress_half(Repeated(REPEATS[name]), torch.randn(2, 6, 5), any_size=True).zigs == WIDTH


# On inputs of other lengths, these return rows of another width.
MIXED = {
    "as many as steps": lambda m, h: beams(h, h.size(1)).reshape(h.size(0) * 3, h.size(1), -1)[..., :WIDTH],
    "as many as half the steps": lambda m, h: merged(beams(h, h.size(1) // 2))[..., :WIDTH],
    "repeat as many as steps": lambda m, h: h.repeat(h.size(1), 1, 1).view(h.size(0), 3, h.size(1), -1)[..., :WIDTH],
    "a repeat of steps": lambda m, h: h.repeat(1, 2, 1).view(h.size(0), 6, -1)[..., :WIDTH],
}


@pytest.mark.parametrize("name", MIXED)
def test_what_another_length_mixes_is_kept_whole(name):
    model = Repeated(MIXED[name])
    partition = fx_oto.partition(fx_oto.prepare(model, torch.randn(2, 6, 5)))
    assert partition.num_zigs == 0
    why = {str(axis.reason.why) for axis in partition.frozen}
    assert "it is mixed with a dimension whose size may be another one on other inputs" in why
