"""Partition of the trainable variables into zero-invariant groups (OTOv2, algorithm 2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fx_oto.analysis.dependencies import Axis, Dependencies, Reason, Work
from fx_oto.analysis.labels import compress, varying
from fx_oto.core.context import Context
from fx_oto.core.fx_utils import tensor_names
from fx_oto.core.patterns import check_matched, matches, patterns_in
from fx_oto.core.unused import parameters_of_graph
from fx_oto.framework.stages import Analysis
from fx_oto.ops.branches import BranchDepth
from fx_oto.zigs.families import Family, FrozenAxis, Slot
from fx_oto.zigs.partition import Partition
from fx_oto.zigs.prices import Price

__all__ = ["ZIGPartition"]


@dataclass(frozen=True)
class ZIGPartition(Analysis):
    """Gather the classes of atoms into families of ZIGs (OTOv2, algorithm 2); provides ``Partition``.

    Attributes:
        unprunable: glob patterns of parameter or module names that are kept whole; a string is one of them.

    Raises:
        SettingsError: when it runs: a pattern matches nothing.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> stages = fx_oto.Pipeline((fx_oto.DependencyAnalysis(), fx_oto.ZIGPartition(unprunable=("2",))))
        >>> fx_oto.partition(stages.run(fx_oto.trace(net, torch.randn(2, 4)))).num_zigs
        8
    """

    name: ClassVar[str] = "zig-partition"
    requires: ClassVar[tuple[type, ...]] = (Dependencies,)
    provides: ClassVar[tuple[type, ...]] = (Partition,)
    trusted: ClassVar[bool] = True

    unprunable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "unprunable", patterns_in(self.unprunable))

    def analyse(self, gm: GraphModule, context: Context) -> Partition:
        """Sort every class into a family, or list its axes as frozen.

        Raises:
            SettingsError: a pattern in ``unprunable`` matches nothing.
        """
        dependencies = context.get(Dependencies)
        found = _Partitioner(gm, dependencies, self.unprunable).run()
        depth = BranchDepth(gm, dependencies, found.families)
        params, macs = replace(found.params, depth=depth.params), replace(found.macs, depth=depth.macs)
        return replace(found, samples=context.inputs.samples, params=params, macs=macs, depth=depth)

    def refusals(self, gm: GraphModule, context: Context) -> list[str]:
        """Axes that are kept whole, by reason."""
        alike: dict[str, list[FrozenAxis]] = {}
        for axis in context.get(Partition).frozen:
            alike.setdefault(str(axis.reason), []).append(axis)
        return [_kept_whole(reason, axes) for reason, axes in alike.items()]


class _Partitioner:
    def __init__(self, gm: GraphModule, found: Dependencies, unprunable: tuple[str, ...]) -> None:
        self.found = found
        self.tensors = tensor_names(gm)
        self.parameters = parameters_of_graph(gm)
        atoms = torch.arange(1, found.num_axis_atoms)
        self.atoms, self.classes = atoms, found.roots[atoms]
        self.axis = found.axis_of(atoms)
        self.reasons = dict(found.reasons) | self._excluded(gm, unprunable) if unprunable else dict(found.reasons)
        self.runs: list[list[Tensor]] = []

    def _excluded(self, gm: nn.Module, patterns: tuple[str, ...]) -> dict[int, Reason]:
        names = [*tensor_names(gm), *(name for name, _ in gm.named_modules() if name)]
        check_matched(patterns, names, "parameter or module", "unprunable")
        excluded: dict[int, Reason] = {}
        for position, axis in enumerate(self.found.axes):
            hit = next((pattern for pattern in patterns if matches(axis.tensor, (pattern,), axis.dim)), None)
            if hit is not None:
                mine = self.classes[(self.axis == position) & self.found.variable[self.atoms]]
                excluded |= dict.fromkeys(
                    mine.tolist(), Reason(f"{hit!r} is unprunable, and so is all that is tied to it")
                )
        return excluded

    def run(self) -> Partition:
        is_parameter = torch.tensor([axis.tensor in self.parameters for axis in self.found.axes] or [False])
        variable = self.found.variable[self.atoms] & is_parameter[self.axis]
        driven = torch.zeros(len(self.found.roots), dtype=torch.bool)
        driven[self.classes[variable]] = True
        frozen = torch.zeros_like(driven)
        frozen[list(self.reasons)] = True
        self.runs = [self._run_over(work, driven & ~frozen) for work in self.found.works]
        families = self._families(driven & ~frozen)
        return Partition(tuple(families), tuple(self._frozen_axes(frozen)), *self._prices(families))

    def _run_over(self, work: Work, prunable: Tensor) -> list[Tensor]:
        """The classes along each axis that a contraction runs over, 0 where nothing can go, laid as its operand is.

        Values of attention, heads × width, are an axis of their product with the scores if positions of the width can
        go: if heads can, these are an axis of the scores, and counted there.
        """
        axes = []
        for i, (labels, dims) in enumerate(work.operands):
            roots = self.found.roots[labels]
            line = compress(torch.where(prunable[roots], roots, 0))
            if i < len(work.axes) or (len(varying(line)) == 1 and varying(line)[0] in dims):
                axes.append(line)
        return axes

    def _prices(self, families: list[Family]) -> tuple[Price, Price]:
        """The cost of parameters and of contractions, by the families that have a part in their axes."""
        sizes = torch.tensor([len(family) for family in families], dtype=torch.int64)
        member = torch.full((len(self.found.roots),), -1)
        for i, family in enumerate(families):
            member[family.classes] = i
        names = {name: i for i, name in enumerate(self.parameters)}
        parameters = [
            (names[axis.tensor], axis.dim, member[self.found.roots[axis.start : axis.start + axis.size]])
            for axis in self.found.axes
            if axis.tensor in names
        ]
        works = self.found.works
        runs = [(i, k, member[line.reshape(-1)]) for i, axes in enumerate(self.runs) for k, line in enumerate(axes)]
        over = [(i, work.summed) for i, work in enumerate(works) if work.summed is not None]
        summed = [(i, k) for i, k in over if varying(self.runs[i][k]) == (self.runs[i][k].ndim - 1,)]
        return (
            Price.of([self.tensors[name].numel() for name in names], parameters, sizes),
            Price.of([work.macs for work in works], runs, sizes, summed),
        )

    def _families(self, prunable: Tensor) -> list[Family]:
        """Classes with the same number of indices in the same axes, and in the same work, make a family."""
        work = self._work()
        chosen = prunable[self.classes]
        classes, axis, atoms = self.classes[chosen], self.axis[chosen], self.atoms[chosen]
        order = torch.argsort(classes, stable=True)
        axis, atoms = axis[order], atoms[order]
        names, counts = classes[order].unique_consecutive(return_counts=True)
        starts = counts.cumsum(0) - counts
        families = []
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero()
            entries = starts[rows] + torch.arange(count)
            member_of = _number_alike(torch.cat([axis[entries], work[names[rows]]], dim=1))
            for i in range(int(member_of.max()) + 1):
                mine = member_of == i
                chosen = entries[mine]
                families.append(self._family(names[rows[mine, 0]], axis[chosen[0]], atoms[chosen]))
        return sorted(families, key=lambda family: int(family.classes[0]))

    def _work(self) -> Tensor:
        """A number for each class that tells apart in which axes of which contractions it has how many indices."""
        number = torch.zeros(len(self.found.roots), dtype=torch.int64)
        along = [line.reshape(-1) for axes in self.runs for line in axes]
        if along:
            weights = torch.randint(1 << 40, (len(along),), generator=torch.Generator().manual_seed(1))
            lengths = torch.tensor([len(roots) for roots in along])
            number.index_add_(0, torch.cat(along), weights.repeat_interleave(lengths))
        return number

    def _family(self, classes: Tensor, signature: Tensor, atoms: Tensor) -> Family:
        """One family: ``signature`` names the axis of every column of ``atoms``, shape ``(zigs, indices)``."""
        axes, widths = signature.unique_consecutive(return_counts=True)
        columns = atoms.split(widths.tolist(), dim=1)
        slots = tuple(self._slot(position, part) for position, part in zip(axes.tolist(), columns, strict=True))
        name = next(slot.tensor for slot in slots if slot.variable)
        return Family(name, classes, slots)

    def _slot(self, position: int, atoms: Tensor) -> Slot:
        axis: Axis = self.found.axes[position]
        variable = bool(self.found.variable[atoms].any()) and axis.tensor in self.parameters  # all, if some must be
        numel = self.tensors[axis.tensor].numel() // axis.size if axis.tensor in self.parameters else 0
        return Slot(axis.tensor, axis.dim, atoms - axis.start, variable, numel)

    def _frozen_axes(self, frozen: Tensor) -> Iterator[FrozenAxis]:
        kept = frozen[self.classes]
        for position in self.axis[kept].unique().tolist():
            axis = self.found.axes[position]
            if axis.tensor not in self.parameters:
                continue
            roots = self.classes[kept & (self.axis == position)].tolist()
            for reason, size in Counter(self.reasons[root] for root in roots).items():
                yield FrozenAxis(axis.tensor, axis.dim, size, reason)


def _kept_whole(reason: str, axes: list[FrozenAxis]) -> str:
    names = [f"{axis.tensor}[{axis.dim}]" for axis in axes]
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more}: {reason}"


def _number_alike(rows: Tensor) -> Tensor:
    """Number the rows of a matrix so that equal rows, and only those, have the same number."""
    weights = torch.randint(1 << 40, (rows.shape[1],), generator=torch.Generator().manual_seed(0))
    number: Tensor = (rows * weights).sum(1).unique(return_inverse=True)[1]
    first = torch.full_like(number, len(rows)).scatter_reduce(0, number, torch.arange(len(rows)), "amin")
    if torch.equal(rows[first[number]], rows):  # else two different rows have the same sum
        return number
    exact: Tensor = rows.unique(dim=0, return_inverse=True)[1]
    return exact
