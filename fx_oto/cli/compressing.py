"""``compress``: train with a group-sparse optimizer, or try a fraction, or take what is zero already; cut, write.

With ``--json``, one object on standard output; keys are only ever added to it:

- ``schema`` (1), ``command``, ``version``, ``model``, ``warnings`` (texts);
- ``capture``: as for ``inspect``; ``group_sparsity``: the fraction of ZIGs that went;
- ``target``: ``name`` and ``value`` of what was asked; ``reached``: fractions by name; both null without ``--train``;
- ``before``, ``after``: each ``params``, ``macs`` (of a batch of ``samples``), ``bytes`` (of the state_dict),
  ``seconds`` (of one forward pass, or null);
- ``verification``: ``error`` and ``tolerance``, relative to the largest output;
- ``passes``: each ``name``, ``options``, ``seconds``, ``peak_memory`` (bytes, or null), ``modified``, ``nodes``,
  ``params`` and ``macs`` (each before and after), ``refusals`` (texts), ``resized`` (shapes before and after, by
  tensor), ``diff``;
- ``training``: ``asked``, ``reached`` (texts) and ``points``, each ``step``, ``group_sparsity``, ``loss`` (or null);
  null without ``--train``;
- ``output``: ``path``, ``bytes``, ``kind``, ``dynamic_batch``, ``error``; null without ``--output``;
- ``trained``: path of the trained weights; null without ``--train``, and with ``--output``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fx_oto.api import compress as cut
from fx_oto.cli.comparing import before_and_after, measure
from fx_oto.cli.keeping import how_to_go_on, kept
from fx_oto.cli.locating import did_you_mean, failed, locate
from fx_oto.cli.saving import Saved, check_output, save
from fx_oto.cli.subject import prepared
from fx_oto.cli.values import assignments
from fx_oto.core.context import Context, ExampleInputs
from fx_oto.core.errors import FxOtoError, InputError, NothingToCompressError, SettingsError
from fx_oto.core.picture import check_picture
from fx_oto.core.tables import wrapped
from fx_oto.demo.measure import Measured
from fx_oto.optim.dhspg import DHSPG
from fx_oto.optim.hesso import HESSO
from fx_oto.optim.sparsifier import GroupSparseOptimizer
from fx_oto.passes.verification import VerificationReport
from fx_oto.reports.report import Report, report
from fx_oto.viz.widths import plot_widths
from fx_oto.zigs.partition import partition

__all__ = ["TARGETS", "Compression", "compress"]

_METHODS: dict[str, type[GroupSparseOptimizer]] = {"dhspg": DHSPG, "hesso": HESSO}
TARGETS = ("group_sparsity", "params", "macs", "latency")


@dataclass(frozen=True)
class Compression:
    """The result of the command; ``str()`` prints it, ``to_dict()`` has it as plain values.

    Attributes:
        model: as the user named it.
        kind: the model's class.
        small: the compact GraphModule.
        group_sparsity: the fraction of ZIGs that went.
        measured: the full and the compact model.
        saved: the file, if one was written.
        target: name and value of what was asked, if it was trained.
        reached: what the optimizer says it reached.
        trained: the file of the trained weights, if no other was written.
    """

    model: str
    kind: str
    small: GraphModule
    group_sparsity: float
    measured: tuple[Measured, Measured]
    saved: Saved | None
    target: tuple[str, float] | None = None
    reached: dict[str, float] | None = None
    trained: Path | None = None

    @property
    def report(self) -> Report:
        """The passes and the training."""
        return report(self.small)

    @property
    def verification(self) -> VerificationReport:
        """The difference of the compact model's outputs."""
        return Context.of(self.small).get(VerificationReport)

    def to_dict(self) -> dict[str, Any]:
        """The keys that the docstring of the module lists."""
        return {
            "model": self.model,
            **self.report.to_dict(),
            "group_sparsity": self.group_sparsity,
            "target": self.target and dict(zip(("name", "value"), self.target, strict=True)),
            "reached": self.reached and {name.replace(" ", "_"): value for name, value in self.reached.items()},
            "before": self.measured[0].to_dict(),
            "after": self.measured[1].to_dict(),
            "verification": {"error": self.verification.error, "tolerance": self.verification.tolerance},
            "output": self.saved and self.saved.to_dict(),
            "trained": self.trained and str(self.trained),
        }

    def __str__(self) -> str:
        lines = [f"{self.model} ({self.kind})", *self._sparsity()]
        found = self.verification
        lines.append(
            f"the outputs of the compact and of the group-sparse model differ by {found.error:.1e} of the largest "
            f"(allowed: {found.tolerance:.0e})"
        )
        parts = ["\n".join(map(wrapped, lines)), before_and_after(*self.measured), str(self.report)]
        if self.saved is not None:
            parts.append(wrapped(str(self.saved)))
        if self.trained is not None:
            parts.append(
                wrapped(f"without --output: wrote {self.trained}, the trained weights; {how_to_go_on(self.trained)}")
            )
        return "\n\n".join(parts)

    def _sparsity(self) -> list[str]:
        lines = [f"{self.group_sparsity:.1%} of the zero-invariant groups are gone"]
        if self.target is not None and self.reached is not None:
            name, value = self.target
            reached = self.reached[name.replace("_", " ")]
            lines.append(f"asked: {name.replace('_', ' ')} {value:g}; reached: {reached:.4f}")
        return lines


