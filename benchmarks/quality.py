"""Accuracy against multiply-adds on Fashion-MNIST: DHSPG and what a user would do instead.

    pip install -e '.[bench]'
    python benchmarks/quality.py --data DIR             # the folder of the four idx files; --jobs 2 on two cores

Each finished run is kept in ``quality.json`` beside this file, so the command can be stopped and started again; it
trains what is missing, prints the tables and draws ``quality.png``. All contenders see the same images in the same
order, for the same number of epochs, with the same batch size, learning rates, weight decay and seeds:

- ``full``: no pruning.
- ``dhspg``: DHSPG with its defaults, at the group sparsity of the row.
- ``hesso``: HESSO with its defaults, at the MACs that DHSPG left.
- ``magnitude``: half of the epochs, then the filters of least L2 norm (relative to the mean of their layers) are cut
  out, down to the MACs that DHSPG left, and the rest of the epochs fine-tunes the compact network.
- ``scratch``: the architecture that DHSPG ended with, initialised anew and trained for all epochs.

Training is under bfloat16 autocast, in channels-last order, one thread for each run; evaluation is in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

import torch
import torch.nn.functional as F
from small_networks import NETWORKS
from tabulate import tabulate

import fx_oto
from fx_oto.demo.data import Images, fashion_mnist
from fx_oto.optim.limits import Limits
from fx_oto.optim.selection import select
from fx_oto.optim.targets import Target

HERE = Path(__file__).parent
CONTENDERS = ("dhspg", "hesso", "magnitude", "scratch")
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
BATCH = 128


@dataclass(frozen=True)
class Run:
    """One training. ``sparsity`` is 0 for ``full``; ``scale`` multiplies the networks' widths."""

    network: str
    contender: str
    sparsity: float
    seed: int
    images: int
    epochs: int
    scale: int


