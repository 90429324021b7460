"""Networks written with einops, functions and layers, small enough to be measured in seconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from networks import Built, Call, of_images
from torch import nn

from benchmarks.einops_networks import ConvAttention, Decoder, LinearAttentionUNet, Mixer, Perceiver, ViT

SMALL = {"image": 32, "patch": 8, "width": 48, "depth": 3, "heads": 4, "classes": 10}
VISION: dict[str, Callable[[], nn.Module]] = {
    "conv_attention": ConvAttention,
    "linear_attention_unet": LinearAttentionUNet,
    "mixer": Mixer,
    "perceiver": Perceiver,
    "vit": lambda: ViT(**SMALL),
    "vit_registers": lambda: ViT(**SMALL, registers=3),
}


def names() -> list[str]:
    return [*VISION, "decoder"]


def build(name: str) -> Built:
    if name == "decoder":
        return Built(Decoder(), partial(_tokens, 11), {"length": (partial(_tokens, 17),)})
    return of_images(VISION[name](), 3, 32, 32)


def _tokens(length: int, batch: int, seed: int) -> Call:
    return (torch.randint(0, 96, (batch, length), generator=torch.Generator().manual_seed(seed)),), {}
