"""Windows of size 1 along the channels: pooling, resizing, convolutions and unfolding of (N, 1, length, channels)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH = 8


class Net(nn.Module):
    """Tokens, what ``code`` does to them as an image of one channel, and a second layer."""

    def __init__(self, code, module=None):
        super().__init__()
        self.a, self.b, self.c, self.code, self.module = (
            nn.Linear(6, WIDTH),
            nn.Linear(WIDTH, 5),
            nn.Linear(5, 3),
            code,
            module,
        )
        self.taps, self.bias = nn.Parameter(torch.randn(1, 1, 3, 1)), nn.Parameter(torch.randn(1))
        self.band, self.shift = nn.Parameter(torch.randn(6, 6, 3)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        x = self.a(x)
        return self.c(self.b(self.code(self, x) if self.module is None else self.module(x[:, None])[:, 0]).relu())


def unfolded(m, x):
    """Sums of three tokens each."""
    return F.unfold(x[:, None], (3, 1), padding=(1, 0)).unflatten(1, (1, 3)).sum(2).unflatten(-1, x.shape[1:])[:, 0]


PASSING = {
    "mean": lambda m, x: F.avg_pool2d(x[:, None], (2, 1), stride=(2, 1))[:, 0],
    "mean, padded": lambda m, x: F.avg_pool2d(x[:, None], (3, 1), (2, 1), (1, 0), count_include_pad=False)[:, 0],
    "mean of an unpadded end": lambda m, x: F.avg_pool2d(x[:, None], (4, 1), (4, 1), ceil_mode=True)[:, 0],
    "mean, divided by 3": lambda m, x: F.avg_pool2d(x[:, None], (2, 1), divisor_override=3)[:, 0],
    "mean of a gate": lambda m, x: F.avg_pool2d(x[:, None].sigmoid(), (2, 1))[:, 0],
    "mean of one": lambda m, x: F.avg_pool1d(x, 1, 1),
    "mean in three": lambda m, x: F.avg_pool3d(x[:, None, :, None], (2, 1, 1))[:, 0, :, 0],
    "largest": lambda m, x: F.max_pool2d(x[:, None], (3, 1), stride=(2, 1), padding=(1, 0))[:, 0],
    "largest of one": lambda m, x: F.max_pool1d(x, 1, 1),
    "largest in three": lambda m, x: F.max_pool3d(x[:, None, :, None], (2, 1, 1))[:, 0, :, 0],
    "norm": lambda m, x: F.lp_pool2d(x[:, None], 2, (2, 1), stride=(2, 1))[:, 0],
    "to a number": lambda m, x: F.adaptive_avg_pool2d(x[:, None], (3, WIDTH))[:, 0],
    "to as many": lambda m, x: F.adaptive_avg_pool2d(x[:, None], (3, None))[:, 0],
    "to its size": lambda m, x: F.adaptive_max_pool2d(x[:, None], (3, x.size(-1)))[:, 0],
    "twice as long": lambda m, x: F.interpolate(x[:, None], scale_factor=(2, 1))[:, 0],
    "twice as long, linear": lambda m, x: F.interpolate(x[:, None], scale_factor=(2, 1), mode="bilinear")[:, 0],
    "of a size": lambda m, x: F.interpolate(x[:, None], size=(9, WIDTH), mode="bicubic", align_corners=True)[:, 0],
    "of its width": lambda m, x: F.interpolate(x[:, None, ::2], size=(9, x.shape[2]))[:, 0],
    "reflected": lambda m, x: F.pad(x[:, None], (0, 0, 1, 1), mode="reflect")[:, 0],
    "repeated at the ends": lambda m, x: F.pad(x[:, None], (0, 0, 2, 1), mode="replicate")[:, 0],
    "one by one": lambda m, x: x.unfold(2, 1, 1).squeeze(-1),
    "unfolded": unfolded,
    "unfolded one by one": lambda m, x: F.unfold(x.transpose(1, 2)[..., None], 1).transpose(1, 2),
    "convolution": lambda m, x: F.conv2d(x[:, None], m.taps, padding=(1, 0))[:, 0],
    "convolution, bias": lambda m, x: F.conv2d(x[:, None].sigmoid(), m.taps, m.bias, padding=(1, 0))[:, 0],
    "convolution in three": lambda m, x: F.conv3d(x[:, None, :, None], m.taps[..., None])[:, 0, :, 0],
    "transposed": lambda m, x: F.conv_transpose2d(x[:, None], m.taps, stride=(2, 1))[:, 0],
    "neighbours of one": lambda m, x: F.local_response_norm(x.transpose(1, 2), 1).transpose(1, 2),
    "AvgPool2d": nn.AvgPool2d((2, 1)),
    "MaxPool2d": nn.MaxPool2d((3, 1), stride=1, padding=(1, 0)),
    "AdaptiveAvgPool2d": nn.AdaptiveAvgPool2d((3, None)),
    "Upsample": nn.Upsample(scale_factor=(2, 1)),
    "ReflectionPad2d": nn.ReflectionPad2d((0, 0, 1, 1)),
    "Conv2d": nn.Conv2d(1, 1, (3, 1), padding=(1, 0)),
    "three at a time": nn.Conv2d(1, 1, 3, padding=1),
    "three at a time, without a batch": lambda m, x: x + F.conv1d(x[0], m.band, padding=1),
    "five, and a bias": lambda m, x: F.conv1d(x, m.band, m.shift, padding=2, dilation=2),
    "as long as before": lambda m, x: F.conv1d(x, m.band, padding="same"),
    "three, in three": lambda m, x: F.conv3d(x[:, None, :, None], m.taps.mT[..., None, :], padding=(0, 0, 1))[
        :, 0, :, 0
    ],
    "a gate of neighbours": lambda m, x: (
        x * F.conv1d(x.mean(1, keepdim=True), m.taps[..., 0], m.bias, padding=1).sigmoid()
    ),
    "a product of both": lambda m, x: F.conv1d(x.tanh(), m.band, padding=1) * x,
    "ConvTranspose2d": nn.ConvTranspose2d(1, 1, (2, 1), stride=(2, 1)),
}
SLIDING = {
    "every other": lambda m, x: F.max_pool2d(x[:, None], 1, stride=(1, 2))[:, 0].repeat(1, 1, 2),
    "a little wider": lambda m, x: F.interpolate(x[:, None], scale_factor=(2, 1.04), mode="bilinear")[:, 0],
    "places": lambda m, x: F.max_pool2d(x[:, None], (2, 1), return_indices=True)[0][:, 0],
    "whole rows": lambda m, x: F.unfold(x[:, None], (1, WIDTH)).transpose(1, 2),
    "Upsample": nn.Upsample(size=(9, WIDTH)),
    "AdaptiveAvgPool2d": nn.AdaptiveAvgPool2d((3, WIDTH)),
    "three at a time, not beyond the ends": lambda m, x: F.pad(F.conv1d(x, m.band), (1, 1)),
    "three at a time, around the ends": nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"),
    "every other of three": lambda m, x: F.conv1d(x, m.band, padding=1, stride=2).repeat(1, 1, 2),
    "a window of two": lambda m, x: F.conv1d(x, m.band[..., :2], padding=1)[..., 1:],
    "three at a time, twice": nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)),
    "three at a time of what is not zero": lambda m, x: F.conv1d(x.sigmoid(), m.band, padding=1),
}


def _net(code):
    return Net(None, code) if isinstance(code, nn.Module) else Net(code)


@pytest.mark.parametrize("name", PASSING)
def test_channels_pass(name):
    torch.manual_seed(0)
    assert compress_half(_net(PASSING[name]), torch.randn(2, 6, 6)).zigs == WIDTH + 5


@pytest.mark.parametrize("name", SLIDING)
def test_what_slides_keeps_them(name):
    torch.manual_seed(0)
    assert compress_half(_net(SLIDING[name]), torch.randn(2, 6, 6)).zigs == 5


@pytest.mark.parametrize("name", ["mean", "convolution"])
def test_heads_and_widths(name):
    """Of a grid (2, 4) of channels, whole rows or columns go: the four of the second dimension, of both heads."""
    torch.manual_seed(0)
    pools = {
        "mean": lambda m, x: F.avg_pool3d(x, (2, 1, 1)),
        "convolution": lambda m, x: F.conv3d(x, m.taps[..., None], padding=(1, 0, 0)),
    }
    found = compress_half(
        Net(lambda m, x: pools[name](m, x.unflatten(2, (2, 4))[:, None]).flatten(3)[:, 0]), torch.randn(2, 6, 6)
    )
    assert found.zigs == 4 + 5


def test_multiply_adds_are_counted():
    net, x = Net(PASSING["convolution"]), torch.randn(2, 6, 6)
    gm = fx_oto.prepare(net, x)
    ((_, _, foretold),) = fx_oto.partition(gm).forecast(0.5).rows
    fx_oto.partition(gm).zero_(0.5)
    assert fx_oto.cost(fx_oto.compress(gm), x).macs == foretold


class Unpooled(nn.Module):
    """Puts other values, of another layer, where the largest of the first were, as SegNet does."""

    def __init__(self, ndim, functional, sized):
        super().__init__()
        self.ndim, self.functional, self.sized = ndim, functional, sized
        conv = getattr(nn, f"Conv{ndim}d")
        self.a, self.b, self.c = conv(3, 16, 3, padding=1), conv(16, 8, 3, padding=1), conv(8, 16, 1)
        self.d = conv(16, 2, 3, padding=1)
        self.pool = getattr(nn, f"MaxPool{ndim}d")(2, return_indices=True)
        self.unpool = getattr(nn, f"MaxUnpool{ndim}d")(2)

    def forward(self, x):
        x = self.a(x).relu()
        size = x.size() if self.sized else None
        if self.functional:
            x, places = getattr(F, f"max_pool{self.ndim}d")(x, 2, return_indices=True)
            unpool = getattr(F, f"max_unpool{self.ndim}d")
            return self.d(unpool(self.c(self.b(x).relu()), places, 2, output_size=size))
        x, places = self.pool(x)
        return self.d(self.unpool(self.c(self.b(x).relu()), places, output_size=size))


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_what_is_unpooled_shares_channels_with_its_places(ndim, functional, sized):
    found = compress_half(Unpooled(ndim, functional, sized), torch.randn(2, 3, *[9 if sized else 8] * ndim))
    assert found.zigs == 16 + 8


def test_places_that_are_returned_are_kept_with_what_is_put_there():
    class Returning(Unpooled):
        def forward(self, x):
            x, places = self.pool(self.a(x).relu())
            return self.d(self.unpool(self.c(self.b(x).relu()), places)), places

    assert compress_half(Returning(2, False, False), torch.randn(2, 3, 8, 8)).zigs == 8
