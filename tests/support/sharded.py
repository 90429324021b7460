"""One process of a training whose parameters are sharded: what ``tests/optim/test_sharded.py`` runs with torchrun.

Usage: torchrun sharded.py FOLDER CASE…
       torchrun sharded.py FOLDER save|resume CASE STEP
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fx_oto

warnings.filterwarnings("ignore")

STEPS = 24
SGD = (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-3})
ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "eps": 1e-4})


class Net(nn.Module):
    """No axis is a multiple of 2 or 4; of ``gain`` only the first process has something; ``up`` makes columns."""

    widths = 7, 9, 11

    def __init__(self) -> None:
        super().__init__()
        first, second, last = self.widths
        self.first = nn.Conv2d(3, first, 3)
        self.scale = nn.Parameter(torch.rand(first, 1, 1) + 0.5)
        self.second = nn.Conv2d(first, second, 3)
        self.gain = nn.Parameter(torch.rand(1, second, 1, 1) + 0.5)
        self.up = nn.ConvTranspose2d(second, last, 2)
        self.head = nn.Linear(last, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x) * self.scale)
        x = F.relu(self.second(x) * self.gain)
        return self.head(F.relu(self.up(x)).mean((2, 3)))


class WideNet(Net):
    """Whose widths are what its latency depends on."""

    widths = 97, 129, 99


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(192, 16)  # torch divides these evenly
        self.narrow = nn.Linear(16, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.narrow(F.relu(self.wide(x.flatten(1))))))


def by_layer(net: nn.Module, gm: nn.Module) -> nn.Module:
    for layer in (net.first, net.second, net.up):
        fully_shard(layer)
    return fully_shard(net)


def as_a_whole(net: nn.Module, gm: nn.Module) -> nn.Module:
    return fully_shard(net)


def the_graph(net: nn.Module, gm: nn.Module) -> nn.Module:
    return fully_shard(gm)


def in_replicas(net: nn.Module, gm: nn.Module) -> nn.Module:
    """Two replicas, of which each is sharded over the rest of the processes."""
    return fully_shard(
        net, mesh=dist.init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("copy", "part"))
    )


def with_a_rough_layer(net: nn.Module, gm: nn.Module) -> nn.Module:
    """A layer computes in float32."""
    policy = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float64, output_dtype=torch.float64)
    fully_shard(net.second, mp_policy=policy)
    return fully_shard(net)


def in_tensor_parallel(net: nn.Module, gm: nn.Module) -> nn.Module:
    """Rows of one layer, and columns of the next, in different processes, which see the same batch."""
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(net, mesh, {"wide": ColwiseParallel(), "narrow": RowwiseParallel()})


def in_both(net: nn.Module, gm: nn.Module) -> nn.Module:
    """Pairs of processes in tensor parallel; the pairs share what each of the two has."""
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(net, mesh["tensor"], {"wide": ColwiseParallel(), "narrow": RowwiseParallel()})
    return fully_shard(net, mesh=mesh["data"])


@dataclass(frozen=True)
class Case:
    shard: Callable[[nn.Module, nn.Module], nn.Module] = by_layer
    kind: str = "DHSPG"
    base: tuple[type[torch.optim.Optimizer], dict[str, Any]] = SGD
    settings: dict[str, Any] = field(default_factory=dict)
    frozen: str = ""
    net: type[nn.Module] = Net


CASES = {
    "DHSPG, SGD": Case(settings={"periods": 2}),
    "DHSPG, AdamW": Case(as_a_whole, base=ADAMW),
    "DHSPG in strides": Case(settings={"stride": 3, "lam": 0.5, "epsilon": 0.3}),
    "HESSO, SGD": Case(as_a_whole, "HESSO"),
    "HESSO, AdamW": Case(kind="HESSO", base=ADAMW),
    "the graph": Case(the_graph),
    "in replicas": Case(in_replicas),
    "frozen": Case(frozen="second.weight"),
    "frozen, and pruned": Case(frozen="second.weight", settings={"prune_frozen": True}),
    "with a rough layer": Case(with_a_rough_layer, base=ADAMW),
    "tensor parallel": Case(in_tensor_parallel, net=Perceptron),
    "sharded, in tensor parallel": Case(in_both, net=Perceptron),
    "latency": Case(settings={"target_group_sparsity": None, "target_latency": 0.85}, net=WideNet),
}


def batch(step: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """The rank's part of the batch of a step."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 3, (8,), generator=generator)
    return images.chunk(ranks)[rank], labels.chunk(ranks)[rank]


