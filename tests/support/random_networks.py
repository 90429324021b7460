"""Random networks from the supported ops: branches, concatenations, splits, reshapes, gates, norms, shared modules."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import nn


class RandomNet(nn.Module):
    """A straight line of random steps over a pool of feature maps, all of one spatial size.

    Args:
        choose: source of randomness; the same seed builds the same network.
        steps: how many steps to take.
    """

    def __init__(self, choose: random.Random, steps: int):
        super().__init__()
        self.layers = nn.ModuleList()
        self.program = []
        widths = [4]
        for _ in range(steps):
            kind = choose.choice(KINDS)
            source = choose.randrange(len(widths))
            plan = kind(self, choose, widths, source)
            if plan is not None:
                step, width = plan
                self.program.append((source, step))
                widths.append(width)
        self.last = nn.Conv2d(widths[-1], 5, 3, padding=1)
        self.head = nn.Linear(5 + widths[len(widths) // 2], 3)

    def keep(self, layer: nn.Module) -> nn.Module:
        self.layers.append(layer)
        return layer

    def forward(self, x):
        pool = [x]
        for source, step in self.program:
            pool.append(step(pool, pool[source]))
        pooled = torch.cat([F.relu(self.last(pool[-1])).mean((2, 3)), pool[len(pool) // 2].amax((2, 3))], 1)
        return self.head(pooled)


def convolution(net, choose, widths, source):
    width, kernel = choose.choice((4, 6, 8, 12)), choose.choice((1, 3))
    layer = net.keep(nn.Conv2d(widths[source], width, kernel, padding=kernel // 2, bias=choose.random() < 0.5))
    return (lambda pool, x: layer(x)), width


def grouped(net, choose, widths, source):
    groups = choose.choice([g for g in (2, 3, 4, widths[source]) if widths[source] % g == 0])
    width = groups * choose.choice((1, 2, 3))
    layer = net.keep(nn.Conv2d(widths[source], width, 3, padding=1, groups=groups))
    return (lambda pool, x: layer(x)), width


def transposed(net, choose, widths, source):
    groups = choose.choice([g for g in (1, 2) if widths[source] % g == 0])
    layer = net.keep(nn.ConvTranspose2d(widths[source], 6, 3, padding=1, groups=groups))
    return (lambda pool, x: layer(x)), 6


def norm(net, choose, widths, source):
    width = widths[source]
    groups = choose.choice([g for g in (1, 2, width) if width % g == 0])
    layer = net.keep(choose.choice((nn.BatchNorm2d(width), nn.GroupNorm(groups, width))))
    return (lambda pool, x: layer(x)), width


def channels_last_norm(net, choose, widths, source):
    layer = net.keep(nn.LayerNorm(widths[source]))
    return (lambda pool, x: layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), widths[source]


def activation(net, choose, widths, source):
    function = choose.choice((F.relu, F.gelu, F.silu, torch.tanh, F.hardswish, torch.sigmoid))
    return (lambda pool, x: function(x)), widths[source]


def add(net, choose, widths, source):
    others = [i for i, width in enumerate(widths) if width == widths[source]]
    other, times = choose.choice(others), choose.random() < 0.3
    return (lambda pool, x: x * pool[other] if times else x + pool[other]), widths[source]


def concatenate(net, choose, widths, source):
    other = choose.randrange(len(widths))
    if widths[source] + widths[other] > 24:
        return None
    return (lambda pool, x: torch.cat([x, pool[other]], 1)), widths[source] + widths[other]


def halves(net, choose, widths, source):
    if widths[source] % 2:
        return None
    which, how = choose.randrange(2), choose.randrange(3)
    width = widths[source] // 2

    def step(pool, x):
        if how == 0:
            return x.chunk(2, 1)[which]
        if how == 1:
            return torch.split(x, [width, width], 1)[which]
        return x[:, which * width : (which + 1) * width]

    return step, width


def strided(net, choose, widths, source):
    start = choose.randrange(2)
    if widths[source] < 2:
        return None
    return (lambda pool, x: x[:, start::2]), (widths[source] - start + 1) // 2


def shuffle(net, choose, widths, source):
    width = widths[source]
    groups = choose.choice([g for g in (1, 2, 3) if width % g == 0])
    inside = choose.random() < 0.3

    def step(pool, x):
        n, c, h, w = x.size()
        x = x.view(n, groups, c // groups, h, w)
        x = F.relu(x) if inside else x
        return x.transpose(1, 2).reshape(n, c, h, w)

    return step, width


def gate(net, choose, widths, source):
    width = widths[source]
    first, second = net.keep(nn.Conv2d(width, 4, 1)), net.keep(nn.Conv2d(4, width, 1))
    return (lambda pool, x: x * torch.sigmoid(second(F.relu(first(x.mean((2, 3), keepdim=True)))))), width


def scale(net, choose, widths, source):
    weight = net.keep(nn.BatchNorm2d(widths[source])).weight
    return (lambda pool, x: x * weight.view(-1, 1, 1)), widths[source]


def shared(net, choose, widths, source):
    fitting = [layer for layer in net.layers if isinstance(layer, nn.Conv2d) and layer.in_channels == widths[source]]
    if not fitting:
        return None
    layer = choose.choice(fitting)
    return (lambda pool, x: layer(x)), layer.out_channels


def spatial(net, choose, widths, source):
    kind = choose.randrange(4)

    def step(pool, x):
        if kind == 0:
            return F.interpolate(F.max_pool2d(x, 2), scale_factor=2)
        if kind == 1:
            return F.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1]
        if kind == 2:
            return F.avg_pool2d(x, 3, 1, 1)
        return x.flatten(2).transpose(1, 2).reshape(x.shape[0], 6, 6, -1).permute(0, 3, 1, 2)

    return step, widths[source]


def pixels(net, choose, widths, source):
    if widths[source] % 4:
        return None
    return (lambda pool, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2)), widths[source]


def channels_last_mlp(net, choose, widths, source):
    width = widths[source]
    first, second = net.keep(nn.Linear(width, 8)), net.keep(nn.Linear(8, width))
    return (lambda pool, x: x + second(F.gelu(first(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)), width


def selective(net, choose, widths, source):
    others = [i for i, width in enumerate(widths) if width == widths[source]]
    other, width = choose.choice(others), widths[source]
    gates = net.keep(nn.Linear(width, 2 * width))

    def step(pool, x):
        both = torch.stack([x, pool[other]], 1)
        weights = gates(both.sum(1).mean((2, 3))).view(-1, 2, width).softmax(1)
        return (both * weights[..., None, None]).sum(1)

    return step, width


def pixel_mlp(net, choose, widths, source):
    first, second = net.keep(nn.Linear(36, 5)), net.keep(nn.Linear(5, 36))
    return (lambda pool, x: second(torch.tanh(first(x.flatten(2)))).view(x.shape)), widths[source]


def repeated(net, choose, widths, source):
    if widths[source] > 8:
        return None
    how = choose.randrange(3)

    def step(pool, x):
        if how == 0:
            return x.repeat(1, 2, 1, 1)
        if how == 1:
            return torch.cat([x, x.flip(1)], 1)
        return torch.stack([x, x], 2).flatten(1, 2)

    return step, 2 * widths[source]


def channel_mean(net, choose, widths, source):
    total = choose.random() < 0.5
    return (lambda pool, x: x - (x.sum(1, keepdim=True) if total else x.mean(1, keepdim=True))), widths[source]


KINDS = (
    *(convolution, convolution, convolution, convolution, grouped, transposed, norm, norm, channels_last_norm),
    *(activation, activation, add, add, concatenate, concatenate, halves, strided, shuffle, gate, scale, shared),
    *(spatial, pixels, channel_mean, channels_last_mlp, selective, pixel_mlp, repeated),
)
