"""Small networks, one for each op or spelling: the number of ZIGs that a person counts, and exactness."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half, randomise, to_double
from torch import nn

import fx_oto
from fx_oto.core.differences import relative_error


class Net(nn.Module):
    """Layers by name, and a forward function."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            elif isinstance(layer, torch.Tensor):
                self.register_buffer(name, layer)
            else:
                self.add_module(name, layer)
        self.run = forward

    def forward(self, x, y=None):
        return self.run(self, x) if y is None else self.run(self, x, y)


def image(channels=3, size=8):
    return torch.randn(2, channels, size, size)


def conv(i, o, k=3, **kw):
    kw.setdefault("padding", k // 2)
    return nn.Conv2d(i, o, k, **kw)


def param(*shape):
    return nn.Parameter(torch.randn(*shape))


def two(middle, width=8, after=None, **layers):
    """conv a → middle → conv b."""
    return Net(lambda m, x: m.b(middle(m, m.a(x))), a=conv(3, width), b=conv(after or width, 4), **layers)


def line(middle, after=16, **layers):
    """linear a → middle → linear b."""
    return Net(lambda m, x: m.b(middle(m, m.a(x))), a=nn.Linear(5, 16), b=nn.Linear(after, 4), **layers)


def pairs(x):
    return torch.view_as_complex(x.reshape(x.shape[0], -1, 2))


def turned(angles):
    return torch.polar(torch.ones_like(angles), angles)


def mixing(pick):
    """Tokens are mixed into 9, of which one is picked."""
    return Net(
        lambda m, x: m.b(pick(m.a(x.transpose(1, 2)).tanh().transpose(1, 2))), a=nn.Linear(5, 9), b=nn.Linear(4, 3)
    )


def squeeze(m, x):
    gate = F.relu(m.s1(x.mean((2, 3), keepdim=True)))
    return x * torch.sigmoid(m.s2(gate))


def shuffle(x, groups):
    n, c, h, w = x.size()
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def focus(m, x):
    x = m.a(x)
    parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
    return m.b(torch.cat(parts, 1))


def selective(m, x):
    pooled = x.mean((2, 3))
    gates = torch.stack([m.f(pooled), m.g(pooled)], 1).softmax(1)
    return m.o((torch.stack([m.a(x), m.b(x)], 1) * gates[..., None, None]).sum(1))


def swiglu(m, x):
    gate, value = m.a(x).chunk(2, dim=-1)
    return m.b(F.silu(gate) * value)


def split_literal(m, x):
    first, second = torch.split(m.a(x), [3, 5], dim=1)
    return m.b(first) + m.c(second)


def shared_head(m, x):
    return m.head(F.relu(m.a(x))), m.head(F.relu(m.b(x)))


def functional(m, x):
    out = F.conv2d(x, m.w1, m.b1, padding=1)
    out = F.batch_norm(out, m.mean, m.var, m.gamma, m.beta, training=False)
    out = F.max_pool2d(F.gelu(out), 2)
    return F.linear(out.mean((2, 3)), m.w2, m.b2)


def functional_groups(m, x):
    out = F.conv2d(F.relu(m.a(x)), m.w, None, padding=1, groups=4)
    return m.b(F.group_norm(out, 4, m.gamma, m.beta))


IMAGE = image()
LINE = torch.randn(2, 5)
SIDES = {"b": nn.Linear(6, 3), "c": nn.Linear(5, 8)}
# name: (network, inputs, ZIGs)
CASES = {
    "conv1d": (
        Net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Conv1d(3, 8, 3), b=nn.Conv1d(8, 4, 3)),
        torch.randn(2, 3, 9),
        8,
    ),
    "conv3d": (
        Net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Conv3d(3, 8, 2), b=nn.Conv3d(8, 4, 2)),
        torch.randn(2, 3, 4, 4, 4),
        8,
    ),
    "transposed": (
        Net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.ConvTranspose2d(3, 8, 2, 2), b=nn.ConvTranspose2d(8, 4, 2)),
        IMAGE,
        8,
    ),
    "one output channel": (
        Net(lambda m, x: m.b(x * torch.sigmoid(m.g(m.a(x))).mean()), a=conv(3, 8), g=conv(8, 1), b=conv(3, 4)),
        IMAGE,
        8,
    ),
    "depthwise": (two(lambda m, x: m.d(x), d=conv(8, 8, groups=8)), IMAGE, 8),
    "depthwise multiplier": (two(lambda m, x: m.d(x), after=16, d=conv(8, 16, groups=8)), IMAGE, 8),
    "grouped, positions": (two(lambda m, x: F.relu(m.d(x)), after=16, d=conv(8, 16, groups=2)), IMAGE, 4 + 8),
    "grouped, groups": (two(lambda m, x: F.relu(m.d(x)), width=16, d=conv(16, 16, groups=8)), IMAGE, 8),
    "grouped transposed, positions": (
        two(lambda m, x: F.relu(m.d(x)), after=16, d=nn.ConvTranspose2d(8, 16, 3, padding=1, groups=2)),
        IMAGE,
        4 + 8,
    ),
    "grouped transposed, groups": (
        two(lambda m, x: F.relu(m.d(x)), width=16, d=nn.ConvTranspose2d(16, 16, 3, padding=1, groups=8)),
        IMAGE,
        8,
    ),
    "grouped on the input": (
        Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(4, 8, groups=2), b=conv(8, 4)),
        image(4),
        4,
    ),
    "functional": (
        Net(
            functional,
            w1=param(8, 3, 3, 3),
            b1=param(8),
            mean=torch.zeros(8),
            var=torch.ones(8),
            gamma=param(8),
            beta=param(8),
            w2=param(4, 8),
            b2=param(4),
        ),
        IMAGE,
        8,
    ),
    "functional groups": (
        Net(functional_groups, a=conv(3, 8), w=param(16, 2, 3, 3), gamma=param(16), beta=param(16), b=conv(16, 4)),
        IMAGE,
        4,
    ),
    "arguments by name": (
        Net(
            lambda m, x: m.b(
                input=torch.split(tensor=F.conv2d(input=m.a(input=x), weight=m.w), split_size_or_sections=4, dim=1)[1]
            ),
            a=conv(3, 8),
            w=param(8, 8, 1, 1),
            b=conv(4, 4),
        ),
        IMAGE,
        16,
    ),
    "batch norm": (two(lambda m, x: F.hardswish(m.n(x)), n=nn.BatchNorm2d(8)), IMAGE, 8),
    "batch norm 1d": (
        Net(lambda m, x: m.b(F.relu(m.n(m.a(x)))), a=nn.Linear(5, 8), n=nn.BatchNorm1d(8), b=nn.Linear(8, 4)),
        torch.randn(2, 5),
        8,
    ),
    "batch norm without affine": (two(lambda m, x: m.n(x), n=nn.BatchNorm2d(8, affine=False)), IMAGE, 8),
    "layer norm": (
        Net(lambda m, x: m.b(F.gelu(m.n(m.a(x)))), a=nn.Linear(5, 8), n=nn.LayerNorm(8), b=nn.Linear(8, 4)),
        torch.randn(2, 7, 5),
        8,
    ),
    "layer norm without affine": (
        Net(
            lambda m, x: m.b(m.n(m.a(x))),
            a=nn.Linear(5, 8),
            n=nn.LayerNorm(8, elementwise_affine=False),
            b=nn.Linear(8, 4),
        ),
        torch.randn(2, 7, 5),
        8,
    ),
    "layer norm, functional, channels first": (
        two(
            lambda m, x: F.layer_norm(x.permute(0, 2, 3, 1), (8,), m.w, m.v, 1e-6).permute(0, 3, 1, 2),
            w=param(8),
            v=param(8),
        ),
        IMAGE,
        8,
    ),
    "layer norm over an image": (two(lambda m, x: m.n(x), n=nn.LayerNorm((8, 8, 8))), IMAGE, 0),
    "group norm": (two(lambda m, x: F.relu(m.n(x)), n=nn.GroupNorm(4, 8)), IMAGE, 4),
    "group norm, one group": (two(lambda m, x: F.relu(m.n(x)), n=nn.GroupNorm(1, 8)), IMAGE, 8),
    "group norm, functional, one group": (
        two(lambda m, x: F.group_norm(x, 1, m.w, m.v), w=param(8), v=param(8)),
        IMAGE,
        8,
    ),
    "instance norm": (two(lambda m, x: F.relu(m.n(x)), n=nn.InstanceNorm2d(8, affine=True)), IMAGE, 8),
    "instance norm with statistics": (
        two(lambda m, x: F.relu(m.n(x)), n=nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
        IMAGE,
        8,
    ),
    "prelu": (two(lambda m, x: m.p(x), p=nn.PReLU(8)), IMAGE, 8),
    "prelu, one slope": (two(lambda m, x: m.p(x), p=nn.PReLU()), IMAGE, 8),
    "pooling": (
        two(lambda m, x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_max_pool2d(x, 4)),
        IMAGE,
        8,
    ),
    "upsampling": (
        two(lambda m, x: F.interpolate(x, scale_factor=2) + F.interpolate(x, size=(16, 16), mode="bilinear")),
        IMAGE,
        8,
    ),
    "spatial padding": (two(lambda m, x: F.pad(F.pad(x, (1, 1, 1, 1)), (1, 1, 0, 0), "reflect")), IMAGE, 8),
    "channel padding": (
        Net(lambda m, x: m.b(m.c(x) + F.pad(m.a(x), (0, 0, 0, 0, 2, 2))), a=conv(3, 4), c=conv(3, 8), b=conv(8, 4)),
        IMAGE,
        8,
    ),
    "concatenation": (
        Net(
            lambda m, x: m.b(m.n(torch.cat([m.a(x), x, m.c(x)], 1))),
            a=conv(3, 4),
            c=conv(3, 8),
            n=nn.BatchNorm2d(15),
            b=conv(15, 4),
        ),
        IMAGE,
        12,
    ),
    "concatenation along height": (
        Net(lambda m, x: m.b(torch.cat([m.a(x), m.c(x)], 2)), a=conv(3, 8), c=conv(3, 8), b=conv(8, 4)),
        IMAGE,
        8,
    ),
    "stack and sum": (
        Net(lambda m, x: m.b(torch.stack([m.a(x), m.c(x)], 0).sum(0)), a=conv(3, 8), c=conv(3, 8), b=conv(8, 4)),
        IMAGE,
        8,
    ),
    "split with literal sizes": (
        Net(split_literal, a=conv(3, 8), b=conv(3, 4), c=conv(5, 4)),
        IMAGE,
        8,
    ),
    "hsplit, and others by name": (line(lambda m, x: torch.cat([*torch.hsplit(x, 2)[::-1]], 1)), LINE, 16),
    "vsplit": (line(lambda m, x: torch.cat(torch.vsplit(x.t(), [3, 8])[::-1]).t()), LINE, 16),
    "one channel by narrow": (line(lambda m, x: torch.cat([x, x.narrow(1, 3, 1)], 1), 17), LINE, 15),
    "no channel by narrow": (line(lambda m, x: torch.cat([x.narrow(1, 3, 0), x], 1)), LINE, 16),
    "nothing of another dimension": (line(lambda m, x: torch.cat([x.narrow(0, 0, 0), x])), LINE, 16),
    "complex numbers": (line(lambda m, x: torch.view_as_real(pairs(x) * pairs(x).conj()).flatten(1)), LINE, 8),
    "parts of complex numbers": (line(lambda m, x: torch.cat([pairs(x).real, pairs(x).imag], 1)), LINE, 8),
    "rotary, by complex numbers": (
        line(lambda m, x: torch.view_as_real(pairs(x).view(-1, 2, 4) * turned(m.turn)).flatten(1), turn=torch.randn(4)),
        LINE,
        4,
    ),
    "bits of another type": (line(lambda m, x: x.view(torch.int32).view(x.dtype)), LINE, 0),
    "chunk, joined whole": (
        Net(lambda m, x: m.b(torch.cat(m.a(x).chunk(2, 1), 1)), a=nn.Linear(5, 16), b=nn.Linear(16, 4)),
        torch.randn(2, 5),
        16,
    ),
    "chunk, gated": (Net(swiglu, a=nn.Linear(5, 16), b=nn.Linear(8, 4)), torch.randn(2, 5), 8),
    "glu": (Net(lambda m, x: m.b(F.glu(m.a(x), -1)), a=nn.Linear(5, 16), b=nn.Linear(8, 4)), torch.randn(2, 5), 8),
    "slices": (two(lambda m, x: torch.cat([x[:, 2:6], x[:, :2] * 2, x[:, 6:]], 1)), IMAGE, 8),
    "strided slice": (two(lambda m, x: x[:, ::2], after=4), IMAGE, 8),
    "narrow": (two(lambda m, x: x.narrow(1, 2, 4), after=4), IMAGE, 8),
    "roll": (two(lambda m, x: torch.roll(x, 3, 1) * x.mean()), IMAGE, 8),
    "flip": (two(lambda m, x: x.flip(1)), IMAGE, 8),
    "constant index": (two(lambda m, x: x[:, m.order], order=torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])), IMAGE, 8),
    "unfold and fold": (
        Net(
            lambda m, x: m.b(F.fold(F.unfold(m.a(x), 3, padding=1, stride=2), x.shape[-2:], 3, padding=1, stride=2)),
            a=conv(3, 8),
            b=conv(8, 4),
        ),
        IMAGE,
        8,
    ),
    "unfold as a module, without padding": (
        Net(lambda m, x: m.b(m.u(torch.sigmoid(m.a(x))).mT), a=conv(3, 8), u=nn.Unfold(2), b=nn.Linear(32, 4)),
        IMAGE,
        8,
    ),
    "unfold of a constant, with padding": (
        Net(lambda m, x: m.b(m.u(torch.sigmoid(m.a(x))).mT), a=conv(3, 8), u=nn.Unfold(2, 1, 1), b=nn.Linear(32, 4)),
        IMAGE,
        8,
    ),
    "fold of channels": (
        Net(lambda m, x: m.b(m.f(m.a(x).mT)), a=nn.Linear(5, 32), f=nn.Fold(4, 2, stride=2), b=conv(8, 4)),
        torch.randn(2, 4, 5),
        8,
    ),
    "fold along the windows": (
        Net(lambda m, x: m.b(m.f(m.a(x))), a=nn.Linear(5, 4), f=nn.Fold(4, 2, stride=2), b=conv(8, 4)),
        torch.randn(2, 32, 5),
        0,
    ),
    "windows of pixels": (two(lambda m, x: x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))), IMAGE, 8),
    "windows of channels": (two(lambda m, x: x.unfold(1, 4, 4).sum((1, 4)).unsqueeze(1) * x), IMAGE, 0),
    "bounds in buffers": (
        two(lambda m, x: torch.clamp(x, m.low, m.high), low=torch.tensor(-0.5), high=torch.tensor([2.0])),
        IMAGE,
        8,
    ),
    "bounds in buffers, without zero": (
        two(lambda m, x: torch.maximum(x, m.low)[..., 1:], low=torch.ones(1)),
        IMAGE,
        8,
    ),
    "bounds that the model writes to": (
        two(lambda m, x: torch.maximum(x, m.low.mul_(1)), low=-torch.ones(1)),
        IMAGE,
        8,
    ),
    "constant computed from buffers before a folded layer": (
        Net(lambda m, x: m.b(m.a(x) + m.t.exp() * 2), a=nn.Linear(5, 8), b=nn.Linear(8, 4), t=torch.tensor(0.3)),
        torch.randn(2, 5),
        8,
    ),
    "index computed from a buffer": (
        two(lambda m, x: x[:, (m.order.view(-1) + 3) % 8], order=torch.tensor([[3, 1, 0, 2], [7, 6, 5, 4]])),
        IMAGE,
        8,
    ),
    "index that is a range of the channels": (
        two(lambda m, x: x[:, (torch.arange(x.shape[1]) * 3) % 8]),
        IMAGE,
        8,
    ),
    "index that is a range of the batch": (
        two(lambda m, x: x * x[:, torch.arange(x.shape[0]) % 8].sum(1, keepdim=True)),
        IMAGE,
        0,
    ),
    "index that the model writes to": (
        two(lambda m, x: x * x[:, m.order.add_(1) % 8].sum(1, keepdim=True), order=torch.arange(4)),
        IMAGE,
        0,
    ),
    "index that is random": (
        two(lambda m, x: x * x[:, torch.randint(8, (x.shape[1],))].sum(1, keepdim=True)),
        IMAGE,
        0,
    ),
    "index that is added as well": (
        two(lambda m, x: x[:, m.order] + m.order.view(8, 1, 1), order=torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])),
        IMAGE,
        0,
    ),
    "index select": (
        two(lambda m, x: torch.index_select(x, 1, m.order), order=torch.tensor([3, 1, 0, 2]), after=4),
        IMAGE,
        8,
    ),
    "flatten": (
        Net(lambda m, x: m.b(torch.flatten(F.relu(m.a(x)), 1)), a=conv(3, 8), b=nn.Linear(8 * 64, 4)),
        IMAGE,
        8,
    ),
    "view with a literal size": (
        Net(lambda m, x: m.b(m.a(x).view(x.shape[0], 8 * 8 * 8)), a=conv(3, 8), b=nn.Linear(8 * 64, 4)),
        IMAGE,
        8,
    ),
    "view with a literal size, of what is pooled to it": (
        Net(
            lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), (2, 4)).relu().view(-1, 8 * 8)),
            a=conv(3, 8),
            b=nn.Linear(64, 4),
        ),
        IMAGE,
        8,
    ),
    "view to an image": (
        Net(
            lambda m, x: m.b(F.relu(m.a(x)).view(-1, 8, 4, 4)),
            a=nn.Linear(5, 8 * 16),
            b=nn.ConvTranspose2d(8, 4, 2, 2),
        ),
        torch.randn(2, 5),
        8,
    ),
    "unflatten": (
        Net(
            lambda m, x: m.b(m.u(F.relu(m.a(x)))),
            a=nn.Linear(5, 8 * 16),
            u=nn.Unflatten(1, (8, 4, 4)),
            b=nn.Conv2d(8, 4, 2),
        ),
        torch.randn(2, 5),
        8,
    ),
    "permute": (
        Net(lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1)).movedim(-1, 1), a=conv(3, 8), b=nn.Linear(8, 4)),
        IMAGE,
        8,
    ),
    "pixel shuffle": (two(lambda m, x: F.pixel_shuffle(x, 2), width=32, after=8), IMAGE, 8),
    "pixel unshuffle": (two(lambda m, x: F.pixel_unshuffle(x, 2), after=32), IMAGE, 8),
    "pixel shuffle, undone": (
        two(lambda m, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2)),
        IMAGE,
        8,
    ),
    "channel shuffle": (two(lambda m, x: shuffle(x, 2)), IMAGE, 8),
    "channel shuffle module": (two(lambda m, x: m.s(x), s=nn.ChannelShuffle(2)), IMAGE, 8),
    "shuffle with an op inside": (
        two(lambda m, x: F.relu(x.view(x.shape[0], 2, 4, 8, 8)).transpose(1, 2).reshape(x.shape)),
        IMAGE,
        4,
    ),
    "focus": (Net(focus, a=conv(3, 8), b=conv(32, 4)), IMAGE, 8),
    "linear over permuted dimensions": (
        Net(lambda m, x: m.b(F.relu(m.a(x.permute(0, 2, 3, 1)))), a=nn.Linear(3, 8), b=nn.Linear(8, 4)),
        IMAGE,
        8,
    ),
    "linear over transposed dimensions": (
        Net(lambda m, x: m.b(F.relu(m.a(x.transpose(1, 2)))), a=nn.Linear(16, 8), b=nn.Linear(8, 4)),
        torch.randn(2, 16, 5),
        8,
    ),
    "linear over an expanded input": (
        Net(lambda m, x: m.b(m.a(x[:, :1].expand(-1, 7, -1))), a=nn.Linear(5, 8), b=nn.Linear(8, 4)),
        torch.randn(2, 16, 5),
        8,
    ),
    "batched product with an expanded parameter": (
        Net(
            lambda m, x: m.b(torch.baddbmm(m.v, x, m.w.expand(x.shape[0], 5, 8))),
            v=param(1, 1, 8),
            w=param(1, 5, 8),
            b=nn.Linear(8, 4),
        ),
        torch.randn(2, 3, 5),
        8,
    ),
    "kernels added": (
        Net(
            lambda m, x: m.b(F.relu(F.conv2d(x, m.w + F.pad(m.w2, (1, 1, 1, 1)), m.v))),
            w=param(8, 3, 3, 3),
            w2=param(8, 3, 1, 1),
            v=param(8),
            b=conv(8, 4),
        ),
        IMAGE,
        8,
    ),
    "cosine similarity": (
        Net(
            lambda m, x: F.cosine_similarity(m.a(x).unsqueeze(1), m.w.unsqueeze(0), dim=-1),
            a=nn.Linear(5, 8),
            w=param(6, 8),
        ),
        torch.randn(2, 5),
        8,
    ),
    "selective kernels": (
        Net(
            selective,
            a=conv(3, 8),
            b=conv(3, 8),
            f=nn.Linear(3, 8),
            g=nn.Linear(3, 8),
            o=conv(8, 4),
        ),
        IMAGE,
        8,
    ),
    "count in arithmetic": (two(lambda m, x: x / (x.numel() // x.shape[0])), IMAGE, 8),
    "count in a view": (
        Net(
            lambda m, x: m.b(m.a(x).view(x.shape[0], 8 * x[0, 0].numel())),
            a=conv(3, 8),
            b=nn.Linear(512, 4),
        ),
        IMAGE,
        8,
    ),
    "mean by axis": (
        Net(lambda m, x: m.b(m.a(x).mean(axis=1, keepdims=True)), a=conv(3, 8), b=conv(1, 4)),
        IMAGE,
        8,
    ),
    "unflatten by name": (
        Net(
            lambda m, x: m.b(m.a(x).unflatten(dim=1, sizes=(8, 4, 4))),
            a=nn.Linear(5, 8 * 16),
            b=nn.Conv2d(8, 4, 2),
        ),
        torch.randn(2, 5),
        8,
    ),
    "broadcast_to": (two(lambda m, x: x * m.g(x).broadcast_to(x.shape), g=conv(8, 1)), IMAGE, 8),
    "shuffle, then nothing": (two(lambda m, x: m.d(m.i(shuffle(x, 2))), d=nn.Dropout(), i=nn.Identity()), IMAGE, 8),
    "quarter turn": (two(lambda m, x: torch.rot90(x, 1, (2, 3)) + x.rot90(-1, [-1, -2])), IMAGE, 8),
    "half turn of channels": (two(lambda m, x: torch.rot90(x, 2, (1, 2))), IMAGE, 8),
    "channels turned into rows": (two(lambda m, x: torch.rot90(x, 3, (1, 2)).transpose(1, 2)), IMAGE, 8),
    "log of a sigmoid": (two(lambda m, x: F.logsigmoid(x) * x + nn.LogSigmoid()(x)), IMAGE, 8),
    "divided, rounded": (two(lambda m, x: x * (x.data // 0.1 + x.data // m.n), n=torch.tensor(0.7)), IMAGE, 8),
    "divided in place, rounded": (two(lambda m, x: (x * 8).detach().floor_divide_(2) * x), IMAGE, 8),
    "divided by what is not known, rounded": (two(lambda m, x: x * (x.data // (x.data.mean() + 9))), IMAGE, 8),
    "masked by a tensor": (two(lambda m, x: x.masked_fill(x > 1, m.n) + x, n=torch.tensor(0.7)), IMAGE, 8),
    "masked by a tensor, in place": (two(lambda m, x: (x * 1).masked_fill_(x > 1, x.max().detach())), IMAGE, 8),
    "subtracted from": (two(lambda m, x: torch.rsub(x, x.sin(), alpha=2)), IMAGE, 8),
    "parts that may be written": (two(lambda m, x: torch.cat(torch.unsafe_split(x, 4, 1)[::-1], 1)), IMAGE, 8),
    "trace": (line(lambda m, x: x * torch.trace(x.T @ x.cos()) + torch.trace(x @ x.T)), LINE, 16),
    "trace of two": (
        Net(lambda m, x: m.b(m.a(x)) * torch.trace(m.a(x).T @ m.c(x)), a=nn.Linear(5, 6), **SIDES),
        LINE,
        8,
    ),
    "sum of a diagonal": (
        Net(lambda m, x: m.b(m.a(x)) * (m.a(x).T @ m.c(x)).diagonal().sum(), a=nn.Linear(5, 6), **SIDES),
        LINE,
        8,
    ),
    "triangles in place": (line(lambda m, x: x @ (x.T @ x).tril_().triu_(-1)), LINE, 0),
    "sums in place": (two(lambda m, x: (x * 1).cumsum_(2) + x.cos().cumprod_(3)), IMAGE, 8),
    "product added": (line(lambda m, x: x * torch.addmv(x.mean(0), x.T @ x, x[0])), LINE, 16),
    "products added in place": (line(lambda m, x: (x * 2).addmm_(x, x.T @ x).addmm_(x, x.T @ x, alpha=0.1)), LINE, 16),
    "roll of two dimensions": (two(lambda m, x: torch.roll(x, (1, 2), (1, 3))), IMAGE, 0),
    "two index tensors": (
        two(lambda m, x: x[:, m.i, m.i][:, :, None], i=torch.arange(8)),
        IMAGE,
        0,
    ),
    "comparison with what depends on data": (
        two(lambda m, x: (F.relu(m.n(x)) == 0).to(x.dtype), n=nn.BatchNorm2d(8, affine=False)),
        IMAGE,
        8,
    ),
    "smallest absolute value": (
        two(lambda m, x: x * torch.linalg.vector_norm(x, -1, 1, keepdim=True)),
        IMAGE,
        0,
    ),
    "sigmoid before a transposed weight": (
        Net(lambda m, x: F.linear(torch.sigmoid(m.a(x)), m.w.t()), a=nn.Linear(5, 8), w=param(8, 4)),
        torch.randn(2, 5),
        8,
    ),
    "maximum over pixels": (two(lambda m, x: x.flatten(2).max(2)[0][..., None, None]), IMAGE, 8),
    "order of pixels": (two(lambda m, x: x.flatten(2).sort(2)[1].to(x.dtype).view(x.shape)), IMAGE, 8),
    "sorted pixels": (two(lambda m, x: x.flatten(2).sort(2)[0].view(x.shape).cumsum(3)), IMAGE, 8),
    "median pixel": (two(lambda m, x: x - x.median(2, True)[0] + x.nanmedian(3, True)[0]), IMAGE, 8),
    "most frequent pixel": (two(lambda m, x: x.flatten(2).mode(2, True)[0][..., None] + x), IMAGE, 8),
    "third pixel": (two(lambda m, x: x * x.kthvalue(3, 2)[0].unsqueeze(2)), IMAGE, 8),
    "median over channels": (two(lambda m, x: x * x.median(1, True)[0]), IMAGE, 0),
    "median of all": (two(lambda m, x: x * x.median()), IMAGE, 0),
    "renorm": (two(lambda m, x: x.renorm(2, 0, 3.0) + x.renorm(1, -1, 0.5)), IMAGE, 8),
    "renorm of channels": (two(lambda m, x: (x * 1.0).renorm_(float("inf"), 1, 0.5)), IMAGE, 8),
    "largest so far": (two(lambda m, x: x.cummax(2)[0] + x.cummin(3)[0] * x.logcumsumexp(3)), IMAGE, 8),
    "Fourier transform of pixels": (two(lambda m, x: torch.fft.fft2(x, norm="ortho").abs() + x), IMAGE, 8),
    "Fourier transform of channels": (two(lambda m, x: torch.fft.fft(x, dim=1).real), IMAGE, 0),
    "filter in the frequency domain": (
        two(
            lambda m, x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(m.w), s=x.shape[2:]),
            w=param(8, 1, 1, 2),
        ),
        IMAGE,
        8,
    ),
    "broadcast": (
        Net(
            lambda m, x: m.b(m.a(x) * m.s(x.mean((2, 3)))[:, :, None, None] - 0.5 * m.a(x)),
            a=conv(3, 8),
            s=nn.Linear(3, 8),
            b=conv(8, 4),
        ),
        IMAGE,
        8,
    ),
    "spatial gate, expanded": (
        two(lambda m, x: x * torch.sigmoid(m.g(x)).expand_as(x), g=conv(8, 1)),
        IMAGE,
        8,
    ),
    "channel gate, expanded": (
        two(lambda m, x: x * m.g(x).mean((2, 3), keepdim=True).expand(-1, 8, 8, 8), g=conv(8, 8)),
        IMAGE,
        8,
    ),
    "squeeze and excitation": (two(squeeze, s1=conv(8, 4, 1), s2=conv(4, 8, 1)), IMAGE, 12),
    "hard sigmoid gate": (two(lambda m, x: x * F.hardsigmoid(m.s(x)), s=conv(8, 8, 1)), IMAGE, 8),
    "sigmoid folded into a linear": (
        Net(lambda m, x: m.b(torch.sigmoid(m.a(x))), a=nn.Linear(5, 8), b=nn.Linear(8, 4)),
        torch.randn(2, 5),
        8,
    ),
    "sigmoid folded into a convolution": (
        Net(lambda m, x: m.b(torch.sigmoid(m.a(x))), a=conv(3, 8), b=conv(8, 4, padding=0, bias=False)),
        IMAGE,
        8,
    ),
    "sigmoid before groups": (
        Net(lambda m, x: m.b(m.g(torch.sigmoid(m.a(x)))), a=conv(3, 8), g=conv(8, 8, groups=2), b=conv(8, 4)),
        IMAGE,
        8,
    ),
    "sigmoid before single channels": (
        Net(lambda m, x: m.b(m.g(torch.sigmoid(m.a(x)))), a=conv(3, 8), g=conv(8, 8, groups=8), b=conv(8, 4)),
        IMAGE,
        8,
    ),
    "sigmoid before groups whose weights are never zero": (
        Net(
            lambda m, x: m.b(F.conv2d(torch.sigmoid(m.a(x)), m.w.exp(), padding=1, groups=2)),
            a=conv(3, 8),
            w=param(8, 4, 3, 3),
            b=conv(8, 4),
        ),
        IMAGE,
        0,
    ),
    "sigmoid before padding": (two(lambda m, x: torch.sigmoid(x)), IMAGE, 8),
    "constant before a folded layer": (
        Net(lambda m, x: m.b(m.a(x) + 1), a=nn.Linear(5, 8), b=nn.Linear(8, 4, bias=False)),
        torch.randn(2, 5),
        8,
    ),
    "data added": (
        Net(lambda m, x: m.b(m.a(x) + x.sum(1, keepdim=True)), a=nn.Linear(5, 8), b=nn.Linear(8, 4)),
        torch.randn(2, 5),
        8,
    ),
    "mean over channels": (
        Net(lambda m, x: m.b(m.a(x).mean(1, keepdim=True)), a=conv(3, 8), b=conv(1, 4)),
        IMAGE,
        8,
    ),
    "sum over channels": (Net(lambda m, x: m.b(m.a(x).sum(1, keepdim=True)), a=conv(3, 8), b=conv(1, 4)), IMAGE, 8),
    "maximum over channels": (two(lambda m, x: x * x.amax(1, keepdim=True)), IMAGE, 8),
    "minimum over channels": (two(lambda m, x: x * torch.amin(x, (1, 2), keepdim=True)), IMAGE, 8),
    "maximum and its place": (two(lambda m, x: x * x.max(dim=1, keepdim=True)[1]), IMAGE, 0),
    "maximum without its place": (two(lambda m, x: x * torch.max(x, 1)[0].unsqueeze(1)), IMAGE, 8),
    "minimum by name": (two(lambda m, x: x * x.min(1, keepdim=True).values), IMAGE, 8),
    "maximum of all": (two(lambda m, x: x * x.max().sigmoid()), IMAGE, 8),
    "maximum of what is not zero": (two(lambda m, x: x * x.sigmoid().amax(1, keepdim=True)), IMAGE, 0),
    "noise added": (two(lambda m, x: x + torch.rand_like(x)), IMAGE, 0),
    "softmax over channels": (two(lambda m, x: x.softmax(1)), IMAGE, 0),
    "softmax over pixels": (two(lambda m, x: x * x.flatten(2).softmax(-1).view(x.shape)), IMAGE, 8),
    "layer scale": (
        Net(lambda m, x: m.b(m.a(x) + m.s * m.c(x)), a=conv(3, 8), c=conv(3, 8), s=param(8, 1, 1), b=conv(8, 4)),
        IMAGE,
        8,
    ),
    "one plus a parameter": (two(lambda m, x: x * (1 + m.s), s=param(8, 1, 1)), IMAGE, 8),
    "added parameter": (two(lambda m, x: x + m.s, s=param(1, 8, 1, 1)), IMAGE, 8),
    "matmul with a parameter": (
        Net(lambda m, x: (x @ m.w + m.v) @ m.u, w=param(5, 8), v=param(8), u=param(8, 4)),
        torch.randn(2, 5),
        8,
    ),
    "one token by a number": (mixing(lambda x: x[:, 3]), torch.randn(2, 5, 4), 8),
    "one token from behind": (mixing(lambda x: x[..., -2, :]), torch.randn(2, 5, 4), 8),
    "one token by select": (mixing(lambda x: x.select(1, -3)), torch.randn(2, 5, 4), 8),
    "a grid times an input along one of its axes": (
        Net(
            lambda m, x, y: m.b((m.a(x).unflatten(1, (2, 4)) * y[:, :, None, None, None]).flatten(1, 2)),
            a=conv(3, 8),
            b=conv(8, 4),
        ),
        (image(3), torch.randn(2, 2)),
        4,
    ),
    "dropout": (two(lambda m, x: m.d(F.dropout(x, 0.5, m.training)), d=nn.Dropout2d(0.1)), IMAGE, 8),
    "slopes by chance": (two(lambda m, x: m.d(x), d=nn.RReLU()), IMAGE, 8),
    "slopes by chance in place": (two(lambda m, x: m.d(x), d=nn.RReLU(0.3, 0.3, inplace=True)), IMAGE, 8),
    "slopes by chance, a function": (two(lambda m, x: F.rrelu(x, 0.3, 0.3, training=m.training)), IMAGE, 8),
    "slopes by chance in any mode": (two(lambda m, x: torch.rrelu(x, 0.3, 0.3, True)), IMAGE, 8),
    "shared module": (
        Net(lambda m, x: m.b(F.relu(m.s(F.relu(m.s(m.a(x)))))), a=conv(3, 8), s=conv(8, 8), b=conv(8, 4)),
        IMAGE,
        8,
    ),
    "shared head": (Net(shared_head, a=conv(3, 8), b=conv(3, 8), head=conv(8, 4)), IMAGE, 8),
    "several inputs": (
        Net(lambda m, x, y: (m.b(m.a(x) + m.c(y)), m.c(y).mean((2, 3))), a=conv(3, 8), c=conv(2, 8), b=conv(8, 4)),
        (image(3), image(2)),
        0,  # one output is a branch's own channels: those, and what they are added to, stay
    ),
    "keyword inputs, dict output": (
        Net(lambda m, x, y: {"out": m.b(m.a(x) + m.c(y))}, a=conv(3, 8), c=conv(2, 8), b=conv(8, 4)),
        {"y": image(2), "x": image(3)},
        8,
    ),
    "in place": (two(lambda m, x: x.add_(1).mul_(m.s).relu_(), s=param(8, 1, 1)), IMAGE, 8),
    "embedding": (
        Net(lambda m, i: m.b(F.relu(m.e(i))), e=nn.Embedding(11, 8), b=nn.Linear(8, 4)),
        torch.arange(6).view(2, 3),
        8,
    ),
    "created tensor": (two(lambda m, x: x + x.new_zeros(8, 1, 1) * 3), IMAGE, 8),
    "created range": (two(lambda m, x: x * torch.arange(8).view(8, 1, 1)), IMAGE, 8),
    "size in arithmetic": (two(lambda m, x: x / x.shape[1] ** 0.5), IMAGE, 8),
    "where": (two(lambda m, x: torch.where(x > 0, x, 0.1 * x)), IMAGE, 8),
}


@pytest.mark.parametrize("name", CASES)
def test_exact_with_the_expected_number_of_groups(name):
    model, inputs, zigs = CASES[name]
    if zigs:
        assert compress_half(model, inputs, any_size=True).zigs == zigs
    else:
        assert fx_oto.partition(fx_oto.prepare(model, inputs)).num_zigs == 0


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][2]])
def test_masks_alone_have_the_effect_of_zero_groups(name):
    model, inputs, _ = CASES[name]
    gm = fx_oto.prepare(randomise(model.double()), to_double(inputs))
    zigs, given = fx_oto.partition(gm), fx_oto.Context.of(gm).inputs
    outputs = []
    for zero in (zigs.mask_, zigs.zero_zigs_):
        for i, family in enumerate(zigs.families):
            zero(i, torch.arange(len(family) // 2))
        outputs.append(gm.eval()(*given.args, **given.kwargs))
    assert relative_error(*outputs) <= 1e-10


class Divided(nn.Module):
    """Features by learned numbers of each channel, which would divide by zero once one is zero."""

    def __init__(self, function):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.rand(8, 5)), nn.Parameter(torch.rand(8) + 0.1)
        self.function, self.a, self.o = function, nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.o(self.function(self, self.a(x).tanh(), x))


def cosine(m, h):
    return torch.cos(h * m.w[:, 0])


DIVISIONS = {
    "input": lambda m, h, x: x.sum(1, keepdim=True) / m.v,
    "input in place": lambda m, h, x: x.sum(1, keepdim=True).repeat(1, 8).div_(m.v),
    "norm": lambda m, h, x: F.layer_norm(h, (8,)) / m.v,
    "wavelet": lambda m, h, x: torch.exp(-(((x[:, :1] - m.w[:, 0]) / m.v) ** 2)),
    "difference": lambda m, h, x: F.linear(x, torch.sin(m.w) / (2 * (m.v * 2 - m.v))[:, None]),
    "logarithm": lambda m, h, x: cosine(m, h) * m.v.log(),
    "other logarithm": lambda m, h, x: cosine(m, h) + m.v.log2().sin(),
    "root": lambda m, h, x: cosine(m, h) * m.v.rsqrt(),
    "reciprocal": lambda m, h, x: cosine(m, h) * m.v.reciprocal(),
    "sigmoid": lambda m, h, x: torch.sigmoid(x[:, :1] / m.v),
    "addcdiv": lambda m, h, x: torch.addcdiv(cosine(m, h), x[:, :1], m.v),
}


@pytest.mark.parametrize("name", DIVISIONS)
def test_what_would_be_divided_by_zero_stays(name):
    torch.manual_seed(0)
    model, x = Divided(DIVISIONS[name]).double().eval(), torch.rand(3, 5, dtype=torch.float64)
    gm = fx_oto.prepare(model, x)
    found = fx_oto.partition(gm)
    assert all(slot.tensor != "v" for family in found.families for slot in family.variables)
    if found.num_zigs:
        found.zero_(0.5)
        assert model(x).isfinite().all()
        torch.testing.assert_close(fx_oto.compress(gm)(x), model(x))


def test_what_is_infinite_by_a_mask_goes_as_ever():
    """Scores of minus infinity are no division."""

    def masked(m, h, x):
        scores = (h * m.v).unsqueeze(1).expand(-1, 4, -1).masked_fill(torch.eye(4, 8, dtype=torch.bool), float("-inf"))
        return scores.amax(1) * m.w[:, 0]

    model, x = Divided(masked).double().eval(), torch.rand(3, 5, dtype=torch.float64)
    gm = fx_oto.prepare(model, x)
    found = fx_oto.partition(gm)
    assert found.num_zigs == 8
    found.zero_(0.5)
    torch.testing.assert_close(fx_oto.compress(gm)(x), model(x))
