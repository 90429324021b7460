"""Accuracy against multiply-adds on Fashion-MNIST: DHSPG and what a user would do instead.

    pip install -e '.[bench]' torch-pruning
    python benchmarks/quality.py --data DIR             # the folder of the four idx files; --jobs 2 on two cores

Each finished run is kept in ``quality.json`` beside this file, so the command can be stopped and started again; it
trains what is missing, prints the tables and draws ``quality.png``. All contenders are asked for the same fraction of
the multiply-adds, may take what they like of each layer but the last channel, and see the same images in the same
order, for the same number of epochs, with the same batch size, base optimizer, learning rates, weight decay and seeds:

- ``full``: no pruning.
- ``dhspg``: DHSPG with its defaults.
- ``hesso``: HESSO with its defaults, its authors'.
- ``magnitude``: half of the epochs, then the filters of least L2 norm (relative to the mean of their layers) are cut
  out, and the rest of the epochs trains the compact network.
- ``torch-pruning``: the library's group-norm pruner, by its own recipe: half of the epochs with its group sparsity
  regulariser, then the same share of every layer is cut out (its default; of all layers in one order it did worse: 81
  to 84% instead of 85% on the first run), and the rest of the epochs trains the compact network. Where it ends in an
  error of its own, that is kept in its place.
- ``scratch``: the architecture that DHSPG ended with, initialised anew and trained for all epochs.

Training is under bfloat16 autocast, in channels-last order, one thread for each run; evaluation is in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

import torch
import torch.nn.functional as F
from quality_shown import CONTENDERS, differences, draw, table
from small_networks import NETWORKS

import fx_oto
from fx_oto.demo.data import Images, fashion_mnist

HERE = Path(__file__).parent
SGD = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4})
BASES = {"vit": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.05})}
THOROUGH = ("resnet", "vgg")
BATCH = 128


@dataclass(frozen=True)
class Run:
    """One training. ``target`` is the fraction of the MACs, 1 for ``full``; ``scale`` multiplies the widths."""

    network: str
    contender: str
    target: float
    seed: int
    images: int
    epochs: int
    scale: int


def planned(images: int, epochs: int, scale: int) -> list[list[Run]]:
    """What is trained, in parts: two seeds at 0.15 for every network, then three at three targets for two of them."""
    pairs = [(0.15, seed) for seed in range(2)]
    more = [(target, seed) for seed in range(2) for target in (0.05, 0.3)]
    more += [(target, 2) for target in (0.15, 0.05, 0.3)]
    size = (images, epochs, scale)
    parts = []
    for network, cases in [*((name, pairs) for name in NETWORKS), *((name, more) for name in THOROUGH)]:
        runs = [
            Run(network, contender, 1.0 if contender == "full" else target, seed, *size)
            for target, seed in cases
            for contender in ("full", *CONTENDERS)
        ]
        parts.append(list(dict.fromkeys(runs)))
    return parts


class Training:
    """The data, the order, the learning rates: the same for every contender."""

    def __init__(self, run: Run, data: Path, device: str) -> None:
        whole = _load(data)
        layout = {"memory_format": torch.channels_last}
        self.images = Images(
            "fashion-mnist",
            whole.train[: run.images].to(device, **layout),
            whole.train_labels[: run.images].to(device),
            whole.test.to(device, **layout),
            whole.test_labels.to(device),
        )
        self.device, self.epochs = device, run.epochs
        self.steps = run.epochs * self.images.steps(BATCH)
        self.generator = torch.Generator().manual_seed(run.seed)
        torch.manual_seed(run.seed)
        self.model = NETWORKS[run.network](run.scale).to(device, **layout)
        self.base, self.settings = BASES.get(run.network, SGD)
        self.example = self.images.train[:2]

    def plain(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The base optimizer alone."""
        return self.base(model.parameters(), **self.settings)

    def fit(self, model, optimizer, first, last, regularise=lambda: None) -> None:
        """Train from the epoch ``first`` up to, not including, ``last``; ``regularise`` adds to the gradients."""
        per_epoch = self.images.steps(BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in range(first * per_epoch):
            optimizer._opt_called = True
            schedule.step()
        model.train()
        for _ in range(first, last):
            for batch, labels in self.images.batches(BATCH, self.generator):
                optimizer.zero_grad()
                with torch.autocast(self.device, torch.bfloat16):
                    loss = F.cross_entropy(model(batch.contiguous(memory_format=torch.channels_last)), labels)
                loss.backward()
                regularise()
                optimizer.step()
                schedule.step()

    @torch.no_grad()
    def accuracy(self, model: torch.nn.Module) -> float:
        """Percentage of the test images that a model gets right."""
        model.eval()
        pairs = zip(self.images.test.split(500), self.images.test_labels.split(500), strict=True)
        return 100 * sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs) / len(self.images.test)


