"""One run: train, keep a checkpoint after every epoch, compress, score."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import fx_oto
from benchmarks.paper.networks import build
from benchmarks.paper.recipes import RECIPES, Recipe
from benchmarks.paper.tasks import SHAPES, Options, Task, load

Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What makes a run the same as another.

    Attributes:
        recipe: its name.
        full: without pruning, with the base optimizer alone.
        epochs: the schedule and the pruning window keep their proportions.
        subset: training samples, None for all.
        width: channels of the first layer, None for the published ones.
        seed: of weights, order and augmentation.
        precision: ``float32``, or ``bfloat16`` for autocast.
        batch: samples in a step.
    """

    recipe: str
    full: bool
    epochs: int
    subset: int | None
    width: int | None
    seed: int
    precision: str
    batch: int

    def __str__(self) -> str:
        """A name for files."""
        parts = [self.recipe, "full" if self.full else "pruned", f"{self.epochs}ep", f"b{self.batch}"]
        parts += [f"{value}{unit}" for value, unit in ((self.subset, "images"), (self.width, "wide")) if value]
        return "-".join([*parts, f"seed{self.seed}", self.precision])


class Training:
    """Model, optimizer and schedule of a run, at the beginning or where its checkpoint left it."""

    def __init__(self, run: Run, recipe: Recipe, task: Task, options: Options) -> None:
        self.run, self.recipe, self.task, self.device = run, recipe, task, options.device
        torch.manual_seed(run.seed)
        task.generator.manual_seed(run.seed)
        shape, classes = SHAPES[recipe.data]
        given = {"width": run.width, "weights": options.weights}
        self.model = build(recipe.network, recipe.data, shape, classes, **given)
        self.model.to(self.device, memory_format=torch.channels_last)
        self.per_epoch = recipe.steps or task.steps()
        self.total = run.epochs * self.per_epoch
        self.gm = fx_oto.prepare(self.model, task.example)
        self.optimizer = self._optimizer()
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.rate)
        self.epoch, self.seconds, self.losses = 0, 0.0, []

    def window(self) -> tuple[int, int]:
        """First step of the pruning window, and the one by which the target is reached."""
        start, end = (round(epoch / self.recipe.epochs * self.total) for epoch in self.recipe.window)
        return start, max(end, start + 1)

    def rate(self, step: int) -> float:
        """The factor on the learning rate."""
        epoch = step / self.per_epoch * self.recipe.epochs / self.run.epochs
        return self.recipe.schedule.rate(round(epoch, 9), self.recipe.epochs)  # whole epochs must stay whole

    def _optimizer(self) -> torch.optim.Optimizer:
        base, settings = getattr(torch.optim, self.recipe.base), self.recipe.base_settings
        if self.run.full:
            return base(self.gm.parameters(), **settings)
        start, end = self.window()
        target = {"target_group_sparsity": self.recipe.target, "total_steps": self.total}
        if self.recipe.optimizer == "DHSPG":  # of each layer, half of what would be left if all lost the same share
            target["min_kept"] = (1 - self.recipe.target) / 2
        kind = getattr(fx_oto, self.recipe.optimizer)
        return kind(self.gm, base, **target, start_step=start, end_step=end, **self.recipe.options, **settings)

    def train_epoch(self) -> float:
        """One epoch; its mean loss."""
        began, sum_, count = time.perf_counter(), torch.zeros((), device=self.device), 0
        self.gm.train()
        for batch in self.task.batches():
            self.optimizer.zero_grad()
            with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.run.precision == "bfloat16"):
                loss = self.task.loss(self.gm, batch)
            loss.backward()
            if self.recipe.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.gm.parameters(), self.recipe.clip)
            self.optimizer.step()
            self.schedule.step()
            sum_, count = sum_ + loss.detach(), count + 1
        self.epoch += 1
        self.losses.append(round(sum_.item() / count, 4))
        self.seconds += time.perf_counter() - began
        return self.losses[-1]

    def state(self) -> dict[str, Any]:
        """All that the rest of the training depends on."""
        return {
            "run": asdict(self.run),
            "model": self.gm.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order": self.task.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_on_device": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "progress": (self.epoch, self.seconds, self.losses),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint ends.

        Raises:
            InputError: it is another run's.
        """
        if state["run"] != asdict(self.run):
            raise fx_oto.InputError(f"the checkpoint is of {state['run']}, not of {asdict(self.run)}: move it away")
        self.gm.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.task.generator.set_state(state["order"].cpu())
        torch.set_rng_state(state["random"].cpu())
        if state["random_on_device"]:
            torch.cuda.set_rng_state_all([one.cpu() for one in state["random_on_device"]])
        self.epoch, self.seconds, self.losses = state["progress"]


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that an interruption leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def carry_out(
    run: Run,
    root: Path,
    options: Options,
    checkpoints: Path,
    say: Callable[[str], None] = lambda _: None,
    recipe: Recipe | None = None,
) -> Line:
    """Train, from the checkpoint if there is one; compress and score.

    Args:
        run: what to do.
        root: folder of the data.
        options: where, and on how much data.
        checkpoints: folder of the checkpoints; the compact model is saved there, too.
        say: told one line for each epoch.
        recipe: instead of the one of that name.

    Returns:
        The line of the run in the file of results.
    """
    recipe = replace(RECIPES[run.recipe] if recipe is None else recipe, batch=run.batch)
    if recipe.pretrained and options.weights is None:
        raise fx_oto.InputError(
            f"{run.recipe} begins with trained weights: give a file of the state dict of its network, or the folder of "
            "a pretrained BERT with its tokenizer's files, with --weights"
        )
    task = load(recipe, root, options)
    training, path = Training(run, recipe, task, options), checkpoints / f"{run}.pt"
    if path.exists():
        training.restore(torch.load(path, map_location=options.device, weights_only=True))
    while training.epoch < run.epochs:
        loss = training.train_epoch()
        save(training.state(), path)
        say(f"{run}: epoch {training.epoch}/{run.epochs}, loss {loss:.4f}, {training.seconds:.0f} s")
    line = _line(training, options, path)
    path.unlink(missing_ok=True)
    return line


def _line(training: Training, options: Options, path: Path) -> Line:
    run, task, gm = training.run, training.task, training.gm.eval()
    whole, zigs = fx_oto.cost(training.model, task.example), fx_oto.partition(gm)
    left, folded, final = whole, whole.params, gm
    if not run.full:
        final = fx_oto.compress(gm)
        left = fx_oto.cost(final, task.example)
        folded = sum(p.numel() for p in fx_oto.compress(gm, fold_batchnorm=True, verify=False).parameters())
        fx_oto.save(final, path.with_suffix(".safetensors"))
    return {
        **asdict(run),
        "scores": task.score(final),
        "group_sparsity": round(zigs.group_sparsity(), 4),
        "macs": round(100 * left.macs / whole.macs, 2),
        "params": round(100 * left.params / whole.params, 2),
        "params_folded": round(100 * folded / whole.params, 2),
        "full_macs": round(whole.macs / whole.samples / 1e6, 2),
        "full_params": whole.params,
        "zigs": zigs.num_zigs,
        "train": task.counts[0],
        "test": task.counts[1],
        "loss": training.losses[-1],
        "seconds": round(training.seconds),
        "device": _device_name(options.device),
        "torch": torch.__version__,
        "date": time.strftime("%F"),
    }


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device}, {platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"
