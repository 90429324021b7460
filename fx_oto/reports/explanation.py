"""Explains a partition; see ``Partition.explain``."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from torch import nn

from fx_oto.analysis.dependencies import Reason
from fx_oto.core.context import Context, Untraced
from fx_oto.core.patterns import check_matched, matches
from fx_oto.core.unused import parameters_of_graph
from fx_oto.zigs.explanation import AxisExplanation, Cause, Explanation
from fx_oto.zigs.families import FrozenAxis
from fx_oto.zigs.partition import Partition

__all__ = ["explain"]

_NO_CHANNELS = "no channels lie along it, as with a convolution's window"
_UNTRACED = "it is not used by the traced graph, so the compact model does not have it"


def explain(partition: Partition, module: nn.Module, patterns: Sequence[str] = ()) -> Explanation:
    """Do the work of ``Partition.explain``."""
    parameters = _parameters(module)
    untraced = Context.of(module).results.get(Untraced, Untraced({})).shapes
    check_matched(patterns, [*chain(*(names for names, _ in parameters)), *untraced], "parameter or module")
    shapes = {names[0]: shape for names, shape in parameters if any(matches(name, patterns) for name in names)}
    untraced = {name: shape for name, shape in untraced.items() if matches(name, patterns)}
    axes = [*_traced(partition, shapes), *(axis for item in untraced.items() for axis in _untraced(*item))]
    prunable = {(axis.tensor, axis.dim): axis.prunable for axis in axes}
    return Explanation(
        axes=tuple(sorted(axes, key=lambda axis: -axis.cost)),
        causes=_causes(axes, shapes),
        params=sum(map(math.prod, shapes.values())),
        prunable=sum(_touched(name, shape, prunable) for name, shape in shapes.items()),
        patterns=tuple(patterns),
    )


def _parameters(module: nn.Module) -> list[tuple[list[str], tuple[int, ...]]]:
    """Every name of each parameter of the graph, the first in front, and its shape."""
    names: dict[int, tuple[list[str], tuple[int, ...]]] = {}
    used = {id(parameter) for parameter in parameters_of_graph(module).values()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in used:
            names.setdefault(id(parameter), ([], tuple(parameter.shape)))[0].append(name)
    return list(names.values())


def _axes(name: str, shape: tuple[int, ...]) -> list[AxisExplanation]:
    numel = math.prod(shape)
    return [AxisExplanation(name, dim, n, numel // n) for dim, n in enumerate(shape) if n > 1]


def _untraced(name: str, shape: tuple[int, ...]) -> list[AxisExplanation]:
    return [replace(axis, note=_UNTRACED, traced=False) for axis in _axes(name, shape)]


def _traced(partition: Partition, shapes: dict[str, tuple[int, ...]]) -> Iterator[AxisExplanation]:
    """The axes of the graph's parameters, with the families and reasons that the partition has for them."""
    families: defaultdict[tuple[str, int], list[tuple[str, int]]] = defaultdict(list)
    frozen: defaultdict[tuple[str, int], list[FrozenAxis]] = defaultdict(list)
    for family in partition.families:
        for slot in family.slots:
            families[slot.tensor, slot.dim].append((family.name, slot.index.numel()))
    for one in partition.frozen:
        frozen[one.tensor, one.dim].append(one)
    for item in shapes.items():
        for axis in _axes(*item):
            key = axis.tensor, axis.dim
            known = replace(axis, families=tuple(families[key]), frozen=tuple(frozen[key]))
            yield known if known.prunable + known.kept == known.size else replace(known, note=_NO_CHANNELS)


def _causes(axes: Iterable[AxisExplanation], shapes: dict[str, tuple[int, ...]]) -> tuple[Cause, ...]:
    """The axes by the beginning of their reasons."""
    reasons: dict[tuple[str, str, str], Reason] = {}
    held: defaultdict[tuple[str, str, str], Counter[tuple[str, int]]] = defaultdict(Counter)
    for axis in axes:
        for one in axis.frozen:
            origin = one.reason.origin
            key = origin.why, origin.op, origin.source
            reasons.setdefault(key, origin)
            held[key][axis.tensor, axis.dim] += one.size
    causes = [
        Cause(reasons[key], len(at), sum(_touched(name, shapes[name], at) for name in {name for name, _ in at}))
        for key, at in held.items()
    ]
    return tuple(sorted(causes, key=lambda cause: -cause.cost))


def _touched(name: str, shape: tuple[int, ...], counts: Mapping[tuple[str, int], int]) -> int:
    """Elements of a parameter that lie at one of so many indices of an axis, for any of its axes."""
    return math.prod(shape) - math.prod(size - counts.get((name, dim), 0) for dim, size in enumerate(shape))
