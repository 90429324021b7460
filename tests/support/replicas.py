"""One process of a training by ``DistributedDataParallel`` of a model whose ``forward`` does not use all parameters.

Usage: torchrun replicas.py FOLDER
"""

from __future__ import annotations

import sys
import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fx_oto

warnings.filterwarnings("ignore")
STEPS = 20
IMAGES = torch.randn(STEPS, 16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class OfTheLoss(nn.Module):
    """The loss has a head and a temperature, which ``forward`` does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        self.head, self.other = nn.Linear(16, 3), nn.Linear(3, 3)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def loss(self, y: Tensor) -> Tensor:
        return (self.other(y) * self.log_scale.exp()).square().mean()


class OfNobody(OfTheLoss):
    """Nothing uses them."""

    def loss(self, y: Tensor) -> Tensor:
        return y.square().mean()


KINDS = {kind.__name__: kind for kind in (OfTheLoss, OfNobody)}


def trained(kind: str, which: str, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """The weights after a training of ``which``: the "model" or "gm" in replicas, or the model "alone"."""
    torch.manual_seed(0)
    model = KINDS[kind]().double()
    gm = fx_oto.prepare(model, IMAGES[0, :4])
    optimizer = fx_oto.DHSPG(gm, torch.optim.AdamW, lr=0.01, target_params=0.6, total_steps=STEPS)
    wrapped = model
    if which != "alone":
        idle = kind == "OfNobody"
        wrapped = DistributedDataParallel(gm if which == "gm" else model, find_unused_parameters=idle)
    for images in IMAGES:
        optimizer.zero_grad()
        model.loss(wrapped(images.chunk(ranks)[rank])).backward()
        optimizer.step()
    assert optimizer.reached()["params"] <= 0.6
    return model.state_dict()


def needs_finding(which: str, rank: int, ranks: int) -> bool:
    """Whether torch refuses a second step with parameters that nothing uses, unless it looks for them."""
    model = OfNobody().double()
    gm = fx_oto.prepare(model, IMAGES[0, :4])
    wrapped = DistributedDataParallel(gm if which == "gm" else model)
    try:
        for _ in range(2):
            model.loss(wrapped(IMAGES[0].chunk(ranks)[rank])).backward()
    except RuntimeError as error:
        return "find_unused_parameters=True" in str(error)
    return False


def main(folder: str) -> None:
    """Train each kind in each way, and save what this rank ends with."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    ways = [(kind, which) for kind in KINDS for which in ("model", "gm")]
    found = {way: trained(*way, rank, ranks) for way in ways}
    torch.save([found, [needs_finding(which, rank, ranks) for which in ("model", "gm")]], f"{folder}/{rank}.pt")
    dist.barrier()  # one that is still writing must not lose the others
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
