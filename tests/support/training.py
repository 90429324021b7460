"""A small network, its data and a training loop, for the tests of the optimizers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import fx_oto

IMAGE = torch.randn(2, 3, 8, 8, dtype=torch.float64)
BASES = {
    "SGD": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    "AdamW": (torch.optim.AdamW, {"lr": 2e-3}),
}


def make_net(seed=0):
    """Two families, of 12 and 20 ZIGs."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        nn.Conv2d(12, 20, 3, padding=1, bias=False),
        *(nn.BatchNorm2d(20), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5)),
    ).double()


def prepared(seed=0):
    return fx_oto.prepare(make_net(seed), IMAGE)


def batches(count, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        image = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
        yield image, torch.randint(0, 5, (8,), generator=generator)


def train(model, optimizer, steps, seed=1, schedule=None, dtype=torch.float64):
    for image, label in batches(steps, seed, dtype):
        optimizer.zero_grad()
        F.cross_entropy(model(image), label).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
