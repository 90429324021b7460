"""Reshapes of channels together with sizes: what is cut at another place on other inputs stays whole, nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.kinds import holds, images_around, tokens_around

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
