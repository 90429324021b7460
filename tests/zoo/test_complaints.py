"""What users of pruning libraries complain of, one small network each: exact, and nothing frozen away.

A case that lives elsewhere is not repeated here: ops in ``core/test_ops.py``, attention in ``core/test_attention.py``,
tracing in ``core/test_tracing.py``, a second round in ``core/test_pipeline.py``.
"""

from __future__ import annotations

import collections
import subprocess
import sys
from dataclasses import dataclass, fields

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half, randomise
from torch import nn
from torch.utils._pytree import register_pytree_node

import fx_oto
from fx_oto.core.differences import relative_error

TOKENS, WIDTH = 9, 16


def image(channels=3, size=12):
    return torch.randn(2, channels, size, size)


def tokens(width=10, length=TOKENS):
    return torch.randn(2, length, width)


def share(small, model):
    return sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())


# -- heads and grids ---------------------------------------------------------------------------------------------


class GroupedQueries(nn.Module):
    """28 query heads, 4 key and value heads."""

    def __init__(self, width=56, heads=28, shared=4, head=4):
        super().__init__()
        self.heads, self.shared, self.head = heads, shared, head
        self.embed = nn.Linear(10, width)
        self.q, self.k = nn.Linear(width, heads * head), nn.Linear(width, shared * head)
        self.v, self.o = nn.Linear(width, shared * head), nn.Linear(heads * head, width)
        self.out = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.head).transpose(1, 2)
        k = self.k(x).view(b, n, self.shared, self.head).transpose(1, 2)
        v = self.v(x).view(b, n, self.shared, self.head).transpose(1, 2)
        repeats = self.heads // self.shared
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        return self.out(x + self.o(y))


