"""Networks whose data movement is written with einops, as functions and as layers: small, and in many spellings.

``ViT`` is in the style of https://github.com/lucidrains/vit-pytorch; the code is our own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import einsum, pack, rearrange, reduce, repeat, unpack
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn

__all__ = ["ConvAttention", "Decoder", "LinearAttentionUNet", "Mixer", "Perceiver", "ViT"]


def feed_forward(width: int, hidden: int, dropout: float = 0.0) -> nn.Sequential:
    layers = (nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout))
    return nn.Sequential(nn.LayerNorm(width), *layers)


class Attention(nn.Module):
    """Self-attention, or of one sequence to another."""

    def __init__(self, width: int, heads: int, head: int, context: int | None = None, dropout: float = 0.0):
        super().__init__()
        self.heads, self.scale = heads, head**-0.5
        self.norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(context) if context else None
        self.queries = nn.Linear(width, heads * head, bias=False)
        self.keys_values = nn.Linear(context or width, 2 * heads * head, bias=False)
        self.attend, self.drop = nn.Softmax(dim=-1), nn.Dropout(dropout)
        self.out = nn.Linear(heads * head, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        context = x if context is None else self.context_norm(context)
        parts = (self.queries(x), *self.keys_values(context).chunk(2, dim=-1))
        queries, keys, values = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in parts)
        scores = einsum(queries, keys, "b h i d, b h j d -> b h i j") * self.scale
        mixed = einsum(self.drop(self.attend(scores)), values, "b h i j, b h j d -> b h i d")
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))


class SelfAttention(nn.Module):
    """Queries, keys and values of one projection, a product written with ``@``."""

    def __init__(self, width: int, heads: int, head: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.scale = heads, head**-0.5
        self.norm, self.attend, self.dropout = nn.LayerNorm(width), nn.Softmax(dim=-1), nn.Dropout(dropout)
        self.to_qkv = nn.Linear(width, 3 * heads * head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in parts)
        weights = self.dropout(self.attend(q @ k.transpose(-1, -2) * self.scale))
        return self.to_out(rearrange(weights @ v, "b h n d -> b n (h d)"))


class ViT(nn.Module):
    """A vision transformer: patches by a layer, class token by ``repeat``, register tokens by ``pack``."""

    def __init__(
        self,
        image: int = 224,
        patch: int = 16,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        classes: int = 1000,
        registers: int = 0,
    ):
        super().__init__()
        head, patches, inputs = width // heads, (image // patch) ** 2, 3 * patch**2
        self.to_patches = nn.Sequential(
            Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=patch, p2=patch),
            *(nn.LayerNorm(inputs), nn.Linear(inputs, width), nn.LayerNorm(width)),
        )
        self.position = nn.Parameter(torch.randn(1, patches + 1, width))
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.registers = nn.Parameter(torch.randn(registers, width)) if registers else None
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.ModuleList(
            nn.ModuleList([SelfAttention(width, heads, head, 0.1), feed_forward(width, 4 * width, 0.1)])
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.to_patches(image)
        b, n, _ = x.shape
        x = torch.cat((repeat(self.class_token, "1 1 d -> b 1 d", b=b), x), dim=1)
        x = self.dropout(x + self.position[:, : n + 1])
        shapes = None
        if self.registers is not None:
            x, shapes = pack([repeat(self.registers, "n d -> b n d", b=b), x], "b * d")
        for attention, forward in self.layers:
            x = attention(x) + x
            x = forward(x) + x
        if shapes is not None:
            _, x = unpack(x, shapes, "b * d")
        return self.head(self.norm(x)[:, 0])


class Mixer(nn.Module):
    """Tokens and channels mixed in turns, the axes exchanged by layers and the mean taken by one."""

    def __init__(self, image: int = 32, patch: int = 8, width: int = 48, depth: int = 3, classes: int = 10):
        super().__init__()
        tokens = (image // patch) ** 2

        def mix(size: int, hidden: int) -> list[nn.Module]:
            return [nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size)]

        self.embed = nn.Sequential(
            Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch), nn.Linear(3 * patch**2, width)
        )
        turned, back = "b n d -> b d n", "b d n -> b n d"
        over_tokens = (
            nn.Sequential(nn.LayerNorm(width), Rearrange(turned), *mix(tokens, 32), Rearrange(back))
            for _ in range(depth)
        )
        over_channels = (nn.Sequential(nn.LayerNorm(width), *mix(width, 96)) for _ in range(depth))
        self.blocks = nn.ModuleList(block for pair in zip(over_tokens, over_channels, strict=True) for block in pair)
        self.head = nn.Sequential(nn.LayerNorm(width), Reduce("b n d -> b d", "mean"), nn.Linear(width, classes))

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Perceiver(nn.Module):
    """Latents that read an image of any size, whose positions are Fourier features made of its sizes."""

    def __init__(self, width: int = 48, latents: int = 12, depth: int = 2, bands: int = 4, classes: int = 10):
        super().__init__()
        self.bands, inputs = bands, 3 + 2 * (2 * bands + 1)
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    *(Attention(width, 1, 24, context=inputs, dropout=0.1), feed_forward(width, 96)),
                    *(Attention(width, 4, 12, dropout=0.1), feed_forward(width, 96)),
                ]
            )
            for _ in range(depth)
        )
        self.head = nn.Sequential(Reduce("b n d -> b d", "mean"), nn.LayerNorm(width), nn.Linear(width, classes))

    def positions(self, x: Tensor) -> Tensor:
        axes = [torch.linspace(-1.0, 1.0, steps=size, device=x.device, dtype=x.dtype) for size in x.shape[1:-1]]
        place = rearrange(torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1), "... a -> ... a 1")
        scaled = place * torch.linspace(1.0, 5.0, self.bands, device=x.device, dtype=x.dtype) * math.pi
        return rearrange(torch.cat([scaled.sin(), scaled.cos(), place], dim=-1), "... a d -> ... (a d)")

    def forward(self, image: Tensor) -> Tensor:
        image = rearrange(image, "b c h w -> b h w c")
        where = repeat(self.positions(image), "... -> b ...", b=image.shape[0])
        context = rearrange(torch.cat((image, where), dim=-1), "b ... d -> b (...) d")
        x = repeat(self.latents, "n d -> b n d", b=image.shape[0])
        for read, forward, attention, second in self.layers:
            x = read(x, context) + x
            x = forward(x) + x
            x = attention(x) + x
            x = second(x) + x
        return self.head(x)


class ConvProjection(nn.Module):
    """Attention over the places of a map, with depthwise convolutions in front of queries, keys and values."""

    def __init__(self, width: int, heads: int, head: int):
        super().__init__()
        self.heads, self.scale = heads, head**-0.5
        self.queries, self.keys_values = self.project(width, heads * head, 1), self.project(width, 2 * heads * head, 2)
        self.out = nn.Conv2d(heads * head, width, 1)

    @staticmethod
    def project(width: int, outputs: int, stride: int) -> nn.Sequential:
        depthwise = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        return nn.Sequential(depthwise, nn.BatchNorm2d(width), nn.Conv2d(width, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        *_, height, _ = x.shape
        parts = (self.queries(x), *self.keys_values(x).chunk(2, dim=1))
        q, k, v = (rearrange(part, "b (h d) x y -> (b h) (x y) d", h=self.heads) for part in parts)
        mixed = torch.einsum("bij,bjd->bid", (q @ rearrange(k, "b n d -> b d n") * self.scale).softmax(dim=-1), v)
        return self.out(rearrange(mixed, "(b h) (x y) d -> b (h d) x y", h=self.heads, x=height))


class ConvAttention(nn.Module):
    """Convolutions embed, attention with convolutional projections mixes, in two stages."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.stages, channels = nn.ModuleList(), 3
        for width, stride in ((24, 4), (48, 2)):
            embed = nn.Conv2d(channels, width, 2 * stride - 1, stride, stride - 1)
            forward = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))
            norms = (nn.BatchNorm2d(width), nn.BatchNorm2d(width))
            self.stages.append(nn.ModuleList([embed, *norms, ConvProjection(width, width // 12, 12), forward]))
            channels = width
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        for embed, first, second, attention, forward in self.stages:
            x = embed(x)
            x = attention(first(x)) + x
            x = forward(second(x)) + x
        return self.head(reduce(x, "b c h w -> b c", "mean"))


class LinearAttention(nn.Module):
    """Attention whose softmax is over keys and queries apart, so that it costs as much as the image is large."""

    def __init__(self, width: int, heads: int = 2, head: int = 8):
        super().__init__()
        self.heads, self.scale = heads, head**-0.5
        self.to_qkv, self.out = nn.Conv2d(width, 3 * heads * head, 1, bias=False), nn.Conv2d(heads * head, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        q, k, v = rearrange(self.to_qkv(x), "b (qkv h d) x y -> qkv b h d (x y)", qkv=3, h=self.heads)
        context = einsum(k.softmax(dim=-1), v / (height * width), "b h d n, b h e n -> b h d e")
        mixed = einsum(context, q.softmax(dim=-2) * self.scale, "b h d e, b h d n -> b h e n")
        return self.out(rearrange(mixed, "b h d (x y) -> b (h d) x y", x=height, y=width))


class LinearAttentionUNet(nn.Module):
    """Down by space-to-depth, up again by depth-to-space, with a skip connection between."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.Sequential(Rearrange("b c (h p) (w q) -> b (c p q) h w", p=2, q=2), nn.Conv2d(4 * width, 32, 1))
        self.norm, self.attention = nn.GroupNorm(4, 32), LinearAttention(32)
        self.up = nn.Sequential(nn.Conv2d(32, 4 * width, 1), Rearrange("b (c p q) h w -> b c (h p) (w q)", p=2, q=2))
        self.merge = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = F.silu(self.stem(x))
        deep = self.down(first)
        deep = self.attention(self.norm(deep)) + deep
        return self.merge(torch.cat((self.up(F.silu(deep)), first), dim=1))


class DecoderLayer(nn.Module):
    """Causal attention with rotary positions; keys and values are shared by pairs of heads."""

    def __init__(self, width: int, heads: int, head: int):
        super().__init__()
        self.heads, self.groups, self.head = heads, heads // 2, head
        self.norm, self.queries = nn.RMSNorm(width), nn.Linear(width, heads * head, bias=False)
        self.keys_values = nn.Linear(width, 2 * self.groups * head, bias=False)
        self.out, self.forward_norm = nn.Linear(heads * head, width, bias=False), nn.RMSNorm(width)
        self.gate, self.down = nn.Linear(width, 2 * 96, bias=False), nn.Linear(96, width, bias=False)

    def rotate(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)
        rates = 100.0 ** -(torch.arange(0, self.head, 2, device=x.device, dtype=x.dtype) / self.head)
        angles = repeat(torch.outer(place, rates), "n d -> n (d two)", two=2)
        left, right = rearrange(x, "... (d two) -> ... d two", two=2).unbind(dim=-1)
        turned = rearrange(torch.stack((-right, left), dim=-1), "... d two -> ... (d two)")
        return x * angles.cos() + turned * angles.sin()

    def attend(self, x: Tensor) -> Tensor:
        q = rearrange(self.queries(x), "b n (g h d) -> b g h n d", g=self.groups, d=self.head)
        k, v = rearrange(self.keys_values(x), "b n (two g d) -> two b g n d", two=2, g=self.groups)
        scores = einsum(self.rotate(q), self.rotate(k), "b g h i d, b g j d -> b g h i j") * self.head**-0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(later, float("-inf")).softmax(dim=-1)
        return self.out(rearrange(einsum(weights, v, "b g h i j, b g j d -> b g h i d"), "b g h n d -> b n (g h d)"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(self.norm(x)) + x
        gate, up = self.gate(self.forward_norm(x)).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up) + x


class Decoder(nn.Module):
    """A language model: tokens of any length."""

    def __init__(self, vocabulary: int = 96, width: int = 48, depth: int = 2):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(DecoderLayer(width, 4, 12) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))
