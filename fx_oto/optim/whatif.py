"""What if: how a model would do without part of a family, measured before anything is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fx_oto.core.errors import InputError, SettingsError
from fx_oto.core.fx_utils import check_has_numbers, tensor_names
from fx_oto.core.preserve import evaluating, kept, unchanged
from fx_oto.core.progress import progress as progress_bar
from fx_oto.optim.arguments import number_of
from fx_oto.optim.checks import check_unchanged
from fx_oto.optim.limits import check_patterns
from fx_oto.optim.rows import Rows
from fx_oto.optim.saliency import Criterion, criterion, scores_of
from fx_oto.reports.sensitivity import Sensitivity, Trial
from fx_oto.zigs.families import Family
from fx_oto.zigs.partition import Partition, partition

__all__ = ["sensitivity"]


def sensitivity(
    gm: GraphModule,
    evaluate: Callable[[GraphModule], Any],
    families: Iterable[str | int] | str | int | None = None,
    fractions: Iterable[float] | float = (0.25, 0.5, 0.75),
    *,
    saliency: str | Criterion = "magnitude",
    progress: bool | None = None,
) -> Sensitivity:
    """Evaluate prunings before they are made: for each family alone, and each fraction of its ZIGs.

    The ZIGs that are tried are set to zero, so that ``evaluate`` sees what the compact model
    would return. Those that are zero already stay so and count: they are the first to go. Of every family at least one
    ZIG is kept. Every evaluation begins with the same model, in eval mode, and the same states of the generators of
    random numbers; afterwards all of that is as it was, bit for bit, also if ``evaluate`` fails, is interrupted, or
    trains the model. One copy of the model's tensors is held meanwhile.

    Args:
        gm: a prepared GraphModule.
        evaluate: takes ``gm`` and returns a number, or several: a dict of numbers by name, or a tuple.
        families: which: glob patterns of parameter or module names, or positions in ``fx_oto.partition(gm).families``;
            None: all.
        fractions: of the ZIGs of a family, in (0, 1]; rounded down to whole ZIGs.
        saliency: which ZIGs go first: ``"magnitude"``, those with the smallest root mean square; another of the
            optimizers' saliencies, or a callable, as for ``DHSPG``. They read the gradients that the parameters hold
            now, of one batch or the sum of several.
        progress: whether to show a bar; None: where stderr is a terminal, and in notebooks.

    Raises:
        MissingResultError: ``gm`` is not prepared.
        InputError: ``gm`` is on the meta device, or ``evaluate`` returns something else than numbers, or other ones
            than the first time.
        SettingsError: a pattern matches no family, a position or fraction is out of range, or the saliency reads
            gradients and there are none.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x, y = torch.randn(64, 4), torch.randn(64, 2)
        >>> gm = fx_oto.prepare(net, x)
        >>> found = fx_oto.sensitivity(gm, lambda gm: {"loss": (gm(x) - y).square().mean()}, fractions=(0.5,))
        >>> [(trial.family, trial.removed, trial.params) for trial in found]
        [('0.weight', 4, 30)]
        >>> optimizer = fx_oto.DHSPG(
        ...     gm, lr=0.1, target_params=0.6, total_steps=9, min_kept=found.min_kept("loss", rise=1.0)
        ... )
    """
    zigs = partition(gm)
    check_has_numbers(gm, "sensitivity")
    check_unchanged(zigs, tensor_names(gm))
    chosen, asked = _chosen(zigs.families, families), _checked(fractions)
    order = _order(gm, zigs, saliency)
    tried = [(i, fraction, _count(zigs, order, i, fraction)) for i in chosen for fraction in asked]
    runs = [None, *dict.fromkeys((i, count) for i, _, count in tried if count > order[i].zero)]
    found: dict[tuple[int, int] | None, dict[str, float]] = {}
    with kept(gm) as put_back:
        for run in progress_bar(runs, "sensitivity", unit="evaluation", show=progress):
            if run is not None:
                zigs.zero_zigs_(run[0], order[run[0]].zigs[: run[1]])
            found[run] = _evaluate(gm, evaluate, _in_words(zigs, run), tuple(found.get(None, ())))
            put_back()
    removed = torch.tensor([mine.zero for mine in order], dtype=torch.int64)
    baseline = Trial(-1, "", "", 0.0, int(removed.sum()), zigs.num_zigs, *_left(zigs, removed), found[None])
    trials = (
        _trial(zigs, removed, i, fraction, count, found.get((i, count), found[None])) for i, fraction, count in tried
    )
    return Sensitivity(baseline, tuple(trials), zigs.samples)


@dataclass(frozen=True, eq=False)
class _Order:
    """A family's ZIGs, those that go first first, and how many of them are zero already."""

    zigs: Tensor
    zero: int


