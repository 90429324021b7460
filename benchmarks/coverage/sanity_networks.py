"""Small networks of the kinds that only_train_once checks itself on, written for this benchmark."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from support import networks
from torch import Tensor, nn

__all__ = ["NETWORKS"]


class Demo(nn.Module):
    """A residual pair and a concatenation, with any normalisation, grouping and upsampling."""

    def __init__(self, norm=nn.BatchNorm2d, groups=1, transposed=0, width=32):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, 2, 1), norm(width)
        self.left = nn.Conv2d(width, 2 * width, 3, padding=1, groups=groups)
        self.right = nn.Conv2d(width, 2 * width, 5, padding=2, groups=groups)
        self.norms = nn.ModuleList([norm(2 * width), norm(2 * width), norm(3 * width)])
        self.merge = nn.Conv2d(3 * width, 4 * width, 3, padding=1)
        sizes = [4 * width, 2 * width, width][: transposed + 1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairwise(sizes))
        self.head = nn.Sequential(nn.Linear(sizes[-1], 2 * width), nn.ReLU(), nn.Linear(2 * width, 10))

    def forward(self, x):
        first = F.relu(self.norm(self.stem(x)))
        left, right = self.norms[0](self.left(first)), self.norms[1](self.right(first))
        both = F.relu(left + right) + right
        out = F.relu(self.merge(self.norms[2](torch.cat([first, both], dim=1))))
        for layer in self.up:
            out = F.relu(layer(out))
        return self.head(out.mean((2, 3)))


class Concatenated(nn.Module):
    """Branches joined once, or joined, cut up by convolutions and joined again with what came before."""

    def __init__(self, times=1, width=32):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        sizes = [width * 3**i for i in range(times + 1)]
        self.branches = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(size, size, 3, padding=1), nn.Conv2d(size, size, 1), nn.BatchNorm2d(3 * size)])
            for size in sizes[:-1]
        )
        self.head = nn.Linear(sizes[-1], 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for wide, narrow, norm in self.branches:
            x = F.relu(norm(torch.cat([wide(x), x, narrow(x)], 1)))
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One convolution used at several depths; with ``pyramid``, one head for maps of several sizes."""

    def __init__(self, pyramid=False, width=32):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.down = nn.ModuleList(nn.Conv2d(width * 2**i, width * 2 ** (i + 1), 3, 2, 1) for i in range(3))
        self.lateral = nn.ModuleList(nn.Conv2d(width * 2 ** (i + 1), width, 1) for i in range(3))
        self.shared = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))
        self.heads = nn.ModuleList(nn.Conv2d(width, count, 3, padding=1) for count in (4, 10))
        self.pyramid = pyramid

    def forward(self, x):
        x, maps = F.relu(self.stem(x)), []
        if not self.pyramid:
            x = self.shared(self.shared(x) + x)
        for down, lateral in zip(self.down, self.lateral, strict=True):
            x = F.relu(down(x))
            maps.append(lateral(x))
        maps = [self.shared(m) for m in maps] if self.pyramid else maps[-1:]
        return [torch.cat([head(m).flatten(2) for m in maps], 2) for head in self.heads]