def compress(options: argparse.Namespace) -> Compression:
    """Carry out the command."""
    target = _check(options)
    settings = _settings(options, target)
    train = locate(options.train, "the training function") if options.train else None
    base = _base(options.optimizer)
    model, inputs, gm = prepared(options)
    if train is None or target is None:
        if options.dry_run is not None:
            partition(gm).zero_(options.dry_run, torch.Generator().manual_seed(options.seed))
        return _compressed(options, model, inputs, gm)
    optimizer = _optimizer(options, gm, base, settings)
    with kept(model, optimizer, _place(options)) as trained:
        _train(train, options.train, gm, optimizer)
        trained.write()
        found = _compressed(options, model, inputs, gm)
    reached = replace(found, target=target, reached=optimizer.reached())
    if found.saved is not None:
        trained.remove()
        return reached
    return replace(reached, trained=trained.path)


def _compressed(options: argparse.Namespace, model: nn.Module, inputs: ExampleInputs, gm: GraphModule) -> Compression:
    """Cut, write, draw and measure."""
    small = _cut(gm, options).eval()
    saved = options.output and save(small, inputs, options.output)  # first of all: a training may have gone before
    if options.draw is not None:
        plot_widths(gm, small).save(options.draw)
    return Compression(
        model=options.model,
        kind=type(model).__name__,
        small=small,
        group_sparsity=partition(gm).group_sparsity(),
        measured=measure(model, small, inputs, timed=not options.no_latency),
        saved=saved,
    )


def _place(options: argparse.Namespace) -> Path:
    """Where the weights of a training are written before they are cut: beside the output, or under the model's name."""
    output: Path | None = options.output
    if output is not None:
        return output.with_name(f"{output.stem}-trained.pt")
    return Path(f"{options.model.rpartition(':')[2]}-trained.pt")


def _check(options: argparse.Namespace) -> tuple[str, float] | None:
    """Refuse wrong options before the model is built, and return the target."""
    given = [(name, value) for name in TARGETS if (value := getattr(options, f"target_{name}")) is not None]
    names = ", ".join(f"--target-{name.replace('_', '-')}" for name in TARGETS)
    if options.train and len(given) != 1:
        found = " and ".join(f"--target-{name.replace('_', '-')}" for name, _ in given) or "none"
        raise SettingsError(f"--train needs one target, a fraction in (0, 1): one of {names}; found {found}")
    if options.train and options.total_steps is None:
        raise SettingsError("--train needs --total-steps, the steps that FUNCTION takes in all: epochs × batches")
    if not options.train:
        needless = [f"--target-{name.replace('_', '-')}" for name, _ in given]
        needless += [f"--{name.replace('_', '-')}" for name in ("total_steps", "lr", "set") if getattr(options, name)]
        if needless:
            raise SettingsError(f"{', '.join(needless)} can only be used with --train MODULE:FUNCTION")
    if options.device == "meta":
        raise SettingsError("a model on --device meta has no numbers, so it cannot be compressed: use inspect")
    if options.output is not None:
        check_output(options.output)
    if options.draw is not None:
        check_picture(options.draw, "--draw")
    return given[0] if given else None


def _settings(options: argparse.Namespace, target: tuple[str, float] | None) -> dict[str, Any]:
    """The arguments of the optimizer, each said once."""
    given = {"lr": options.lr, "total_steps": options.total_steps}
    if target is not None:
        given[f"target_{target[0]}"] = target[1]
    given = {name: value for name, value in given.items() if value is not None}
    more = assignments(options.set, "--set")
    if twice := sorted(given.keys() & more.keys()):
        option = f"--{twice[0].replace('_', '-')} {given[twice[0]]:g}"
        raise SettingsError(f"{option} and --set {twice[0]}={more[twice[0]]} say the same: give one of them")
    return given | more


def _base(name: str) -> type[torch.optim.Optimizer]:
    if ":" in name:
        found = locate(name, "the optimizer")
    else:
        known = [key for key in torch.optim.__all__ if isinstance(getattr(torch.optim, key, None), type)]
        if name not in known:
            raise SettingsError(f"--optimizer: torch.optim has no {name!r}{did_you_mean(name, known)}")
        found = getattr(torch.optim, name)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise SettingsError(f"--optimizer {name}: expected a subclass of torch.optim.Optimizer, found {found!r}")
    return found


def _optimizer(
    options: argparse.Namespace, gm: GraphModule, base: type[torch.optim.Optimizer], settings: dict[str, Any]
) -> GroupSparseOptimizer:
    try:
        return _METHODS[options.method](gm, base, **settings)
    except FxOtoError:
        raise
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"--optimizer {options.optimizer} cannot be built: {error}; its arguments are given with --lr and "
            "--set NAME=VALUE"
        ) from error


def _train(train: Any, name: str, gm: nn.Module, optimizer: GroupSparseOptimizer) -> None:
    if not callable(train):
        raise InputError(f"--train {name} is of type {type(train).__name__}: expected a function of (gm, optimizer)")
    try:
        train(gm, optimizer)
    except FxOtoError:
        raise
    except (Exception, SystemExit) as error:
        raise failed(f"{name}(gm, optimizer)", error) from error


def _cut(gm: GraphModule, options: argparse.Namespace) -> GraphModule:
    try:
        return cut(gm)
    except NothingToCompressError as error:
        if options.train:
            raise
        raise NothingToCompressError(
            f"none of the {partition(gm).num_zigs} ZIGs is zero, so there is nothing to cut: train with --train "
            "MODULE:FUNCTION and a target, try what pruning would give with --dry-run 0.5, or load the weights of a "
            "model that was trained so with --state-dict FILE"
        ) from error
