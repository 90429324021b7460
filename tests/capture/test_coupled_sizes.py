"""Inputs that must fit, such as a sequence and the same shifted by one: no size can be tried alone.

What code makes of such sizes holds at others, or is refused there, however it comes by plain numbers. So does what does
not show at the sizes that are tried.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fx_oto

FOLLOWED = {  # computed by the graph
    "arithmetic": lambda x: (x.shape[1] * 3 - 1) // 2 % 5 + divmod(x.shape[1], 3)[1],
    "math.sqrt": lambda x: math.sqrt(x.shape[1]),
    "numpy's root": lambda x: float(np.sqrt(x.shape[1])),
    "text": lambda x: float(f"{x.shape[1]}"),
    "len": lambda x: len(x[0]),
    "numpy's product": lambda x: int(np.prod(x.shape[1:])),
    "product": lambda x: math.prod(x.shape[1:]),
    "torch": lambda x: torch.arange(x.shape[1]).sum(),
}
PLAIN = {
    "half of a float": lambda x: float(x.shape[1]) / 2,
    "range": lambda x: len(range(x.shape[1])),
    "list": lambda x: len([0] * x.shape[1]),
    "bits": lambda x: x.shape[1].bit_length(),
    "int's method": lambda x: int.__mul__(x.shape[1], 2),
    "numpy": lambda x: float(np.arange(x.shape[1]).sum()),
    "an empty array": lambda x: np.empty((x.shape[1], 2)).size,
    "bytes": lambda x: struct.unpack("i", struct.pack("i", x.shape[1]))[0],
    "Fraction": lambda x: float(Fraction(x.shape[1], 2)),
    "logarithm": lambda x: math.log2(x.shape[1]),
    "binomial": lambda x: math.comb(x.shape[1], 2),
    "power": lambda x: pow(x.shape[1], 2, 7),
    "repeated": lambda x: len(list(itertools.repeat(1, x.shape[1]))),
    "formatted": lambda x: int("%d" % x.shape[1]),  # noqa: UP031
    "compared as texts": lambda x: 2.0 if str(x.shape[1]) < "6" else 1.0,
    "bisected": lambda x: bisect.bisect([1, 6, 8], x.shape[1]),
    "mean": lambda x: float(statistics.mean([x.shape[1], 2])),
    "its own class": lambda x: type(x.shape[1])(x.shape[1] / 2),
    "all elements": lambda x: x.shape.numel(),
    "a key": lambda x: {5: 1.0, 7: 2.0}.get(x.shape[1], 9.0),
    "a branch": lambda x: 2.0 if x.shape[1] > 6 else 1.0,
    "parts": lambda x: len(x.unbind(1)),
    "parts of two": lambda x: len(x.split(2, 1)),
    "the last part": lambda x: x.split(2, 1)[-1].mean(),
    "the last but one": lambda x: x.unbind(1)[-2].mean(),
    "from the first part on": lambda x: sum(part.mean() for part in x.unbind(1)[1:]),
    "rows": lambda x: sum(i for i, _ in enumerate(x[0])),
    "rows and others": lambda x: sum(i for i, _ in zip(range(100), x[0], strict=False)),
    "all parts": lambda x: torch.stack(x.unbind(1)).mean(0).sum(),
    "vmap": torch.vmap(lambda row: row.mean(0, keepdim=True) * row.shape[0]),
}


class Shifted(nn.Module):
    """Takes ``(batch, n, 4)`` and ``(batch, n + 1, 4)``."""

    def __init__(self, number):
        super().__init__()
        self.a, self.b, self.c, self.number = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2), number

    def forward(self, x, longer):
        h = self.a(x).relu() + self.a(longer)[:, 1:].relu()
        return self.c((self.b(h) * self.number(h)).relu())


class Scaled(nn.Module):
    """Takes images of ``(n, n)`` and of ``(2 n, 2 n)``."""

    def __init__(self, number):
        super().__init__()
        self.a, self.b, self.c, self.number = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 2, 1), number

    def forward(self, x, larger):
        h = self.a(x).relu() + self.b(larger).relu()
        return self.c(h * self.number(h.flatten(2).mT))


def shifted(batch, n):
    return torch.randn(batch, n, 4), torch.randn(batch, n + 1, 4)


def scaled(batch, n):
    return torch.randn(batch, 3, n, n), torch.randn(batch, 3, 2 * n, 2 * n)


SIZES = ((3, 5), (2, 7), (2, 8), (1, 13), (3, 6), (2, 4))


def taken(model, inputs, example=(2, 5), sizes=SIZES):
    """The sizes at which the graph returns what the model does; at all others it must refuse."""
    gm = fx_oto.prepare(model, inputs(*example))
    found = []
    for size in sizes:
        given = inputs(*size)
        expected = model(*given)
        try:
            made = gm(*given)
        except AssertionError:
            continue
        torch.testing.assert_close(made, expected)
        found.append(size)
    return found


@pytest.mark.parametrize("number", FOLLOWED.values(), ids=FOLLOWED)
def test_numbers_of_sizes_that_cannot_be_tried_are_computed(number):
    assert taken(Shifted(number).eval(), shifted) == list(SIZES)


@pytest.mark.parametrize("number", PLAIN.values(), ids=PLAIN)
def test_plain_numbers_of_sizes_that_cannot_be_tried_are_refused_at_others(number):
    assert (3, 5) in taken(Shifted(number).eval(), shifted)


@pytest.mark.parametrize("number", [FOLLOWED["math.sqrt"], PLAIN["range"], PLAIN["all parts"]])
def test_images_at_two_scales(number):
    found = taken(Scaled(number).eval(), scaled)
    assert found == list(SIZES) if number is FOLLOWED["math.sqrt"] else (3, 5) in found


QKV = {  # each of (3, heads, length, width)
    "reshaped": lambda h, n, w: h.reshape(n, 3, 2, w).permute(1, 2, 0, 3).unbind(0),
    "unflattened": lambda h, n, w: h.unflatten(-1, (3, 2, w)).permute(1, 2, 0, 3).unbind(0),
    "unflattened before": lambda h, n, w: [one.transpose(0, 1) for one in h.unflatten(1, (3, 2, w)).unbind(1)],
    "swapped": lambda h, n, w: h.view(n, 3, 2, w).transpose(0, 2).unbind(-3),
    "swapped twice": lambda h, n, w: h.view(n, 3, 2, w).swapdims(0, 1).transpose(1, 2).unbind(),
}


@pytest.mark.parametrize("split", QKV.values(), ids=QKV)
def test_layers_that_split_channels_take_all_sizes_and_can_go(split):
    class Attends(Shifted):
        def __init__(self):
            super().__init__(None)
            self.b = nn.Linear(8, 24)

        def forward(self, x, longer):
            h = self.a(x) + self.a(longer)[:-1]
            length, width = h.shape
            q, k, v = split(self.b(h), length, width // 2)
            return self.c(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(length, width))

    model = Attends().eval()
    gm = fx_oto.prepare(model, (torch.randn(5, 4), torch.randn(6, 4)))
    assert "_assert" not in str(gm.graph)  # that there are three
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm)
    assert small.b.out_features == 12
    for length in (5, 7, 8, 13):
        inputs = torch.randn(length, 4), torch.randn(length + 1, 4)
        for one in (gm, small):
            torch.testing.assert_close(one(*inputs), model(*inputs))


class Framed(nn.Module):
    """Takes waveforms of ``(1, 4 n - 2)``, and what is known of each four samples, ``(6, n)``."""

    def __init__(self, number, frames):
        super().__init__()
        self.a, self.b, self.c, self.frames = nn.Conv1d(1, 8, 1), nn.Conv1d(6, 8, 1), nn.Conv1d(8, 2, 1), frames
        self.number = number

    def forward(self, waveform, known):
        h = self.frames(self.a(waveform)).relu()
        return self.c((h + self.b(known)[..., : h.shape[-1]].relu()) * self.number(h.mT))


FRAMES = {
    "pooled": nn.MaxPool1d(4, ceil_mode=True),
    "strided": lambda h: h[..., ::4],
    "padded": lambda h: F.pad(h, (0, -h.shape[-1] % 4)).unflatten(-1, (-1, 4)).mean(-1),
    "unfolded": lambda h: F.pad(h, (0, 3)).unfold(-1, 4, 4).mean(-1),
}


def framed(batch, n):
    return torch.randn(batch, 1, 4 * n - 2), torch.randn(batch, 6, n)


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("number", [FOLLOWED["numpy's root"], PLAIN["range"], PLAIN["rows"], PLAIN["a key"]])
def test_frames_that_are_as_many_in_slightly_longer_waveforms(frames, number):
    found = taken(Framed(number, frames).eval(), framed)
    assert found == list(SIZES) if number is FOLLOWED["numpy's root"] else (3, 5) in found


@pytest.mark.filterwarnings("ignore:the graph takes batches")
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("number", [PLAIN["range"], PLAIN["rows"], FOLLOWED["text"]])
def test_of_every_second_image(number, size):
    """As many of three images as of four, and many more are too large to be tried."""

    class Second(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.a(x).relu().mean((2, 3))
            return self.b(h) * number(h[::2][None])

    def images(batch):
        return (torch.randn(batch, 3, 400, 400),)

    assert (size,) in taken(Second().eval(), images, (size,), ((1,), (2,), (3,), (4,), (5,), (8,)))


RESTS = {
    "multiplied": lambda h: int.__mul__(h.shape[1], 2) % 3,
    "of two": lambda h: [0.5, 2.0][h.shape[1] % 2 :][0],
    "listed": lambda h: len([0] * h.shape[1]) % 3,
    "numpy": lambda h: float(np.arange(h.shape[1]).sum() % 4),
    "counted": lambda h: len(range(h.shape[1])) % 8,
    "elements": lambda h: h[0].numel() % 3,
    "written": lambda h: int(f"{h.shape[1]}") % 4,
}
TAKEN = {
    "all": lambda h: h,
    "every second": lambda h: h[:, ::2],
    "pooled": lambda h: F.max_pool1d(h.mT, 4, ceil_mode=True).mT,
    "examples": lambda h: h.mT.mT.transpose(0, 1),
    "one more": lambda h: torch.cat([h, h[:, :1]], 1),
    "a third": lambda h: h.tensor_split(3, 1)[0],
}


@pytest.mark.filterwarnings("ignore:the graph takes batches")
@pytest.mark.parametrize("part", TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("rest", RESTS.values(), ids=RESTS)
@pytest.mark.parametrize("size", [(3, 6), (4, 9)], ids=str)
def test_rests_that_are_the_same_at_the_sizes_that_are_tried(rest, part, size):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.a(x).relu()
            return self.b(h) * rest(part(h))

    def sequences(batch, length):
        return (torch.randn(batch, length, 4),)

    others = ((size[0], 7), (size[0], 11), (size[0], 16), (5, size[1]), (7, size[1]))
    assert size in taken(Net().eval(), sequences, size, (*others, size))
