"""Train once, compress, and print one table of what came out."""

from __future__ import annotations

import argparse
import copy
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn

import fx_oto
from fx_oto.demo.data import Images, digits, fashion_mnist
from fx_oto.demo.network import ResidualNet
from fx_oto.progress import progress

__all__ = ["main"]

_EXAMPLES = """examples:
  python -m fx_oto demo
  python -m fx_oto demo --baseline
  python -m fx_oto demo --data fashion-mnist --root data/fashion_mnist --width 16
"""


@dataclass(frozen=True)
class Measured:
    """One column of the table."""

    accuracy: float
    cost: fx_oto.Cost
    bytes: int
    latency: float


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m fx_oto``."""
    options = _parser().parse_args(argv)
    try:
        print(run(options))
    except fx_oto.FxOtoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fx_oto", epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train a small residual network once on real images, compress it and compare",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("--data", choices=("digits", "fashion-mnist"), default="digits", help="default: %(default)s")
    demo.add_argument("--root", type=Path, default=Path("data"), help="folder of the Fashion-MNIST idx files")
    demo.add_argument("--target", type=float, default=0.7, help="group sparsity to reach (default: %(default)s)")
    demo.add_argument("--epochs", type=int, help="default: 30 for digits, 3 for fashion-mnist")
    demo.add_argument("--width", type=int, default=32, help="channels of the first stage (default: %(default)s)")
    demo.add_argument("--batch", type=int, default=64, help="batch size (default: %(default)s)")
    demo.add_argument("--lr", type=float, default=0.1, help="learning rate of SGD (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    demo.add_argument("--baseline", action="store_true", help="also train the same network without DHSPG")
    demo.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def run(options: argparse.Namespace) -> str:
    """Do the job; returns the table."""
    images = digits() if options.data == "digits" else fashion_mnist(options.root)
    epochs = options.epochs or (30 if options.data == "digits" else 3)
    torch.manual_seed(options.seed)
    model = ResidualNet(options.width)
    twin = copy.deepcopy(model) if options.baseline else None
    total = epochs * images.steps(options.batch)

    gm = fx_oto.prepare(model, images.train[:2])
    sgd = {"lr": options.lr, "momentum": 0.9, "weight_decay": 5e-4}
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, target_group_sparsity=options.target, total_steps=total, **sgd)
    _train(gm, optimizer, images, epochs, options, "DHSPG")
    small = fx_oto.compress(gm)

    columns: dict[str, nn.Module] = {"full": model, "compact": small}
    if twin is not None:
        _train(twin, torch.optim.SGD(twin.parameters(), **sgd), images, epochs, options, "baseline")
        columns = {"without DHSPG": twin, **columns}
    return _table(columns, images, options, optimizer, small)


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Images,
    epochs: int,
    options: argparse.Namespace,
    name: str,
) -> None:
    """A plain training loop: cross-entropy, cosine learning rate."""
    total = epochs * images.steps(options.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    generator = torch.Generator().manual_seed(options.seed)
    model.train()
    for _ in progress(range(epochs), name, unit="epoch", show=False if options.quiet else None):
        for batch, labels in images.batches(options.batch, generator):
            optimizer.zero_grad()
            F.cross_entropy(model(batch), labels).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def _table(
    columns: dict[str, nn.Module], images: Images, options: argparse.Namespace, optimizer: fx_oto.DHSPG, small: Any
) -> str:
    latency = fx_oto.latency(columns, images.test[:256], progress=False if options.quiet else None)
    measured = {
        name: Measured(_accuracy(model, images), fx_oto.cost(model, images.test[:1]), _size(model), taken.median)
        for (name, model), taken in zip(columns.items(), latency, strict=True)
    }
    full = measured["full"]
    rows: list[tuple[str, Callable[[Measured], str]]] = [
        ("accuracy", lambda m: f"{m.accuracy:.2%}"),
        ("parameters", lambda m: f"{m.cost.params:,} ({m.cost.params / full.cost.params:.1%})"),
        ("MACs per image", lambda m: f"{m.cost.macs / 1e6:.2f}M ({m.cost.macs / full.cost.macs:.1%})"),
        ("file size", lambda m: f"{m.bytes / 1024:.0f} KiB"),
        ("latency, batch of 256", lambda m: f"{1e3 * m.latency:.1f} ms ({m.latency / full.latency:.1%})"),
    ]
    table = tabulate(
        [(name, *(show(m) for m in measured.values())) for name, show in rows], ("", *measured), disable_numparse=True
    )
    with torch.no_grad():
        difference = (columns["full"](images.test) - small(images.test)).abs().max().item()
    return (
        f"{images.name}: {len(images.train):,} images to train on, {len(images.test):,} to test on\n\n{table}\n\n"
        f"group sparsity: asked {options.target:.3f}, reached {optimizer.group_sparsity:.3f}\n"
        f"largest output difference, full to compact, on the test images: {difference:.1e}"
    )


@torch.no_grad()
def _accuracy(model: nn.Module, images: Images) -> float:
    right = [
        (model(batch).argmax(1) == labels).sum()
        for batch, labels in zip(images.test.split(512), images.test_labels.split(512), strict=True)
    ]
    return float(sum(right)) / len(images.test)


def _size(model: nn.Module) -> int:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()
