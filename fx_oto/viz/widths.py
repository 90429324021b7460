"""The widths of layers before and after, as bars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from torch import nn
from torch.fx import GraphModule

from fx_oto.core.errors import InputError
from fx_oto.core.fx_utils import holder
from fx_oto.core.patterns import check_matched, matches
from fx_oto.core.picture import Picture
from fx_oto.viz.charts import Bar, draw_bars
from fx_oto.viz.folding import Folding, check_fold, labelled
from fx_oto.viz.style import FROZEN, darker, family_colour
from fx_oto.zigs.partition import Partition, partition

__all__ = ["plot_widths"]

_LEGEND = "in colour what is left, light grey what is gone, dark grey what cannot go"


def plot_widths(
    gm: GraphModule, small: nn.Module, *patterns: str, fold: int | None = None, limit: int = 240
) -> Picture:
    """The width of every layer before and after, as bars in the colour of its family; what is gone is grey.

    A layer is a parameter with two axes or more. Its width is the length of the axis along which a family's channels
    are made; of the first one if nothing of it can go, and then its bar is dark grey.

    Args:
        gm: the prepared GraphModule.
        small: what ``compress`` made of it.
        patterns: glob patterns of the parameters or modules to show; all by default.
        fold: the widths of modules whose names have more than so many parts are added up at that depth; by default
            nothing is folded up to ``limit`` bars, and as little as needed above; where modules at depth 1 are not few
            enough, neighbours share a bar.
        limit: the most bars, without ``fold``.

    Raises:
        MissingResultError: ``gm`` was not prepared.
        InputError: ``small`` was not made of ``gm``.
        SettingsError: a pattern matches nothing, or ``fold`` or ``limit`` is less than 1.
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_(0.5)
        >>> picture = fx_oto.plot_widths(gm, fx_oto.compress(gm))
        >>> [text.get_text() for text in picture.figure.axes[0].texts]
        ['8 → 4 (50%)', '2']
    """
    check_fold(fold, limit)
    every = _bars(gm, small)
    check_matched(patterns, [bar.name for bar in every], "layer, a parameter with two axes or more")
    bars = [bar for bar in every if matches(bar.name, patterns)]
    holders = [holder(bar.name) for bar in bars]
    if fold is None and len(bars) <= limit:
        alone = {name for name, times in Counter(holders).items() if times == 1}
        bars = [replace(bar, name=name if name in alone else bar.name) for name, bar in zip(holders, bars, strict=True)]
        told = "one bar for each layer"
    else:
        labels, folding = labelled(holders, fold, limit)
        bars = _summed(replace(bar, name=label) for label, bar in zip(labels, bars, strict=True))
        told = f"{len(holders)} layers, their widths added up for {_each(folding)}"
    title = f"{gm._get_name()}: widths before and after"
    return draw_bars(bars, title, f"{told}; {_LEGEND}", "channels")


def _each(folding: Folding) -> str:
    depth = "each module" if folding.depth is None else f"modules at depth {folding.depth}"
    return depth if folding.most == 1 else f"{depth}, up to {folding.most} neighbours in one bar"


def _bars(gm: GraphModule, small: nn.Module) -> list[Bar]:
    zigs = partition(gm)
    made = _made(zigs)
    after = {name: parameter.shape for name, parameter in small.named_parameters()}
    bars = []
    for name, parameter in gm.named_parameters():
        if parameter.ndim < 2 or name not in after:
            continue
        family, dim = made.get(name, (None, 0))
        shapes = tuple(after[name]), tuple(parameter.shape)
        if len(shapes[0]) != len(shapes[1]) or any(new > old for new, old in zip(*shapes, strict=True)):
            raise InputError(
                f"{name} has shape {shapes[0]} after and {shapes[1]} before: expected what "
                "fx_oto.compress made of this GraphModule"
            )
        colour = darker(FROZEN) if family is None else family_colour(family)
        bars.append(Bar(name, parameter.shape[dim], after[name][dim], colour))
    if not bars:
        raise InputError(
            "the two modules have no layer in common: expected a prepared GraphModule and what fx_oto.compress made of "
            f"it, found {type(small).__name__} with the parameters {', '.join(list(after)[:3]) or 'none'}"
        )
    return bars


def _made(zigs: Partition) -> dict[str, tuple[int, int]]:
    """For each tensor with an axis that a family is made along: the family with most of it, and the axis."""
    most: dict[str, tuple[int, int, int]] = {}
    for i, family in enumerate(zigs.families):
        for slot in family.variables:
            most[slot.tensor] = max(most.get(slot.tensor, (0, 0, 0)), (slot.index.numel(), i, slot.dim))
    return {name: (family, dim) for name, (_, family, dim) in most.items()}


def _summed(bars: Iterable[Bar]) -> list[Bar]:
    """One bar for each name, in the colour of its widest part."""
    found: dict[str, list[Bar]] = {}
    for bar in bars:
        found.setdefault(bar.name, []).append(bar)
    return [
        Bar(name, sum(b.before for b in all_), sum(b.after for b in all_), max(all_, key=lambda b: b.before).colour)
        for name, all_ in found.items()
    ]