class ConvNextBlock(nn.Module):
    def __init__(self, width, scaled):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.body = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale = nn.Parameter(torch.ones(width)) if scaled else None

    def forward(self, x):
        out = self.body(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        if self.scale is not None:
            out = self.scale * out
        return x + out.permute(0, 3, 1, 2)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of an image, written out."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        centred = x - x.mean(1, keepdim=True)
        normal = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * normal + self.bias[:, None, None]


def convnext_tiny(scaled):
    widths, layers, channels = (96, 192, 384, 768), [], 3
    for width, depth in zip(widths, (3, 3, 9, 3), strict=True):
        if channels == 3:
            layers += [nn.Conv2d(3, width, 4, 4), ChannelNorm(width)]
        else:
            layers += [ChannelNorm(channels), nn.Conv2d(channels, width, 2, 2)]
        layers += [ConvNextBlock(width, scaled) for _ in range(depth)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(768), nn.Linear(768, 1000))


class TimeBlock(nn.Module):
    """A residual block that is told the time step."""

    def __init__(self, inputs, outputs, embedding):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(embedding, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, time):
        out = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.conv2(F.silu(self.norm2(out))) + self.shortcut(x)


class ImageAttention(nn.Module):
    """Every place of an image attends to every other, in one head."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.query, self.key, self.value, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        batch, channels, height, columns = x.shape
        normal = self.norm(x)
        query, key, value = (f(normal).reshape(batch, channels, -1) for f in (self.query, self.key, self.value))
        weights = torch.softmax(torch.bmm(query.transpose(1, 2), key) * channels**-0.5, dim=2)
        return x + self.out(torch.bmm(value, weights.transpose(1, 2)).reshape(batch, channels, height, columns))


class DiffusionUNet(nn.Module):
    """The denoising network of diffusion models, for 32 × 32 images."""

    def __init__(self, width=32):
        super().__init__()
        self.width, embedding = width, 4 * width
        self.embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.entry = nn.Conv2d(3, width, 3, padding=1)
        self.down1, self.down2 = TimeBlock(width, width, embedding), TimeBlock(width, 2 * width, embedding)
        self.halve1, self.halve2 = nn.Conv2d(width, width, 3, 2, 1), nn.Conv2d(2 * width, 2 * width, 3, 2, 1)
        self.middle1, self.middle2 = (TimeBlock(2 * width, 2 * width, embedding) for _ in range(2))
        self.attend1, self.attend2 = ImageAttention(2 * width), ImageAttention(2 * width)
        self.up2, self.up1 = TimeBlock(4 * width, 2 * width, embedding), TimeBlock(3 * width, width, embedding)
        self.grow2, self.grow1 = (nn.Conv2d(2 * width, 2 * width, 3, padding=1) for _ in range(2))
        self.norm, self.exit = nn.GroupNorm(8, width), nn.Conv2d(width, 3, 3, padding=1)

    def times(self, steps: Tensor) -> Tensor:
        half = self.width // 2
        rates = torch.exp(torch.arange(half, device=steps.device) * (-math.log(10_000) / (half - 1)))
        angles = (steps[:, None] * rates[None]).to(self.entry.weight.dtype)
        return self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))

    def forward(self, x, steps):
        time = self.times(steps)
        top = self.down1(self.entry(x), time)
        middle = self.attend1(self.down2(self.halve1(top), time))
        low = self.middle2(self.attend2(self.middle1(self.halve2(middle), time)), time)
        low = self.grow2(F.interpolate(low, scale_factor=2.0, mode="nearest"))
        low = self.up2(torch.cat([low, middle], 1), time)
        low = self.grow1(F.interpolate(low, scale_factor=2.0, mode="nearest"))
        return self.exit(F.silu(self.norm(self.up1(torch.cat([low, top], 1), time))))


# name: (how to build it, size of its images); see zoo_peers for those that come from other zoos
NETWORKS = {
    "carn": (networks.CARN, 12),
    "convnext_tiny_ls": (lambda: convnext_tiny(True), 64),
    "convnext_tiny_nols": (lambda: convnext_tiny(False), 64),
    "demonet_bn": (Demo, 32),
    "demonet_concat1": (lambda: Concatenated(1), 32),
    "demonet_concat2": (lambda: Concatenated(2), 32),
    "demonet_convt1": (lambda: Demo(transposed=1), 32),
    "demonet_convt2": (lambda: Demo(transposed=2), 32),
    "demonet_groupconv": (lambda: Demo(groups=4), 32),
    "demonet_in3": (lambda: Demo(nn.InstanceNorm2d), 32),
    "demonet_in4": (lambda: Demo(lambda width: nn.InstanceNorm2d(width, affine=True)), 32),
    "demonet_ws1": (Shared, 32),
    "demonet_ws2": (lambda: Shared(pyramid=True), 64),
    "resnet18_cifar10": (networks.resnet18, 32),
    "diffmodel_cifar": (DiffusionUNet, 32),
}
