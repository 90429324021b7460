"""One process of a distributed training: what ``tests/optim/test_processes.py`` runs with torchrun.

Usage: torchrun in_processes.py FOLDER TARGET STEPS
"""

from __future__ import annotations

import sys
import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fx_oto

warnings.filterwarnings("ignore")


def make_net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 32, 3), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(32 * 100, 4)).double()


def batch(step: int, rank: int, ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rank's part of the batch of a step."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (8,), generator=generator)
    return images.chunk(ranks)[rank], labels.chunk(ranks)[rank]


def main(folder: str, target: str, steps: int) -> None:
    """Train, and save what this rank ends with."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    net = make_net()
    gm = fx_oto.prepare(net, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    wrapped = DistributedDataParallel(net)
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.01, momentum=0.9, total_steps=steps, **{target: 0.5})
    for step in range(steps):
        images, labels = batch(step, rank, ranks)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(images), labels).backward()
        optimizer.step()
    small = fx_oto.compress(gm)
    images, _ = batch(steps, rank, ranks)
    torch.testing.assert_close(small.eval()(images), wrapped.eval()(images), rtol=1e-9, atol=1e-12)
    state = {"zeros": fx_oto.partition(gm).zeros(), "weights": net.state_dict()}
    torch.save(state | {"reached": optimizer.trajectory.reached, "left": small.state_dict()}, f"{folder}/{rank}.pt")
    dist.barrier()  # one that is still writing must not lose the others
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
