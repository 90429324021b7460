"""The paper's networks, written for these tests, and a layer that slicing does not know."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class DemoNet(nn.Module):
    """The authors' demonstration network: a residual pair, then a concatenation over its input."""

    def __init__(self, classes=10, width=64, inputs=3):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width)
        self.conv3, self.bn3 = nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width)
        self.bn4 = nn.BatchNorm2d(3 * width)
        self.conv5 = nn.Conv2d(3 * width, 4 * width, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear1, self.linear2 = nn.Linear(4 * width, 2 * width), nn.Linear(2 * width, classes)

    def forward(self, x):
        first = F.relu(self.bn1(self.conv1(x)))
        left, right = self.bn2(self.conv2(first)), self.bn3(self.conv3(first))
        both = F.relu(left + right) + right
        out = F.relu(self.conv5(self.bn4(torch.cat([first, both], dim=1))))
        out = self.pool(out).reshape(out.size(0), -1)
        return self.linear2(F.relu(self.linear1(out)))


class VGG(nn.Module):
    """VGG16 for 32 × 32 images, with or without batch normalisation."""

    def __init__(self, norm=True, classes=10):
        super().__init__()
        layers, channels = [], 3
        for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width) if norm else nn.Identity()]
            layers.append(nn.ReLU(inplace=True))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512, 512),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(512, 512),
            nn.ReLU(True),
            nn.Linear(512, classes),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


class Block(nn.Module):
    expansion = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        outputs = width * self.expansion
        self.body = self.make_body(inputs, width, stride)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def make_body(self, inputs, width, stride):
        return nn.Sequential(
            *(nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


class Bottleneck(Block):
    expansion = 4

    def make_body(self, inputs, width, stride):
        return nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)),
        )


class ResNet(nn.Module):
    """ResNet with the stem for 32 × 32 images."""

    def __init__(self, block, counts, classes=10, width=64, inputs=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(inputs, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages, channels = [], width
        for i, count in enumerate(counts):
            blocks = []
            for j in range(count):
                blocks.append(block(channels, width * 2**i, 2 if i and not j else 1))
                channels = width * 2**i * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        out = self.stages(self.stem(x))
        out = F.avg_pool2d(out, 4)
        return self.head(out.view(out.size(0), -1))


def resnet18():
    return ResNet(Block, (2, 2, 2, 2))


def resnet50():
    return ResNet(Bottleneck, (3, 4, 6, 3))


class CascadeBlock(nn.Module):
    """Three residual blocks, each fed by a 1 × 1 convolution over everything before it."""

    def __init__(self, width):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)]) for _ in range(3)
        )
        self.merges = nn.ModuleList(nn.Conv2d(width * (i + 2), width, 1) for i in range(3))

    def forward(self, x):
        seen = out = x
        for (first, second), merge in zip(self.blocks, self.merges, strict=True):
            block = F.relu(second(F.relu(first(out))) + out)
            seen = torch.cat([seen, block], dim=1)
            out = F.relu(merge(seen))
        return out


class CARN(nn.Module):
    """Cascading residual network for super-resolution, upscaling by 2."""

    def __init__(self, width=64):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1))
        self.entry = nn.Conv2d(3, width, 3, 1, 1)
        self.blocks = nn.ModuleList(CascadeBlock(width) for _ in range(3))
        self.merges = nn.ModuleList(nn.Conv2d(width * (i + 2), width, 1) for i in range(3))
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 3, 1, 1), nn.ReLU(inplace=True), nn.PixelShuffle(2))
        self.exit = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, x):
        seen = out = self.entry(x - self.mean)
        for block, merge in zip(self.blocks, self.merges, strict=True):
            seen = torch.cat([seen, block(out)], dim=1)
            out = F.relu(merge(seen))
        return self.exit(self.up(out)) + self.mean


class UNetUnit(nn.Module):
    """A small U: two strided convolutions down, two transposed ones up, concatenated skips, a residual around it."""

    def __init__(self, width, inner):
        super().__init__()
        self.reduce = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, inner, 1, bias=False))
        self.down1 = nn.Sequential(nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, inner, 3, 2, 1, bias=False))
        self.down2 = nn.Sequential(nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, inner, 3, 2, 1, bias=False))
        self.up2 = nn.Sequential(nn.BatchNorm2d(inner), nn.ReLU(), nn.ConvTranspose2d(inner, inner, 2, 2, bias=False))
        self.up1 = nn.Sequential(nn.BatchNorm2d(2 * inner), nn.ReLU(), nn.ConvTranspose2d(2 * inner, inner, 2, 2))
        self.restore = nn.Sequential(nn.BatchNorm2d(2 * inner), nn.ReLU(), nn.Conv2d(2 * inner, width, 1, bias=False))

    def forward(self, x):
        top = self.reduce(x)
        middle = self.down1(top)
        up = self.up2(self.down2(middle))
        up = self.up1(torch.cat([up, middle], 1))
        return x + self.restore(torch.cat([up, top], 1))


class StackedUnets(nn.Module):
    """U-shaped units stacked like the blocks of a residual network."""

    def __init__(self, widths=(64, 128, 256), inner=64, classes=10, inputs=3):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        stages = []
        for i, width in enumerate(widths):
            if i:
                stages += [nn.Conv2d(widths[i - 1], width, 1, bias=False), nn.AvgPool2d(2)]
            stages += [UNetUnit(width, inner), UNetUnit(width, inner)]
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x):
        out = F.relu(self.norm(self.stages(self.stem(x))))
        return self.head(F.adaptive_avg_pool2d(out, 1).flatten(1))


class DecoderBlock(nn.Module):
    """Grouped-query attention with rotary embeddings and a gated feed-forward network, each after an RMS norm."""

    def __init__(self, width, heads, key_heads, hidden):
        super().__init__()
        self.half, self.head_dim = width // heads // 2, width // heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.o = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(width, key_heads * self.head_dim, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def rotate(self, x, cos, sin):
        return x * cos + torch.cat((-x[..., self.half :], x[..., : self.half]), -1) * sin

    def forward(self, x, cos, sin):
        batch, length, width = x.shape
        y = self.norm1(x)
        q, k, v = (p(y).view(batch, length, -1, self.head_dim).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, width))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """A language model in Llama's shape; by default of 7 billion parameters."""

    def __init__(self, vocabulary=32000, width=4096, layers=32, heads=32, key_heads=32, hidden=11008):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, key_heads, hidden) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head_dim = width // heads

    def forward(self, ids):
        x = self.embed(ids)
        place = torch.arange(ids.size(1), device=ids.device).to(x.dtype)
        rate = 10000 ** -(torch.arange(0, self.head_dim, 2, device=ids.device).to(x.dtype) / self.head_dim)
        angle = place[:, None] * torch.cat((rate, rate))
        for block in self.blocks:
            x = block(x, angle.cos(), angle.sin())
        return self.head(self.norm(x))


class Scale(nn.Module):
    """A layer that says it is torch's, and is none that slicing knows."""

    __module__ = "torch.nn.modules.scale"

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x):
        return x * self.weight