def _chosen(families: Sequence[Family], wanted: Iterable[str | int] | str | int | None) -> list[int]:
    """Positions of the families that are asked for, ascending."""
    if not families:
        raise SettingsError("no axis of this model can be pruned: print(fx_oto.partition(gm)) gives the reasons")
    if wanted is None:
        return list(range(len(families)))
    given = [wanted] if isinstance(wanted, str | int) else list(wanted)
    check_patterns("families", [one for one in given if isinstance(one, str)], families)
    positions = {i for pattern in given if isinstance(pattern, str) for i in _matching(families, pattern)}
    for one in given:
        if isinstance(one, str):
            continue
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < len(families):
            raise SettingsError(
                f"families must be glob patterns, or positions from 0 to {len(families) - 1} in "
                f"fx_oto.partition(gm).families; found {one!r}"
            )
        positions.add(one)
    return sorted(positions)


def _matching(families: Sequence[Family], pattern: str) -> list[int]:
    return [i for i, family in enumerate(families) if family.matches(pattern)]


def _checked(fractions: Iterable[float] | float) -> list[float]:
    given: list[Any] = list(fractions) if isinstance(fractions, Iterable) else [fractions]
    for fraction in given:
        if isinstance(fraction, bool) or not isinstance(fraction, Real) or not 0 < float(fraction) <= 1:
            raise SettingsError(
                f"fractions must be above 0 and at most 1, found {fraction!r}; the model as it is is evaluated anyway"
            )
    if not given:
        raise SettingsError("fractions is empty: give some, such as (0.25, 0.5, 0.75)")
    return sorted(set(map(float, given)))


def _order(gm: GraphModule, zigs: Partition, saliency: str | Criterion) -> list[_Order]:
    score = criterion(saliency)
    graded = any(parameter.grad is not None for parameter in gm.parameters())
    if isinstance(saliency, str) and saliency != "magnitude" and not graded:
        raise SettingsError(
            f"saliency={saliency!r} reads gradients, and no parameter of gm has one: call backward() on a loss of one "
            "or more batches before, or use saliency='magnitude'"
        )
    zeros = zigs.zeros()
    with torch.no_grad():
        gone = [zero.nonzero().flatten() for zero in zeros]
        found = scores_of(score, Rows(gm, zigs.families, gone).statistics({}))
        scores = [mine.detach().double().cpu() for mine in found]
    return [
        _Order(mine.masked_fill(zero, math.inf).argsort(descending=True, stable=True), int(zero.sum()))
        for mine, zero in zip(scores, zeros, strict=True)
    ]


def _count(zigs: Partition, order: Sequence[_Order], family: int, fraction: float) -> int:
    """How many ZIGs are zero when this fraction is asked for."""
    return max(order[family].zero, zigs.families[family].part(fraction))


def _evaluate(
    gm: GraphModule, evaluate: Callable[[GraphModule], Any], pruning: str, names: tuple[str, ...]
) -> dict[str, float]:
    try:
        with unchanged(gm), evaluating(gm):
            value = evaluate(gm)
    except Exception as error:
        error.add_note(f"raised by evaluate, called by fx_oto.sensitivity with {pruning}; gm is as it was")
        raise
    metrics = _metrics(value)
    if names and tuple(metrics) != names:
        raise InputError(f"evaluate must return the same names every time; found {list(names)}, then {list(metrics)}")
    return metrics


def _metrics(value: Any) -> dict[str, float]:
    """What ``evaluate`` returned, as numbers by name."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif isinstance(value, tuple | list):
        value = {f"value {i}": one for i, one in enumerate(value)}
    elif not isinstance(value, Mapping):
        value = {"value": value}
    metrics = {str(name): number_of(one) for name, one in value.items()}
    wrong = [name for name, one in metrics.items() if one is None]
    if wrong or not metrics:
        found = ", ".join(f"{name}: {type(value[name]).__name__}" for name in value if str(name) in wrong) or "nothing"
        raise InputError(
            "evaluate must return a number, such as a loss, or several in a dict by name, such as {'loss': 0.3, "
            f"'accuracy': 0.9}}; found {found}"
        )
    return {name: one for name, one in metrics.items() if one is not None}


def _in_words(zigs: Partition, run: tuple[int, int] | None) -> str:
    if run is None:
        return "nothing changed"
    family = zigs.families[run[0]]
    return f"{run[1]} of the {len(family)} ZIGs of {family.name!r} zero"


def _left(zigs: Partition, removed: Tensor) -> tuple[int, int]:
    return round(zigs.params.left(removed)), round(zigs.macs.left(removed))


def _trial(
    zigs: Partition, removed: Tensor, i: int, fraction: float, count: int, metrics: Mapping[str, float]
) -> Trial:
    family, pattern = zigs.families[i], _pattern(zigs.families, i)
    left = _left(zigs, removed.index_fill(0, torch.tensor([i]), count))
    return Trial(i, family.name, pattern, fraction, count, len(family), *left, metrics)


def _pattern(families: Sequence[Family], position: int) -> str:
    """Of the names of a family's variables, the one that the fewest families match."""
    names = [slot.tensor for slot in families[position].variables]
    return min(names, key=lambda name: len(_matching(families, name)))