@cache
def _load(data: Path) -> Images:
    return fashion_mnist(data)


def carry_out(run: Run, data: Path, device: str, dhspg: dict | None) -> dict:
    """Do one run; ``dhspg`` is the result of DHSPG for the same network, target and seed."""
    start = time.perf_counter()
    training = Training(run, data, device)
    whole = fx_oto.cost(training.model, training.example[:1])
    make = {"dhspg": _dhspg, "hesso": _hesso, "torch-pruning": _torch_pruning}
    make |= {"full": _full, "magnitude": _magnitude, "scratch": _scratch}
    try:
        model, widths = make[run.contender](run, training, dhspg)
    except Exception as error:
        if run.contender != "torch-pruning":
            raise
        return {**asdict(run), "failed": f"{type(error).__name__}: {error}"}
    cost = fx_oto.cost(model, training.example[:1])
    return {
        **asdict(run),
        "accuracy": round(training.accuracy(model), 2),
        "macs": round(cost.macs / whole.macs, 4),
        "params": round(cost.params / whole.params, 4),
        "full_macs": whole.macs,
        **widths,
        "seconds": round(time.perf_counter() - start),
    }


def _full(run, training, _):
    training.fit(training.model, training.plain(training.model), 0, run.epochs)
    return training.model, {}


def _sparse(kind, run, training):
    gm = fx_oto.prepare(training.model, training.example)
    target = {"target_macs": run.target, "total_steps": training.steps}
    training.fit(gm, kind(gm, training.base, **target, **training.settings), 0, run.epochs)
    return fx_oto.compress(gm), {"removed": fx_oto.partition(gm).removed().tolist()}


def _dhspg(run, training, _):
    return _sparse(fx_oto.DHSPG, run, training)


def _hesso(run, training, _):
    return _sparse(fx_oto.HESSO, run, training)


