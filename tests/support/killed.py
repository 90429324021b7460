"""A training that saves itself now and then, and is killed at a step: what ``tests/optim/test_killed.py`` runs.

Started by torchrun, each process trains on its part of every batch, and the first one saves.

Usage: killed.py FILE OPTIMIZER BASE TRAINED KILLED_AT
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fx_oto

STEPS, EVERY = 60, 4
BASES = {"SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}), "AdamW": (torch.optim.AdamW, {"lr": 1e-2})}


def train(file: Path, kind: str, base: str, trained: str, killed_at: int = -1) -> nn.Module:
    """Go on from what was saved, to the end; or until the process is killed, after a step and before it is saved."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 3))
    gm = fx_oto.prepare(net, torch.randn(2, 8))
    optimizer_class, options = BASES[base]
    settings = {"target_group_sparsity": 0.5, "total_steps": STEPS, "periods": 2}
    optimizer = getattr(fx_oto, kind)(gm, optimizer_class, **options, **settings)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=7)
    model = net if trained == "model" else gm
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    wrapped = DistributedDataParallel(model) if ranks > 1 else model
    start = 0
    if file.exists():
        saved = torch.load(file)
        start = saved["step"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
    for step in range(start, STEPS):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step)).chunk(ranks)[rank]
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(wrapped(x), (x[:, 0] > 0).long())).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        if step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if (step + 1) % EVERY == 0 and rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
            torch.save(state | {"step": step + 1}, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)
    return net


if __name__ == "__main__":
    file, kind, base, trained, killed_at = sys.argv[1:]
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    train(Path(file), kind, base, trained, int(killed_at))
    if dist.is_initialized():
        dist.barrier()  # one that is still writing must not lose the others
        dist.destroy_process_group()
