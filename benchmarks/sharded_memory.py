"""Memory of each process in a training with sharded parameters, with AdamW alone and in a pruning window of DHSPG.

    python benchmarks/sharded_memory.py

Starts itself with torchrun on 1, 2 and 4 processes (gloo, CPU). Parameters, gradients and optimizer state are what the
process holds of them in bytes of tensors; the peak is the rise of its resident memory over that before the model.
"""

from __future__ import annotations

import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import fx_oto
from fx_oto.core.memory import PeakMemory

WIDTH, BLOCKS, STEPS = 512, 8, 8


def make() -> nn.Sequential:
    pairs = [(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)) for _ in range(BLOCKS)]
    return nn.Sequential(*(layer for pair in pairs for layer in pair))


def held(tensors: object) -> int:
    """Bytes of what is here of some tensors."""
    parts = [t.to_local() if hasattr(t, "to_local") else t for t in tensors if isinstance(t, torch.Tensor)]
    return sum(part.numel() * part.element_size() for part in parts)


def measure(pruning: bool) -> str:
    dist.init_process_group("gloo")
    with PeakMemory() as peak:
        with torch.device("meta"):
            model = make()
        gm = fx_oto.prepare(model, torch.empty(2, WIDTH, device="meta")) if pruning else None
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model).to_empty(device="cpu")
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
        settings = {"target_group_sparsity": 0.7, "start_step": 1, "end_step": STEPS, "saliency_batches": 1}
        adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
        optimizer = adamw if gm is None else fx_oto.DHSPG(gm, adamw, **settings)
        for _ in range(STEPS - 1):
            optimizer.zero_grad()
            model(torch.randn(8, WIDTH)).square().mean().backward()
            optimizer.step()
    state = held(value for values in adamw.state.values() for value in values.values())
    found = held(model.parameters()), held(p.grad for p in model.parameters()), state, peak.bytes or 0
    dist.destroy_process_group()
    return " | ".join(f"{size / 2**20:.0f} MiB" for size in found)


def main() -> None:
    if "RANK" in os.environ:
        line = measure(sys.argv[1] == "DHSPG")
        if os.environ["RANK"] == "0":
            print(f"| {sys.argv[1]} | {os.environ['WORLD_SIZE']} | {line} |")
        return
    print("| optimizer | processes | parameters | gradients | state | peak |\n|---|---|---|---|---|---|", flush=True)
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment["MALLOC_MMAP_THRESHOLD_"] = str(2**17)  # what is freed goes back to the system at once
    for processes in (1, 2, 4):
        for name in ("AdamW", "DHSPG"):
            torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            subprocess.run([sys.executable, "-m", *torchrun, __file__, name], env=environment, check=True)


if __name__ == "__main__":
    main()
