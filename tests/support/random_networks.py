"""Random networks from the supported ops: a stage on images, then perhaps one on tokens.

A network is written down by a plan: a list of blocks, each a name and a seed, so that what fails can be shortened block
by block and kept as a test. A block takes one value of the pool of its stage, and maybe others, and adds one.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import nn

from support.random_sizes import SIZED, SIZED_TOKENS
from support.random_tokens import TOKENS, add


class Stage(nn.Module):
    """A straight line of random steps over a pool of values of one kind, of any width.

    Args:
        plan: for each step, the function that builds it and the source of its randomness.
        width: of the first value.
    """

    def __init__(self, plan, width):
        super().__init__()
        self.layers = nn.ModuleList()
        self.weights = nn.ParameterList()
        self.program = []
        self.widths = [width]
        for kind, choose in plan:
            source = choose.randrange(len(self.widths))
            made = kind(self, choose, self.widths, source)
            if made is not None:
                step, width = made
                self.program.append((source, step))
                self.widths.append(width)

    def keep(self, layer: nn.Module) -> nn.Module:
        self.layers.append(layer)
        return layer

    def weight(self, *shape: int):
        """A function that reads a new parameter from the module, as code that is traced must do."""
        self.weights.append(nn.Parameter(torch.randn(shape)))
        place = len(self.weights) - 1
        return lambda: self.weights[place]

    def forward(self, x):
        pool = [x]
        for source, step in self.program:
            pool.append(step(pool, pool[source]))
        return pool[-1], pool[len(pool) // 2]


class RandomNet(nn.Module):
    """A stage on images of 4 × 6 × 6, pooled; its end may go through a stage on five tokens."""

    def __init__(self, images, tokens=None):
        super().__init__()
        self.images = Stage(images, 4)
        self.last = nn.Conv2d(self.images.widths[-1], 5, 3, padding=1)
        width, self.tokens = 5, None
        if tokens is not None:
            self.embed, self.token = nn.Linear(5, 8), nn.Parameter(torch.randn(1, 1, 8))
            self.tokens = Stage(tokens, 8)
            width = self.tokens.widths[-1] + self.tokens.widths[len(self.tokens.widths) // 2]
        self.head = nn.Linear(width + self.images.widths[len(self.images.widths) // 2], 3)

    def forward(self, x):
        end, middle = self.images(x)
        end, middle = F.relu(self.last(end)), middle.amax((2, 3))
        if self.tokens is None:
            return self.head(torch.cat([end.mean((2, 3)), middle], 1))
        patches = self.embed(F.avg_pool2d(end, 3).flatten(2).transpose(1, 2))
        last, other = self.tokens(torch.cat([self.token.expand(x.size(0), -1, -1), patches], 1))
        return self.head(torch.cat([last[:, 0], other.mean(1), middle], 1))


def by_plan(images, tokens=None):
    """The network that lists of ``(name, seed)`` stand for."""
    tables = {**IMAGES, **SIZED}, {**TOKENS, **SIZED_TOKENS}
    plans = [
        None if plan is None else [(table[name], random.Random(seed)) for name, seed in plan]
        for plan, table in zip((images, tokens), tables, strict=True)
    ]
    return RandomNet(*plans)


def by_seed(seed):
    """A network on images alone, of 3 to 14 blocks."""
    choose = random.Random(seed)
    return RandomNet((choose.choice(KINDS), choose) for _ in range(choose.randint(3, 14)))


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
    layer = net.keep(nn.BatchNorm2d(widths[source]))
    return (lambda pool, x: x * layer.weight.view(-1, 1, 1)), widths[source]


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


def statistics(net, choose, widths, source):
    width, kind = widths[source], choose.randrange(3)
    if kind == 0:
        layer = net.keep(nn.InstanceNorm2d(width, affine=choose.random() < 0.5))
        return (lambda pool, x: layer(x)), width
    weight, centred = net.weight(width), kind == 1

    def step(pool, x):
        x = x - x.mean(1, keepdim=True) if centred else x
        x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)
        return x * weight().view(1, -1, 1, 1)

    return step, width


def glu(net, choose, widths, source):
    width, how = choose.choice((4, 6)), choose.randrange(3)
    layer = net.keep(nn.Conv2d(widths[source], 2 * width, 1))

    def step(pool, x):
        x = layer(x)
        if how == 0:
            return F.glu(x, 1)
        value, gate = x.chunk(2, 1) if how == 1 else (x[:, :width], x[:, width:])
        return value * F.silu(gate)

    return step, width


def pieces(net, choose, widths, source):
    width = widths[source]
    if width < 3:
        return None
    first = choose.randrange(1, width - 1)
    sizes = [first, 1, width - first - 1]
    layer, swap = net.keep(nn.Conv2d(first, first, 3, padding=1)), choose.random() < 0.5

    def step(pool, x):
        one, two, three = torch.split(x, sizes, 1)
        return torch.cat([three, layer(one), two] if swap else [layer(one), two, three], 1)

    return step, width


def up_and_down(net, choose, widths, source):
    width, way = choose.choice((2, 3, 5)), choose.random() < 0.5
    if way:
        first, second = (
            net.keep(nn.Conv2d(widths[source], 4 * width, 1)),
            net.keep(nn.Conv2d(width, 6, 3, stride=2, padding=1)),
        )
        return (lambda pool, x: second(F.relu(F.pixel_shuffle(first(x), 2)))), 6
    layer = net.keep(nn.Conv2d(4 * widths[source], 4 * width, 1))
    return (lambda pool, x: F.pixel_shuffle(layer(F.pixel_unshuffle(x, 2)), 2)), width


def bottleneck(net, choose, widths, source):
    width = choose.choice((2, 3))
    first, second = net.keep(nn.Linear(9 * widths[source], 7)), net.keep(nn.Linear(7, 36 * width))
    return (lambda pool, x: second(F.relu(first(F.max_pool2d(x, 2).flatten(1)))).view(-1, width, 6, 6)), width


def separable(net, choose, widths, source):
    width = widths[source]
    times = choose.choice((1, 2))
    deep = net.keep(nn.Conv2d(width, times * width, 3, padding=1, groups=width))
    norm, point = net.keep(nn.BatchNorm2d(times * width)), net.keep(nn.Conv2d(times * width, width, 1))
    return (lambda pool, x: x + point(F.relu6(norm(deep(x))))), width


def where_to_look(net, choose, widths, source):
    layer = net.keep(nn.Conv2d(2, 1, 3, padding=1))
    largest = choose.random() < 0.3

    def step(pool, x):
        other = x.amax(1, keepdim=True) if largest else x.pow(2).sum(1, keepdim=True)
        return x * torch.sigmoid(layer(torch.cat([x.mean(1, keepdim=True), other], 1)))

    return step, widths[source]


KINDS = (
    *(convolution, convolution, convolution, convolution, grouped, transposed, norm, norm, channels_last_norm),
    *(activation, activation, add, add, concatenate, concatenate, halves, strided, shuffle, gate, scale, shared),
    *(spatial, pixels, channel_mean, channels_last_mlp, selective, pixel_mlp, repeated),
)
_OF_IMAGES = (statistics, glu, pieces, up_and_down, bottleneck, separable, where_to_look)
IMAGES = {kind.__name__: kind for kind in (*KINDS, *_OF_IMAGES)}
