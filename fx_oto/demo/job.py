"""Train once, compress, and compare what came out."""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule

import fx_oto
from fx_oto.core.errors import SettingsError
from fx_oto.core.paths import check_folder
from fx_oto.core.picture import drawing
from fx_oto.core.progress import progress
from fx_oto.core.tables import macs_text, table
from fx_oto.demo.data import Images, digits, fashion_mnist
from fx_oto.demo.measure import Measured
from fx_oto.demo.network import ResidualNet

__all__ = ["Outcome", "demo"]


@dataclass(frozen=True)
class Outcome:
    """The result of the job; ``str()`` prints the table."""

    images: Images
    columns: dict[str, Measured]
    accuracy: dict[str, float]
    asked: float
    reached: float
    difference: float

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values: bytes, and seconds of a forward pass of 256 images."""
        return {
            "data": {"name": self.images.name, "train": len(self.images.train), "test": len(self.images.test)},
            "models": {name: {"accuracy": self.accuracy[name], **m.to_dict()} for name, m in self.columns.items()},
            "group_sparsity": {"asked": self.asked, "reached": self.reached},
            "difference": self.difference,
        }

    def __str__(self) -> str:
        full = self.columns["full"]
        rows: list[tuple[str, Callable[[Measured], str]]] = [
            ("parameters", lambda m: f"{m.cost.params:,} ({m.cost.params / full.cost.params:.1%})"),
            ("MACs per image", lambda m: f"{macs_text(m.cost.macs)} ({m.cost.macs / full.cost.macs:.1%})"),
            ("file size", lambda m: f"{m.bytes / 1024:.0f} KiB"),
            (
                "latency, batch of 256",
                lambda m: f"{1e3 * (m.seconds or 0):.1f} ms ({(m.seconds or 0) / (full.seconds or 1):.1%})",
            ),
        ]
        cells = [("accuracy", *(f"{accuracy:.2%}" for accuracy in self.accuracy.values()))]
        cells += [(name, *(show(m) for m in self.columns.values())) for name, show in rows]
        models = table(cells, ("", *self.columns))
        return (
            f"{self.images.name}: {len(self.images.train):,} images to train on, {len(self.images.test):,} to test "
            f"on\n\n{models}\n\n"
            f"group sparsity: asked {self.asked:.3f}, reached {self.reached:.3f}\n"
            f"largest output difference, full to compact, on the test images: {self.difference:.1e}"
        )


def demo(options: argparse.Namespace) -> Outcome:
    """Carry out the command."""
    _check(options)
    images = digits() if options.data == "digits" else fashion_mnist(options.root)
    if options.batch > len(images.train):
        raise SettingsError(f"--batch {options.batch}: there are {len(images.train):,} images to train on")
    epochs = (30 if options.data == "digits" else 3) if options.epochs is None else options.epochs
    torch.manual_seed(options.seed)
    model = ResidualNet(options.width)
    twin = copy.deepcopy(model) if options.baseline else None
    total = epochs * images.steps(options.batch)

    gm = fx_oto.prepare(model, images.train[:2])
    sgd = {"lr": options.lr, "momentum": 0.9, "weight_decay": 5e-4}
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, target_group_sparsity=options.target, total_steps=total, **sgd)
    _train(gm, optimizer, images, epochs, options, "DHSPG")
    small = fx_oto.compress(gm)
    if options.draw is not None:
        _draw(options.draw, gm, small)

    columns: dict[str, nn.Module] = {"full": model, "compact": small}
    if twin is not None:
        _train(twin, torch.optim.SGD(twin.parameters(), **sgd), images, epochs, options, "baseline")
        columns = {"without DHSPG": twin, **columns}
    return _measured(columns, images, options.target, optimizer.group_sparsity, options.quiet)


def _check(options: argparse.Namespace) -> None:
    """Refuse wrong options before any work.

    Raises:
        InputError: there is no place for the pictures.
        SettingsError: a number cannot be used.
    """
    for name in ("epochs", "width", "batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise SettingsError(f"--{name} must be at least 1; found {value}")
    if not 0 < options.lr < math.inf:
        raise SettingsError(f"--lr must be a number above 0; found {options.lr:g}")
    if options.draw is not None:
        check_folder(options.draw, "--draw")
        with drawing():
            pass  # matplotlib is there


def _draw(folder: Path, gm: GraphModule, small: GraphModule) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fx_oto.partition(gm).draw().save(folder / "families.png")
    fx_oto.plot_widths(gm, small).save(folder / "widths.png")
    training = fx_oto.report(small).training
    assert training is not None
    training.plot().save(folder / "training.png")


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
            loss = F.cross_entropy(model(batch), labels)
            loss.backward()
            if isinstance(optimizer, fx_oto.DHSPG):
                optimizer.note_loss(loss)
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def _measured(models: dict[str, nn.Module], images: Images, asked: float, reached: float, quiet: bool) -> Outcome:
    latency = fx_oto.latency(models, images.test[:256], progress=False if quiet else None)
    columns = {
        name: Measured.of(model, images.test[:1], taken.median)
        for (name, model), taken in zip(models.items(), latency, strict=True)
    }
    accuracy = {name: _accuracy(model, images) for name, model in models.items()}
    difference = (models["full"](images.test) - models["compact"](images.test)).abs().max().item()
    return Outcome(images, columns, accuracy, asked, reached, difference)


@torch.no_grad()
def _accuracy(model: nn.Module, images: Images) -> float:
    right = [
        (model(batch).argmax(1) == labels).sum()
        for batch, labels in zip(images.test.split(512), images.test_labels.split(512), strict=True)
    ]
    return float(sum(right)) / len(images.test)