def prepared(case: Case) -> tuple[nn.Module, torch.fx.GraphModule]:
    torch.manual_seed(0)
    net = case.net().double()
    if case.frozen:
        net.get_parameter(case.frozen).requires_grad_(False)
    return net, fx_oto.prepare(net, torch.randn(2, 3, 8, 8, dtype=torch.float64))


def build(case: Case, gm: torch.fx.GraphModule) -> fx_oto.GroupSparseOptimizer:
    base, options = case.base
    window = {"start_step": 3, "end_step": 20, "saliency_batches": 3, "target_group_sparsity": 0.5}
    with warnings.catch_warnings():
        if case.frozen:
            warnings.filterwarnings("ignore", "9 of the 27 ZIGs are left alone", fx_oto.FxOtoWarning)
        return getattr(fx_oto, case.kind)(gm, base, **options, **(window | case.settings))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, parts: list[tuple[int, int]]) -> None:
    """Train on these parts of each batch, every one a rank and how many ranks there are."""
    for step in steps:
        optimizer.zero_grad()
        for rank, ranks in parts:
            images, labels = batch(step, rank, ranks)
            (F.cross_entropy(model(images), labels) / len(parts)).backward()
        optimizer.step()


def part_of(case: Case) -> list[tuple[int, int]]:
    same = {in_tensor_parallel: dist.get_world_size(), in_both: 2}.get(case.shard, 1)  # that see the same batch
    return [(dist.get_rank() // same, dist.get_world_size() // same)]


def phases(optimizer: fx_oto.GroupSparseOptimizer) -> list[Tensor]:
    """Which ZIGs are gone (2)."""
    return optimizer.state_dict()["param_groups"][0]["zigs"]["phases"]


def finish(folder: Path, name: str, model: nn.Module, optimizer: fx_oto.GroupSparseOptimizer) -> None:
    """Save what this process ends with; the first one has the weights."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = {"weights": get_model_state_dict(model, options=options), "phases": phases(optimizer)}
    state |= {"reached": optimizer.trajectory.reached, "shown": repr(optimizer)}
    torch.save(state, folder / f"{name}.{dist.get_rank()}.pt")


def main(folder: Path, mode: str, *names: str) -> None:
    dist.init_process_group("gloo")
    if mode not in ("save", "resume"):
        for name in (mode, *names):
            net, gm = prepared(CASES[name])
            model = CASES[name].shard(net, gm)
            optimizer = build(CASES[name], gm)
            train(model, optimizer, range(STEPS), part_of(CASES[name]))
            finish(folder, name, model, optimizer)
    else:
        case, step = CASES[names[0]], int(names[1])
        net, gm = prepared(case)
        model = case.shard(net, gm)
        optimizer = build(case, gm)
        if mode == "save":
            train(model, optimizer, range(step), part_of(case))
        weights, state = get_state_dict(model, optimizer)
        everything = {"weights": weights, "optimizer": state}
        if mode == "save":
            dcp.save(everything, checkpoint_id=folder / "checkpoint")
        else:
            dcp.load(everything, checkpoint_id=folder / "checkpoint")
            set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
            train(model, optimizer, range(step, STEPS), part_of(case))
            finish(folder, names[0], model, optimizer)
    dist.barrier()  # one that is still writing must not lose the others
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
