"""Choices that depend on all other unions: which axis of a grid survives.

A tensor can only lose whole slices. Where labels form a grid (groups × channels, heads × widths), all but
one axis must be united; which one survives is chosen by whichever leaves more units to remove. The choice on one
grid can make the choice on another, so they are made after everything else: grouped contractions first, then
rectangles, then what crosses them, each kind in the order of the tape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fx_oto.analysis.atoms import Atoms
from fx_oto.analysis.dependencies import Reason
from fx_oto.analysis.labels import compress, varying

__all__ = ["Crossing", "Grouped", "Obligation", "Rectangle", "settle"]


@dataclass(frozen=True, eq=False)
class Rectangle:
    """These labels must vary along at most one dimension."""

    labels: Tensor


@dataclass(frozen=True, eq=False)
class Crossing:
    """A grid that is combined elementwise with something that varies along one of its axes only.

    If that axis survives, or the grid only goes as one, they are united; if another one does, what is combined with
    the grid is kept whole.

    Attributes:
        grid: atoms that vary along several dimensions.
        thin: atoms that vary along one of them, with as many dimensions.
        reason: why they are kept whole.
    """

    grid: Tensor
    thin: Tensor
    reason: Reason


@dataclass(frozen=True, eq=False)
class Grouped:
    """A contraction in G independent groups: either whole groups go, or the same positions in every group.

    Attributes:
        inputs: atoms of the input channels, shape ``(G, inputs per group)``, or None where untracked.
        outputs: atoms of the output channels, shape ``(G, outputs per group)``.
        shared: atoms of the weight's axis that all groups share, shape ``(per group,)``, or None if of size 1.
        shared_by_inputs: whether that axis belongs to the inputs (convolution) or the outputs (transposed).
        reason: why that axis is kept whole when whole groups go.
    """

    inputs: Tensor | None
    outputs: Tensor
    shared: Tensor | None
    shared_by_inputs: bool
    reason: Reason

    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """Unions that make whole groups the units."""
        assert self.inputs is not None
        lead = self.outputs[:, :1]
        return [(self.outputs, lead), (self.inputs, lead)]

    def positions(self) -> list[tuple[Tensor, Tensor]]:
        """Unions that make positions inside the groups the units."""
        unions = [(self.outputs, self.outputs[:1])]
        if self.inputs is not None:
            unions.append((self.inputs, self.inputs[:1]))
        side = self.inputs if self.shared_by_inputs else self.outputs
        if side is not None and self.shared is not None:
            unions.append((side[0], self.shared))
        return unions


Obligation = Rectangle | Crossing | Grouped


def settle(atoms: Atoms, obligations: Sequence[Obligation], frozen: list[tuple[Tensor, Reason]]) -> None:
    """Meet every obligation, by unions in ``atoms`` and additions to ``frozen``, until nothing changes."""
    if obligations:
        _Closure(atoms, frozen).run(obligations)


class _Closure:
    def __init__(self, atoms: Atoms, frozen: list[tuple[Tensor, Reason]]) -> None:
        self.atoms, self.frozen = atoms, frozen
        self.rectangles: list[Tensor] = []
        self.crossings: dict[tuple[int, ...], list[Crossing]] = {}
        # The same classes, but all that is frozen is one, to which one more atom belongs: so no union makes it
        # necessary to look at all atoms again, of which a large network has millions and unions by the thousand.
        self._classes = atoms.copy()
        self._dead = self._classes.fresh(1)
        for labels, _ in frozen:
            self._classes.unite(labels[labels > 0], self._dead)

    def run(self, obligations: Sequence[Obligation]) -> None:
        # Groups first. A convolution of 8 channels in 2 groups is a grid (2, 4), whoever else reads those channels: its
        # units must be known before a rectangle over the same channels counts what each of its own axes would leave.
        # In order of the tape, so that a choice further up is seen further down: two grouped convolutions in a row on
        # the same 8 channels agree that way; a choice for all at once would have to try every combination.
        for grid in obligations:
            if isinstance(grid, Grouped):
                self._meet_grouped(grid)
        rectangles = [one.labels for one in obligations if isinstance(one, Rectangle)]
        crossings = [one for one in obligations if isinstance(one, Crossing)]
        rectangles += [crossing.grid for crossing in crossings]
        self.rectangles = list({id(labels): labels for labels in rectangles}.values())
        for crossing in crossings:
            self.crossings.setdefault(_atoms_of(crossing.grid), []).append(crossing)
        self._firsts = torch.tensor([int(labels[(0,) * labels.ndim]) for labels in self.rectangles], dtype=torch.int64)
        # Crossings last: they ask which axis of their grid has survived. Each is met once, for what varies along one
        # axis only still does after any other union. A grid (2, 4) was left its 4 columns; then a stack of its first
        # row and of something that is coupled in pairs, (2, 4) as well, unites columns 0 and 1, in both rows at once.
        for labels in self.rectangles:
            self._meet_rectangle(labels)
        for crossing in crossings:
            self._meet_crossing(crossing)

    def _meet_crossing(self, crossing: Crossing) -> None:
        # Heads of a width, (4, 6), times a scale (1, 6) that they share. If the widths survive, a column of the grid
        # and its entry of the scale are one unit. If heads do, any entry of the scale is read by heads that stay.
        axes = varying(compress(self._units(crossing.grid)))
        if axes in ((), varying(crossing.thin)):  # in none: all of the grid goes, or stays
            self._unite_or_freeze(crossing)
        elif self._units(crossing.thin).any():
            self._freeze(crossing.thin, crossing.reason)

    def _unite_or_freeze(self, crossing: Crossing) -> None:
        # Frozen units have no class of their own to unite with: what meets one is frozen as well, the rest is united.
        # A scale that is an output, too, keeps all the columns: (4, 5) times (1, 6) would not fit.
        grid, thin = torch.broadcast_tensors(crossing.grid, crossing.thin)
        self._freeze(torch.where(self._units(grid) == 0, thin, 0), crossing.reason)
        self._freeze(torch.where(self._units(thin) == 0, grid, 0), crossing.reason)
        self._unite(grid, thin)

    def _unite(self, left: Tensor, right: Tensor) -> None:
        self.atoms.unite(left, right)
        self._classes.unite(left, right)

    def _freeze(self, labels: Tensor, reason: Reason) -> None:
        if labels.any():
            self.frozen.append((labels.reshape(-1), reason))
            self._classes.unite(labels[labels > 0], self._dead)

    def _meet_rectangle(self, labels: Tensor) -> None:
        axes = varying(compress(self._units(labels)))
        if len(axes) < 2:
            return
        # One axis survives, along all others labels unite. A grid of 4 x 8 channels leaves 4 units if the first axis
        # survives and 8 if the second does: the one that leaves more is kept, for there is more to choose from then;
        # what is frozen counts as nothing left. Not the count alone, though: of queries, keys and values in one
        # projection, (3, 4, 8), something must be left of each of the three (``_leaves_parts``), or the compact model
        # would split a tensor that holds only two. Of equals the last axis: parts come before the widths of parts.
        # What crosses the grid along the axis that survives goes with it: where that is an output, nothing is left.
        options = {keep: [(labels, labels.narrow(axis, 0, 1)) for axis in axes if axis != keep] for keep in axes[::-1]}
        parts, crossings = self._parts(labels), self.crossings.get(_atoms_of(labels), [])

        def left(keep: int) -> tuple[bool, int]:
            ties = [(one.grid, one.thin) for one in crossings if _is_along(one, labels, keep)]
            return self._leaves_parts(options[keep], parts), self._count(options[keep] + ties)

        for union in options[max(options, key=left)]:
            self._unite(*union)

    def _parts(self, labels: Tensor) -> list[Tensor]:
        """Units of the values that are parts of this one, such as queries, keys and values of a fused projection."""
        # A part is a smaller grid all of whose units are among those of this one: (4, 8) of (3, 4, 8). One that is a
        # single unit already is none: no choice makes less of it. To look at the first label of each is quick, and
        # leaves few to look at in full.
        whole = self._units(labels).unique()
        begin_inside = torch.isin(self._units(self._firsts), whole).tolist()
        candidates = (one for one, inside in zip(self.rectangles, begin_inside, strict=True) if inside)
        smaller = [self._units(one) for one in candidates if one.numel() < labels.numel()]
        return [units for units in smaller if (units != units.reshape(-1)[0]).any() and torch.isin(units, whole).all()]

    def _leaves_parts(self, unions: list[tuple[Tensor, Tensor]], parts: list[Tensor]) -> bool:
        """Whether no part would become a single unit: something of each has to be left."""
        names, roots = self._merged(unions)
        return all(len(roots[torch.searchsorted(names, units)].unique()) > 1 for units in parts)

    def _meet_grouped(self, grid: Grouped) -> None:
        # 12 channels in 3 groups: whole groups leave 3 units, the same position in every group leaves 4, and as many as
        # the inputs and outputs that are coupled to them allow. A depthwise convolution, 12 groups of 1, leaves 12
        # groups or a single position. Removing whole groups keeps the weight's shared axis whole, for groups that stay
        # keep all their inputs; removing positions cuts it.
        chosen = grid.positions()
        if grid.inputs is not None and self._groups_leave_more(grid, grid.inputs):
            chosen = grid.groups()
            if grid.shared is not None:
                self._freeze(grid.shared, grid.reason)
        for union in chosen:
            self._unite(*union)

    def _groups_leave_more(self, grid: Grouped, inputs: Tensor) -> bool:
        units = self._count(grid.groups())
        most = inputs.shape[1] + grid.outputs.shape[1]  # positions cannot leave more, and to count takes long
        return units > most or units > self._count(grid.positions())

    def _units(self, labels: Tensor) -> Tensor:
        """Root of each label, 0 for what is frozen."""
        roots = self._classes.find(labels)
        return torch.where(roots == self._classes.find(self._dead), 0, roots)

    def _count(self, unions: list[tuple[Tensor, Tensor]]) -> int:
        """How many removable units these unions would leave."""
        names, roots = self._merged(unions)
        return int((~torch.isin(roots.unique(), roots[names == 0])).sum())

    def _merged(self, unions: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The units that take part in these unions, ascending, and a number for each: alike where they would unite."""
        # A trial: what would these unions do? Asked for every axis of every grid, so on the units that take part alone,
        # not on all atoms. Units 3, 3, 8, 0 get the names 1, 2 and 3 for 0, 3 and 8; uniting the last two, 8 and 0, is
        # uniting 3 and 1. Who has a root in common with the name of 0 would be frozen.
        sides = [torch.broadcast_tensors(*union) for union in unions]
        flat = self._units(torch.cat([side.reshape(-1) for pair in sides for side in pair]))
        names, index = flat.unique(return_inverse=True)
        trial = Atoms()
        stand_ins = trial.fresh(len(names))
        parts = stand_ins[index].split([side.numel() for pair in sides for side in pair])
        for left, right in zip(parts[::2], parts[1::2], strict=True):
            trial.unite(left, right)
        return names, trial.find(stand_ins)


def _atoms_of(grid: Tensor) -> tuple[int, ...]:
    """What grids of the same atoms have in common, however their dimensions lie."""
    return int(grid.min()), int(grid.max()), grid.numel()


def _is_along(crossing: Crossing, labels: Tensor, axis: int) -> bool:
    """Whether what crosses a grid, of which these are the atoms as well, varies along this axis of them."""
    lines = (_first_line(crossing.grid, varying(crossing.thin)), _first_line(labels, (axis,)))
    return torch.equal(*(line.sort().values for line in lines))


def _first_line(grid: Tensor, dims: Sequence[int]) -> Tensor:
    return grid[tuple(slice(None) if dim in dims else 0 for dim in range(grid.ndim))].reshape(-1)