def planned(images: int, epochs: int, scale: int, contenders: Iterable[str]) -> list[Run]:
    """Three seeds at three sparsities for two networks, one seed at 0.7 for the others."""
    runs = []
    for contender in contenders:
        for network in NETWORKS:
            thorough = network in ("vgg", "resnet")
            for seed in range(3 if thorough else 1):
                levels = (0.0,) if contender == "full" else (0.7, 0.5, 0.9) if thorough else (0.7,)
                runs += [Run(network, contender, level, seed, images, epochs, scale) for level in levels]
    return runs


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
        self.example = self.images.train[:2]

    def fit(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        """Train from the epoch ``first`` up to, not including, ``last``."""
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
    """Do one run; ``dhspg`` is the result of DHSPG for the same network, sparsity and seed."""
    start = time.perf_counter()
    training = Training(run, data, device)
    gm = fx_oto.prepare(training.model, training.example)
    zigs = fx_oto.partition(gm)
    model = {"full": _full, "dhspg": _dhspg, "hesso": _hesso, "magnitude": _magnitude, "scratch": _scratch}[
        run.contender
    ](run, training, gm, dhspg)
    cost = fx_oto.cost(model, training.example[:1])
    whole = fx_oto.cost(training.model, training.example[:1])
    return {
        **asdict(run),
        "accuracy": round(training.accuracy(model), 2),
        "group_sparsity": round(zigs.group_sparsity(), 4),
        "macs": round(cost.macs / whole.macs, 4),
        "params": round(cost.params / whole.params, 4),
        "full_macs": whole.macs,
        "removed": zigs.removed().tolist(),
        "seconds": round(time.perf_counter() - start),
    }


def _full(run, training, gm, _):
    training.fit(gm, torch.optim.SGD(gm.parameters(), **SGD), 0, run.epochs)
    return gm


def _dhspg(run, training, gm, _):
    target = {"target_group_sparsity": run.sparsity, "total_steps": training.steps}
    training.fit(gm, fx_oto.DHSPG(gm, torch.optim.SGD, **target, **SGD), 0, run.epochs)
    return fx_oto.compress(gm)


def _hesso(run, training, gm, dhspg):
    target = {"target_macs": dhspg["macs"], "total_steps": training.steps}
    training.fit(gm, fx_oto.HESSO(gm, torch.optim.SGD, **target, **SGD), 0, run.epochs)
    return fx_oto.compress(gm)


def _magnitude(run, training, gm, dhspg):
    training.fit(gm, torch.optim.SGD(gm.parameters(), **SGD), 0, run.epochs // 2)
    zigs, scores = fx_oto.partition(gm), []
    parameters = dict(gm.named_parameters())
    for family in zigs.families:
        square = torch.zeros(len(family))
        for slot in family.variables:
            rows = parameters[slot.tensor].detach().movedim(slot.dim, 0)
            square += rows.reshape(len(rows), -1).square().sum(1).cpu()[slot.index].sum(1)
        scores.append(-(square / square.mean()).sqrt())
    target = Target("macs", dhspg["macs"], zigs.macs)
    limits = Limits.of(zigs.families, [False] * len(zigs.families), target.uniform / 2, 1.0, 1)
    chosen = select(scores, limits, target, target.left)
    for i, positions in enumerate(chosen):
        zigs.zero_zigs_(i, positions)
    compact = fx_oto.compress(gm)
    training.fit(compact, torch.optim.SGD(compact.parameters(), **SGD), run.epochs // 2, run.epochs)
    return compact


def _scratch(run, training, gm, dhspg):
    for i, count in enumerate(dhspg["removed"]):
        fx_oto.partition(gm).zero_zigs_(i, torch.arange(count))
    compact = fx_oto.compress(gm)
    torch.manual_seed(1000 + run.seed)
    for module in compact.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    training.fit(compact, torch.optim.SGD(compact.parameters(), **SGD), 0, run.epochs)
    return compact


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
    ordered = sorted(done.values(), key=lambda e: (e["network"], e["contender"], e["sparsity"], e["seed"]))
    lines = ",\n".join("  " + json.dumps(entry) for entry in ordered)
    part = path.with_suffix(".part")
    part.write_text(f'{{"about": {json.dumps(about)}, "runs": [\n{lines}\n]}}\n')
    os.replace(part, path)


def complete(options: argparse.Namespace) -> dict[Run, dict]:
    """Carry out what is missing: DHSPG first, for the others are measured at the MACs that it leaves."""
    done = load(options.json)
    size = (options.images, options.epochs, options.scale)
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for wave in (("full", "dhspg"), ("hesso", "magnitude", "scratch")):
            missing = [run for run in planned(*size, wave) if run not in done]
            tasks = {}
            for run in missing:
                guide = done.get(Run(run.network, "dhspg", run.sparsity, run.seed, *size))
                tasks[pool.submit(carry_out, run, options.data, options.device, guide)] = run
            for count, task in enumerate(as_completed(tasks), 1):
                done[tasks[task]] = entry = task.result()
                save(options.json, done, options.device)
                print(
                    f"{count}/{len(missing)}",
                    *(entry[k] for k in ("network", "contender", "sparsity", "seed")),
                    f"{entry['accuracy']}% at {entry['macs']:.1%} of the MACs, {entry['seconds']} s",
                    flush=True,
                )
    return {run: entry for run, entry in done.items() if (run.images, run.epochs, run.scale) == size}


# -- what is shown ----------------------------------------------------------------------------------------


def results(done: dict[Run, dict], network: str, contender: str) -> dict[float, list[dict]]:
    """The finished runs of one contender on one network, by group sparsity."""
    found: dict[float, list[dict]] = {}
    for run, entry in sorted(done.items(), key=lambda item: item[0].sparsity):
        if (run.network, run.contender) == (network, contender):
            found.setdefault(run.sparsity, []).append(entry)
    return found


def table(done: dict[Run, dict]) -> str:
    """Accuracy of each contender, mean and standard deviation over the seeds, at the same MACs."""
    rows = []
    for network in NETWORKS:
        full = _mean(results(done, network, "full").get(0.0, []))
        by_contender = [results(done, network, contender) for contender in CONTENDERS]
        for level, entries in by_contender[0].items():
            macs = f"{_average(entries, 'macs'):.1%}"
            rows.append((network, f"{level}", macs, full, *(_mean(found.get(level, [])) for found in by_contender)))
    headers = ("network", "group sparsity", "MACs left", "no pruning", "DHSPG", "HESSO", "magnitude", "from scratch")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _mean(entries: list[dict]) -> str:
    values = [entry["accuracy"] for entry in entries]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def _average(entries: list[dict], name: str) -> float:
    return statistics.mean(entry[name] for entry in entries)


def draw(done: dict[Run, dict], path: Path) -> None:
    """Accuracy against MACs, a panel for each network; one dot for each seed, a line through the means."""
    names = {"dhspg": "DHSPG", "hesso": "HESSO", "magnitude": "magnitude + fine-tuning", "scratch": "from scratch"}
    panels, baselines = {}, {}
    for network in NETWORKS:
        for entries in results(done, network, "full").values():
            baselines[network] = _average(entries, "accuracy")
        panels[network] = {
            name: [
                ([100 * entry["macs"] for entry in entries], [entry["accuracy"] for entry in entries])
                for entries in results(done, network, contender).values()
            ]
            for contender, name in names.items()
        }
    fx_oto.plot_tradeoff(panels, baseline=baselines, ylabel="test accuracy (%)").save(path)


def main() -> None:
    """Train what is missing, then print and draw."""
    parser = argparse.ArgumentParser(description="Accuracy against MACs on Fashion-MNIST.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the four idx files")
    parser.add_argument("--json", type=Path, default=HERE / "quality.json", help="finished runs (default: %(default)s)")
    parser.add_argument("--png", type=Path, default=HERE / "quality.png", help="the plot (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once (default: one for each core)")
    parser.add_argument("--images", type=int, default=12_000, help="training images (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--scale", type=int, default=1, help="factor on every width (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    options = parser.parse_args()
    done = complete(options)
    print(table(done))
    draw(done, options.png)


if __name__ == "__main__":
    main()