def _magnitude(run, training, _):
    training.fit(training.model, training.plain(training.model), 0, run.epochs // 2)
    gm = fx_oto.prepare(training.model, training.example)
    calibration = training.images.train[:2000].split(500)
    fx_oto.prune(gm, target_macs=run.target, saliency=_relative_norm, allocation="global", data=calibration)
    compact = fx_oto.compress(gm)
    training.fit(compact, training.plain(compact), run.epochs // 2, run.epochs)
    return compact, {"removed": fx_oto.partition(gm).removed().tolist()}


def _relative_norm(zigs):
    return [-family.norm / family.square.mean().sqrt() for family in zigs]


def _torch_pruning(run, training, _):
    import torch_pruning as tp

    model, steps = training.model, 200
    heads = {layer.qkv: layer.heads for layer in getattr(model, "layers", ()) if hasattr(layer, "qkv")}
    pruner = tp.pruner.GroupNormPruner(
        model,
        training.example,
        tp.importance.GroupMagnitudeImportance(),
        reg=5e-4,
        pruning_ratio=0.99,
        max_pruning_ratio=0.99,
        iterative_steps=steps,
        ignored_layers=[[one for one in model.modules() if isinstance(one, torch.nn.Linear)][-1]],
        num_heads=heads,
    )
    pruner.update_regularizer()
    half = run.epochs // 2
    training.fit(model, training.plain(model), 0, half, lambda: pruner.regularize(model))
    full = fx_oto.cost(model, training.example[:1]).macs
    while fx_oto.cost(model, training.example[:1]).macs > run.target * full:
        pruner.step()
    training.fit(model, training.plain(model), half, run.epochs)
    return model, {"widths": [p.shape[0] for p in model.parameters() if p.ndim > 1]}


def _scratch(run, training, dhspg):
    gm = fx_oto.prepare(training.model, training.example)
    for i, count in enumerate(dhspg["removed"]):
        fx_oto.partition(gm).zero_zigs_(i, torch.arange(count))
    compact = fx_oto.compress(gm)
    torch.manual_seed(1000 + run.seed)
    reset: set[torch.nn.Parameter] = set()
    for module in compact.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
            reset |= set(module.parameters())
        elif "Norm" in type(module).__name__:  # ours, over channels that are gone
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)
            reset |= set(module.parameters())
    for parameter in set(compact.parameters()) - reset:
        torch.nn.init.trunc_normal_(parameter, std=0.02)
    training.fit(compact, training.plain(compact), 0, run.epochs)
    return compact, {"removed": dhspg["removed"]}


# -- what is kept -----------------------------------------------------------------------------------------


def key_of(entry: dict) -> Run:
    """The run that an entry of the file belongs to."""
    return Run(**{name: entry[name] for name in Run.__dataclass_fields__})


def load(path: Path) -> dict[Run, dict]:
    """The finished runs."""
    entries = json.loads(path.read_text())["runs"] if path.exists() else []
    return {key_of(entry): entry for entry in entries}


def save(path: Path, done: dict[Run, dict], device: str) -> None:
    """Write the finished runs, so that an interruption leaves a whole file."""
    about = {"torch": torch.__version__, "device": device, "machine": platform.machine(), "date": time.strftime("%F")}
    ordered = sorted(done.values(), key=lambda e: (e["network"], e["contender"], e["target"], e["seed"]))
    lines = ",\n".join("  " + json.dumps(entry) for entry in ordered)
    part = path.with_suffix(".part")
    part.write_text(f'{{"about": {json.dumps(about)}, "runs": [\n{lines}\n]}}\n')
    os.replace(part, path)


def complete(options: argparse.Namespace) -> dict[Run, dict]:
    """Carry out what is missing; training from scratch comes after DHSPG, whose widths it takes."""
    done = load(options.json)
    size = (options.images, options.epochs, options.scale)
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for part in planned(*size):
            for late in (False, True):
                missing = [run for run in part if run not in done and (run.contender == "scratch") == late]
                tasks = {}
                for run in missing:
                    guide = done.get(Run(run.network, "dhspg", run.target, run.seed, *size))
                    tasks[pool.submit(carry_out, run, options.data, options.device, guide)] = run
                for task in as_completed(tasks):
                    done[tasks[task]] = entry = task.result()
                    save(options.json, done, options.device)
                    print(*(entry[k] for k in ("network", "contender", "target", "seed")), _told(entry), flush=True)
    return {run: entry for run, entry in done.items() if (run.images, run.epochs, run.scale) == size}


def _told(entry: dict) -> str:
    if "failed" in entry:
        return entry["failed"]
    return f"{entry['accuracy']}% at {entry['macs']:.1%} of the MACs, {entry['seconds']} s"


def main() -> None:
    """Train what is missing, then print and draw."""
    parser = argparse.ArgumentParser(description="Accuracy against MACs on Fashion-MNIST.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the four idx files")
    parser.add_argument("--json", type=Path, default=HERE / "quality.json", help="finished runs (default: %(default)s)")
    parser.add_argument("--png", type=Path, default=HERE / "quality.png", help="the plot (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once (default: one for each core)")
    parser.add_argument("--images", type=int, default=4_000, help="training images (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--scale", type=int, default=1, help="factor on every width (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    options = parser.parse_args()
    done = complete(options)
    print(table(done), differences(done), sep="\n\n")
    draw(done, options.png)


if __name__ == "__main__":
    main()
