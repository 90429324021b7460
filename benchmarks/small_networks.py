"""The networks of the quality benchmark: real architectures at widths that train in a minute on one core."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from support.networks import Block, DemoNet, StackedUnets
from torch import nn

__all__ = ["NETWORKS"]


class VGG(nn.Module):
    """Six convolutions with batch normalisation, and global pooling."""

    def __init__(self, width):
        super().__init__()
        layers, channels = [], 1
        for out in (width, width, None, 2 * width, 2 * width, None, 4 * width, 4 * width):
            if out is None:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.features, self.head = nn.Sequential(*layers), nn.Linear(channels, 10)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class ResNet(nn.Module):
    """A strided stem and three stages of one basic block each."""

    def __init__(self, width):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x):
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class DenseNet(nn.Module):
    """Three dense blocks of four layers, each layer fed by everything before it in its block."""

    def __init__(self, growth):
        super().__init__()
        self.stem = nn.Conv2d(1, 2 * growth, 3, 2, 1, bias=False)
        channels, blocks, transitions = 2 * growth, [], []
        for _ in range(3):
            blocks.append(nn.ModuleList(self._layer(channels + i * growth, growth) for i in range(4)))
            channels += 4 * growth
            transitions.append(self._layer(channels, channels // 2, kernel=1))
            channels //= 2
        self.blocks, self.transitions = nn.ModuleList(blocks), nn.ModuleList(transitions)
        self.norm, self.head = nn.BatchNorm2d(channels), nn.Linear(channels, 10)

    @staticmethod
    def _layer(inputs, outputs, kernel=3):
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), convolution)

    def forward(self, x):
        x = self.stem(x)
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            for layer in block:
                x = torch.cat([x, layer(x)], 1)
            x = F.avg_pool2d(transition(x), 2, ceil_mode=True)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class PaddedUnets(StackedUnets):
    """StackedUnets with a strided stem, over images padded to 32 × 32, which they can halve five times."""

    def __init__(self, scale):
        super().__init__((16 * scale, 32 * scale, 64 * scale), 16 * scale, inputs=1)
        self.stem[0].stride = (2, 2)

    def forward(self, x):
        return super().forward(F.pad(x, (2, 2, 2, 2)))


class ViT(nn.Module):
    """Patches of 4 × 4 pixels, three pre-norm layers of four heads, and mean pooling."""

    def __init__(self, width, layers=3, heads=4):
        super().__init__()
        self.patches, self.places = nn.Conv2d(1, width, 4, 4), nn.Parameter(0.02 * torch.randn(1, 49, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class Layer(nn.Module):
    """Self-attention and an MLP of twice the width, each behind a norm and beside a shortcut."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, -1)
        x = x + self.out(attended)
        return x + self.mlp(self.norm2(x))


NETWORKS = {
    "resnet": lambda scale: ResNet(32 * scale),
    "vit": lambda scale: ViT(64 * scale),
    "densenet": lambda scale: DenseNet(16 * scale),
    "unets": PaddedUnets,
    "vgg": lambda scale: VGG(32 * scale),
    "demonet": lambda scale: DemoNet(width=16 * scale, inputs=1),
}