class TalkingHeads(nn.Module):
    """CaiT's attention: linear maps over the heads, before and after the softmax."""

    def __init__(self, fused, width=WIDTH, heads=4):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.embed, self.proj, self.out = nn.Linear(10, width), nn.Linear(width, width), nn.Linear(width, 5)
        self.before, self.after = nn.Linear(heads, heads), nn.Linear(heads, heads)
        self.inputs = nn.ModuleList(
            [nn.Linear(width, 3 * width)] if fused else [nn.Linear(width, width) for _ in "qkv"]
        )

    def queries_keys_values(self, x):
        b, n, c = x.shape
        if self.fused:
            return self.inputs[0](x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return [project(x).view(b, n, self.heads, c // self.heads).transpose(1, 2) for project in self.inputs]

    def forward(self, x):
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.queries_keys_values(x)
        attention = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        attention = self.before(attention.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        attention = self.after(attention.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out(x + self.proj((attention @ v).transpose(1, 2).reshape(b, n, c)))


class CrossCovariance(nn.Module):
    """XCiT's attention: channels attend to channels of their head; queries and keys are normalised over the tokens."""

    def __init__(self, width=WIDTH, heads=4):
        super().__init__()
        self.heads = heads
        self.embed, self.qkv, self.proj = nn.Linear(10, width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.temperature, self.out = nn.Parameter(torch.ones(heads, 1, 1)), nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 4, 1).unbind(0)
        attention = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        y = (attention.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(b, n, c)
        return self.out(x + self.proj(y))


class Windows(nn.Module):
    """Swin's windows, with a table of biases for relative positions."""

    def __init__(self, width=WIDTH, heads=4, window=3):
        super().__init__()
        self.heads, self.window = heads, window
        self.embed, self.norm = nn.Conv2d(3, width, 2, 2), nn.LayerNorm(width)
        self.qkv, self.proj, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 5)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = places[:, :, None] - places[:, None, :] + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        s = self.window
        y = self.norm(x).view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        q, k, v = self.qkv(y).reshape(-1, s * s, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(s * s, s * s, -1).permute(2, 0, 1).unsqueeze(0)
        y = ((q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5 + bias).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(-1, s * s, c))
        y = y.view(b, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return self.out((x + y).mean((1, 2)))


class Places(nn.Module):
    """A positional embedding, interpolated to the size of the image."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.embed, self.place = nn.Conv2d(3, width, 2, 2), nn.Parameter(torch.randn(1, 16, width))
        self.norm, self.mlp, self.out = nn.LayerNorm(width), nn.Linear(width, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = self.embed(x)
        place = self.place.reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        place = F.interpolate(place, size=x.shape[-2:], mode="bicubic", align_corners=False)
        x = self.norm((x + place).flatten(2).transpose(1, 2))
        return self.out(F.gelu(self.mlp(x)).mean(1))


# -- token mixing ------------------------------------------------------------------------------------------------


class Mixer(nn.Module):
    """An MLP-Mixer block: one perceptron along the tokens, one along the channels."""

    def __init__(self, bias, width=WIDTH, hidden=32):
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(10, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.t1, self.t2 = nn.Linear(TOKENS, hidden, bias=bias), nn.Linear(hidden, TOKENS, bias=bias)
        self.c1, self.c2, self.out = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.t2(F.gelu(self.t1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.c2(F.gelu(self.c1(self.norm2(x))))
        return self.out(x.mean(1))


class SpatialGate(nn.Module):
    """gMLP: half of the channels, projected along the tokens, gates the other half."""

    def __init__(self, width=WIDTH, hidden=32):
        super().__init__()
        self.embed, self.norm, self.inner = nn.Linear(10, width), nn.LayerNorm(width), nn.LayerNorm(hidden // 2)
        self.grow, self.shrink = nn.Linear(width, hidden), nn.Linear(hidden // 2, width)
        self.spatial, self.out = nn.Linear(TOKENS, TOKENS), nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        u, v = F.gelu(self.grow(self.norm(x))).chunk(2, dim=-1)
        v = self.spatial(self.inner(v).transpose(1, 2)).transpose(1, 2)
        return self.out((x + self.shrink(u * v)).mean(1))


class Pooling(nn.Module):
    """A PoolFormer block: pooling mixes the tokens; each branch has a layer scale."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.embed, self.norm1, self.norm2 = (
            nn.Conv2d(3, width, 3, 2, 1),
            nn.GroupNorm(1, width),
            nn.GroupNorm(1, width),
        )
        self.pool, self.grow, self.shrink = nn.AvgPool2d(3, 1, 1), nn.Conv2d(width, 48, 1), nn.Conv2d(48, width, 1)
        self.scale1, self.scale2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.out = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        y = self.norm1(x)
        x = x + self.scale1.unsqueeze(-1).unsqueeze(-1) * (self.pool(y) - y)
        x = x + self.scale2.unsqueeze(-1).unsqueeze(-1) * self.shrink(F.gelu(self.grow(self.norm2(x))))
        return self.out(x.mean((2, 3)))


# -- channels moved about ----------------------------------------------------------------------------------------


class SpaceToDepth(nn.Module):
    """Blocks of pixels become channels, by view and permute."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(64, 24, 3, padding=1), nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu(self.a(x))
        b, c, h, w = x.shape
        x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous().view(b, c * 4, h // 2, w // 2)
        return self.out(F.relu(self.b(x)).mean((2, 3)))


class Unfold(nn.Module):
    """Patches as vectors, through a linear layer and back to an image."""

    def __init__(self):
        super().__init__()
        self.a, self.l, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(64, 32), nn.Linear(32, 64)
        self.c = nn.Conv2d(16, 5, 3)

    def forward(self, x):
        patches = F.unfold(F.relu(self.a(x)), 2, stride=2).transpose(1, 2)
        patches = self.b(F.relu(self.l(patches))).transpose(1, 2)
        return self.c(F.fold(patches, x.shape[-2:], 2, stride=2))


class Shuffle(nn.Module):
    """A ShuffleNet unit: half of the channels pass, the halves are shuffled one channel at a time."""

    def __init__(self, width=16):
        super().__init__()
        half = width // 2
        self.stem, self.out = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 5)
        self.branch = nn.Sequential(
            *(nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
            *(nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False), nn.BatchNorm2d(half)),
            *(nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
        )

    def forward(self, x):
        x = self.stem(x)
        for _ in range(2):
            left, right = x.chunk(2, dim=1)
            x = torch.cat((left, self.branch(right)), dim=1)
            b, c, h, w = x.shape
            x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        return self.out(x.mean((2, 3)))


# -- gates and computed weights ----------------------------------------------------------------------------------


class Conditional(nn.Module):
    """CondConv: each image has a mixture of kernels; a batch is one convolution in groups."""

    def __init__(self, kernels=3, width=16):
        super().__init__()
        self.stem, self.route = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, kernels)
        self.kernels = nn.Parameter(torch.randn(kernels, 24, width, 3, 3))
        self.norm, self.out = nn.BatchNorm2d(24), nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        b, c, h, w = x.shape
        mixture = self.route(x.mean((2, 3))).softmax(-1)
        weight = torch.einsum("bk,koihw->boihw", mixture, self.kernels).reshape(b * 24, c, 3, 3)
        x = F.conv2d(x.reshape(1, b * c, h, w), weight, padding=1, groups=b).view(b, 24, h, w)
        return self.out(F.relu(self.norm(x)).mean((2, 3)))


class Attended(nn.Module):
    """Efficient channel attention: a convolution slides over the channels, so these cannot go one by one."""

    def __init__(self, width=16):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 32, 3, padding=1)
        self.outer, self.slide = nn.Conv2d(32, width, 3, padding=1), nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.out = nn.Linear(width, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.outer(F.relu(self.inner(x)))
        gate = self.slide(F.adaptive_avg_pool2d(y, 1).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return self.out((x + y * gate.sigmoid()).mean((2, 3)))


class FrozenNorm(nn.Module):
    """BatchNorm whose statistics and affine part are buffers."""

    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "mean", "var"):  # random numbers come from support.exactness
            self.register_buffer(name, torch.ones(width))

    def forward(self, x):
        w, b = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        var, mean = self.var.reshape(1, -1, 1, 1), self.mean.reshape(1, -1, 1, 1)
        scale = w * (var + self.eps).rsqrt()
        return x * scale + (b - mean * scale)


class Frozen(nn.Module):
    """A residual network with frozen norms, as in the backbones of detectors."""

    def __init__(self, width=16):
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, width, 3, padding=1, bias=False), FrozenNorm(width)
        self.a, self.n1 = nn.Conv2d(width, 24, 3, padding=1, bias=False), FrozenNorm(24)
        self.b, self.n2 = nn.Conv2d(24, width, 3, padding=1, bias=False), FrozenNorm(width)
        self.out = nn.Linear(width, 5)

    def forward(self, x):
        x = F.relu(self.n0(self.stem(x)))
        y = self.n2(self.b(F.relu(self.n1(self.a(x)))))
        return self.out(F.relu(x + y).mean((2, 3)))


# -- what goes in and out ----------------------------------------------------------------------------------------


class Variadic(nn.Module):
    """``*args``."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(10, 16), nn.Linear(6, 16), nn.Linear(16, 5)

    def forward(self, *args):
        x, y = args
        return self.c(F.relu(self.a(x) + self.b(y)))


class BySize(nn.Module):
    """``if x.shape[…]``."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(24, 5)

    def forward(self, x):
        if x.shape[-1] > 8 and x.shape[1] == 3:
            x = F.max_pool2d(x, 2)
        return self.c(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class ModelOutput(collections.OrderedDict):
    """Like that of transformers: a dataclass that is an ordered dict of what is not None."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                self[field.name] = value


@dataclass
class ClassifierOutput(ModelOutput):
    logits: torch.Tensor | None = None
    features: torch.Tensor | None = None


register_pytree_node(
    ClassifierOutput,
    lambda output: (list(output.values()), list(output)),
    lambda values, names: ClassifierOutput(**dict(zip(names, values, strict=True))),
)


class Outputs(nn.Module):
    """A dict in, a ModelOutput out."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(10, 16), nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, batch):
        x = F.relu(self.b(F.relu(self.a(batch["values"])))) * batch["weights"]
        return ClassifierOutput(logits=self.d(F.relu(self.c(x))))


class Pyramid(nn.Module):
    """RetinaNet: the same head reads every level of a feature pyramid."""

    def __init__(self, width=16):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 20, 3, 2, 1)
        self.p1, self.p2 = nn.Conv2d(12, width, 1), nn.Conv2d(20, width, 1)
        self.tower = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(1, width), nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(width, 9, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x):
        low = F.relu(self.c1(x))
        high = F.relu(self.c2(low))
        p2 = self.p2(high)
        levels = [self.p1(low) + F.interpolate(p2, scale_factor=2.0, mode="nearest"), p2]
        classes, boxes = [], []
        for level in levels:
            y = self.tower(level)
            classes.append(self.classes(y).permute(0, 2, 3, 1).reshape(y.shape[0], -1, 9))
            boxes.append(self.boxes(y).permute(0, 2, 3, 1).reshape(y.shape[0], -1, 4))
        return {"classes": torch.cat(classes, 1), "boxes": torch.cat(boxes, 1)}


class DeadEnd(nn.Module):
    """A branch that never reaches the output."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.a(x))
        self.b(x).mean()
        return self.c(x.mean((2, 3)))


class Half(nn.Module):
    """Of sixteen channels, eight are read."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 24, 3), nn.Linear(24, 5)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x))[:, :8])).mean((2, 3)))


# name: (network, inputs, largest share of parameters left)
CASES = {
    "grouped-query attention, 28 to 4": (GroupedQueries, tokens(), 0.28),
    "talking heads, fused": (lambda: TalkingHeads(fused=True), tokens(), 0.35),
    "talking heads": (lambda: TalkingHeads(fused=False), tokens(), 0.35),
    "cross-covariance attention": (CrossCovariance, tokens(), 0.32),
    "windows with a table of biases": (Windows, image(), 0.35),
    "interpolated positional embedding": (Places, image(), 0.41),
    # a token's bias is added to every channel, so a channel is not zero without its weights: the width stays
    "mixer": (lambda: Mixer(bias=True), tokens(), 0.59),
    "mixer without biases": (lambda: Mixer(bias=False), tokens(), 0.38),
    "spatial gating unit": (SpatialGate, tokens(), 0.39),
    "pooling as token mixer": (Pooling, image(), 0.33),
    "space to depth by view": (SpaceToDepth, image(), 0.27),
    "unfold and fold": (Unfold, image(), 0.35),
    "shuffle of single channels": (Shuffle, image(), 0.47),
    "conditional convolution": (Conditional, image(), 0.35),
    # the channels over which the gate slides stay, those inside the branch go
    "efficient channel attention": (Attended, image(), 0.53),
    "frozen batch norm": (Frozen, image(), 0.32),
    "variable arguments": (Variadic, (torch.randn(2, 10), torch.randn(2, 6)), 0.52),
    "control flow over shapes": (BySize, image(), 0.29),
    "dict in, ModelOutput out": (Outputs, ({"values": torch.randn(2, 10), "weights": torch.randn(2, 1)},), 0.36),
    "one head for a feature pyramid": (Pyramid, image(), 0.34),
    "a branch that ends nowhere": (DeadEnd, image(), 0.29),
    "channels that nothing reads": (Half, image(), 0.32),
}

RULES = "ignore:no rule is known:fx_oto.FxOtoWarning"


@pytest.mark.filterwarnings(RULES)
@pytest.mark.parametrize("name", CASES)
def test_exact_and_not_frozen_away(name):
    build, inputs, limit = CASES[name]
    assert compress_half(build(), inputs).params_left <= limit


@pytest.mark.filterwarnings(RULES)
@pytest.mark.parametrize("name", CASES)
def test_a_second_round_finds_what_the_first_has_left(name):
    build, inputs, _ = CASES[name]
    first = compress_half(build(), inputs)
    second = compress_half(first.small, inputs)
    families = [
        f for f in fx_oto.partition(first.gm).families if name != "a branch that ends nowhere" or "b." not in f.name
    ]
    assert second.zigs == sum(len(family) - len(family) // 2 for family in families)


# -- how it is used ----------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Stem, residual coupling, two norms: a small ResNet."""

    def __init__(self, width=16):
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.a, self.n1 = nn.Conv2d(width, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.b, self.n2 = nn.Conv2d(24, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.out = nn.Linear(width, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.n0(self.stem(x))), 3, 2, 1)
        y = self.n2(self.b(F.relu(self.n1(self.a(x)))))
        x = F.dropout(F.relu(x + y).mean((2, 3)), 0.2, training=self.training)
        return self.out(x)


def halved(model, x, tolerance=1e-10, limit=0.28):
    """Half of every family zero, cut, and compared on another batch."""
    gm = fx_oto.prepare(model, x)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    other = torch.randn(5, *x.shape[1:]).to(x)
    with torch.no_grad():
        assert relative_error(model.eval()(other), small.eval()(other)) <= tolerance
    assert share(small, model) <= limit
    return small


def residual():
    return randomise(Residual().double()), image().double()


def test_frozen_parameters():
    model, x = residual()
    small = halved(model.requires_grad_(False), x)
    assert not any(parameter.requires_grad for parameter in small.parameters())


def test_partly_frozen_parameters():
    model, x = residual()
    model.stem.requires_grad_(False)
    small = halved(model, x)
    trained = {name for name, parameter in small.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in small.named_parameters()} - {"stem.weight"}


def test_under_no_grad():
    model, x = residual()
    with torch.no_grad():
        small = halved(model, x)
    small.train()(x).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in small.parameters())


@pytest.mark.filterwarnings(RULES)
def test_under_inference_mode():
    model, x = residual()
    with torch.inference_mode():
        small = halved(model, x)
        expected = small(x)
    torch.testing.assert_close(small(x), expected)


def test_bfloat16():
    model, x = residual()
    small = halved(model.bfloat16(), x.bfloat16(), tolerance=2**-6)
    assert {tensor.dtype for tensor in small.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "wrap",
    [
        "DataParallel",
        "DistributedDataParallel",
    ],
)
def test_a_wrapped_model(wrap, tmp_path):
    model, x = residual()
    if wrap == "DistributedDataParallel":
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        halved(getattr(nn.parallel, wrap)(model), x)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_a_new_optimizer_trains_the_compact_model():
    torch.manual_seed(0)
    model, x, goal = Residual(), torch.randn(16, 3, 12, 12), torch.randn(16, 5)
    gm = fx_oto.prepare(model, x)
    optimizer = fx_oto.DHSPG(gm, torch.optim.Adam, lr=1e-2, target_group_sparsity=0.5, total_steps=20)

    def step(network, optimizer):
        optimizer.zero_grad()
        loss = F.mse_loss(network(x), goal)
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(20):
        step(gm, optimizer)
    small = fx_oto.compress(gm).train()
    adam = torch.optim.Adam(small.parameters(), lr=1e-2)
    losses = [step(small, adam) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert len(adam.state) == len(list(small.parameters()))
    assert all(adam.state[p]["exp_avg"].shape == p.shape for p in small.parameters())


FRESH = """
import sys, torch
from torch import nn
state = torch.load(sys.argv[1], weights_only=True)
weights, x, y = state["model"], state["x"], state["y"]
wide, wider = weights["0.weight"].shape[0], weights["3.weight"].shape[0]
net = nn.Sequential(
    nn.Conv2d(3, wide, 3), nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, wider, 3),
    nn.Flatten(), nn.Linear(wider * 64, 5),
).double()
net.load_state_dict(weights, strict=True)
torch.testing.assert_close(net.eval()(x), y, rtol=1e-10, atol=1e-12)
assert (wide, wider) == (8, 12)
assert "fx_oto" not in sys.modules
"""


def test_weights_are_loaded_in_a_fresh_process_without_this_library(tmp_path):
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.Flatten()]
    model, x = randomise(nn.Sequential(*layers, nn.Linear(24 * 64, 5)).double()), image().double()
    small = halved(model, x, limit=0.43)  # the classifier reads pixels: its columns halve, its rows stay
    torch.save({"model": small.state_dict(), "x": x, "y": small(x).detach()}, tmp_path / "small.pt")
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path / "small.pt")], check=True)


def test_a_model_output_stays_one():
    inputs = CASES["dict in, ModelOutput out"][1]
    result = compress_half(Outputs(), inputs)
    output = result.small({name: value.double() for name, value in inputs[0].items()})
    assert output.logits.shape == (2, 5)
