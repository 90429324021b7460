"""Example dimensions of one: a reshape that mixes them with channels is seen all the same, or the size is fixed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.kinds import holds, images_around, tokens_around
from torch import nn

WIDTH = 12


def scrambled(h, x):
    """A reshape where a transpose was meant: wrong, but common, and trained so."""
    return h.reshape(x.shape[0], WIDTH, x.shape[1])


def asked(h, rows):
    """As many libraries' attention does."""
    if h.size() != (rows, h.size(1), 3):
        raise ValueError(h.shape)
    return h.softmax(-1)


# (batch, length, 12) to anything of whose squares the mean is taken, for that of a softmax is always the same.
ON_TOKENS = {
    "reshape for transpose": scrambled,
    "view for transpose": lambda h, x: h.contiguous().view(-1, WIDTH, h.size(1)),
    "reshape to the length last, then a softmax": lambda h, x: scrambled(h, x).softmax(-1),
    "reshape to the length last, then a norm": lambda h, x: F.normalize(scrambled(h, x), dim=1),
    "channels before the batch": lambda h, x: h.reshape(WIDTH, -1).cumsum(0),
    "channels before the batch, turned": lambda h, x: h.reshape(WIDTH, -1).t().softmax(-1),
    "length and batch exchanged": lambda h, x: h.reshape(x.shape[1], x.shape[0], WIDTH).cumsum(0),
    "all in one row": lambda h, x: h.reshape(1, -1).cumsum(1),
    "halves of the channels and the length": lambda h, x: h.reshape(x.shape[0], 2, -1, WIDTH // 2).softmax(1),
    "flattened with the length": lambda h, x: h.flatten(1).reshape(x.shape[0], -1, 3).cumsum(1),
    "flattened with the batch": lambda h, x: h.flatten(0, 1).reshape(-1, 4, 3).amax(1),
    "squeezed": lambda h, x: h.squeeze(1).cumsum(-1),
    "squeezed wherever": lambda h, x: h.squeeze().cumsum(-1),
    "length moved, then reshaped": lambda h, x: h.transpose(1, 2).reshape(h.shape).cumsum(-1),
    "expanded": lambda h, x: h.expand(x.shape[0], -1, WIDTH) * h[:, :1],
    "matrix of each example": lambda h, x: h @ h.mT,
    "matrix over the batch": lambda h, x: h.transpose(0, 1) @ h.permute(1, 2, 0),
    "mean over the length": lambda h, x: h - h.mean(1, keepdim=True),
    "softmax over the length": lambda h, x: h.softmax(1),
    "softmax over the batch": lambda h, x: h.softmax(0),
    "cumulated along the length": lambda h, x: h.cumsum(1),
    "as images": lambda h, x: F.avg_pool2d(h.reshape(x.shape[0], 3, 4, -1), (2, 1)),
    "heads in the batch": lambda h, x: h.reshape(-1, h.shape[1], 3).softmax(-1),
    "heads in the batch, of which code asks": lambda h, x: asked(
        h.unflatten(-1, (4, 3)).transpose(1, 2).flatten(0, 1), x.shape[0] * 4
    ),
    "heads in the batch, as they should be": lambda h, x: h.unflatten(-1, (4, 3)).transpose(1, 2).flatten(0, 1),
}
EXAMPLES = {"length": (2, 1, 4), "batch": (1, 6, 4), "both": (1, 1, 4), "none": (2, 6, 4)}
TOKENS = [torch.randn(shape) for shape in ((3, 5, 4), (1, 5, 4), (4, 1, 4), (2, 8, 4))]


@pytest.mark.parametrize("one", EXAMPLES)
@pytest.mark.parametrize("name", ON_TOKENS)
def test_tokens(name, one):
    code = ON_TOKENS[name]
    model = tokens_around(lambda h, x: (code(h, x).square() * torch.tensor(0.7)).mean(-1), WIDTH, 0)
    holds(model, torch.randn(EXAMPLES[one]), TOKENS)


ON_IMAGES = {
    "pixels before channels": lambda h, x: h.reshape(x.shape[0], -1, WIDTH),
    "height and channels exchanged": lambda h, x: h.reshape(x.shape[0], x.shape[2], WIDTH, x.shape[3]).cumsum(2),
    "one row of pixels": lambda h, x: h.flatten(1).reshape(x.shape[0], -1, 4).cumsum(1),
    "squeezed": lambda h, x: h.squeeze(-1).cumsum(1),
    "flattened pixels": lambda h, x: h.flatten(2).cumsum(-1),
    "permuted, as it should be": lambda h, x: h.flatten(2).mT,
    "pooled by halves": lambda h, x: F.adaptive_max_pool2d(h, (1, 1)),
    "softmax over pixels": lambda h, x: h.flatten(2).softmax(-1).view(h.shape),
    "channels in the batch": lambda h, x: h.reshape(-1, 1, *h.shape[2:]).cumsum(0),
}
IMAGES = [torch.randn(shape) for shape in ((2, 3, 4, 6), (1, 3, 5, 5), (3, 3, 1, 1))]


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 1, 6), (2, 3, 6, 1), (1, 3, 6, 6), (1, 3, 1, 1)])
@pytest.mark.parametrize("name", ON_IMAGES)
def test_images(name, shape):
    code = ON_IMAGES[name]
    model = images_around(lambda h, x: code(h, x).flatten(1).mean(-1), None)
    holds(model, torch.randn(shape), IMAGES)


class OfTwo(nn.Module):
    """Two inputs, of which one has a single step that is broadcast along the other's."""

    def __init__(self, combine):
        super().__init__()
        self.a, self.b, self.c, self.combine = nn.Linear(4, WIDTH), nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3), combine

    def forward(self, x, y):
        return self.c(self.combine(torch.tanh(self.a(x)), torch.tanh(self.b(y))))


COMBINED = {
    "times": lambda x, y: x * y,
    "plus, expanded": lambda x, y: x + y.expand_as(x),
    "attention": lambda x, y: F.scaled_dot_product_attention(x, y, y),
    "joined": lambda x, y: torch.cat([x, y], 1).cumsum(1),
    "joined by channel": lambda x, y: torch.cat([x[..., :5], y.mean(1, True).expand(-1, x.shape[1], -1)[..., 5:]], -1),
}


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("name", COMBINED)
def test_an_input_of_one_step(name, steps):
    pair = lambda batch, one, other: (torch.randn(batch, one, 4), torch.randn(batch, other, 6))  # noqa: E731
    others = [pair(3, 5, 1), pair(1, 1, 1), *([] if "times" in name or "plus" in name else [pair(2, 5, 4)])]
    if steps == 1:
        holds(OfTwo(COMBINED[name]), pair(2, 1, 1), others)
    holds(OfTwo(COMBINED[name]), pair(2, 5, 1), others)
    holds(OfTwo(COMBINED[name]), pair(1, 5, 1), others)
