"""Choices that depend on all other unions: which axis of a grid survives.

A tensor can only lose whole slices. Where labels form a grid (groups × channels, heads × widths), all but
one axis must be united; which one survives is chosen by whichever leaves more units to remove. The choice on
one grid can make the choice on another, so they are settled together, to a fixpoint, after everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fx_oto.atoms import Atoms
from fx_oto.dependencies import Reason
from fx_oto.labels import compress, varying

__all__ = ["Grouped", "Rectangle", "settle"]

_Frozen = list[tuple[Tensor, Reason]]


@dataclass(frozen=True, eq=False)
class Rectangle:
    """These labels must vary along at most one dimension."""

    labels: Tensor


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


def settle(atoms: Atoms, obligations: Sequence[Rectangle | Grouped], frozen: _Frozen) -> None:
    """Meet every obligation, by unions in ``atoms`` and additions to ``frozen``, until nothing changes."""
    open_ones = list(obligations)
    changed = True
    while changed:
        changed = False
        for obligation in open_ones:
            if isinstance(obligation, Rectangle):
                changed |= _meet_rectangle(atoms, obligation, frozen)
        for obligation in list(open_ones):
            if isinstance(obligation, Grouped):
                _meet_grouped(atoms, obligation, frozen)
                open_ones.remove(obligation)
                changed = True


def _meet_rectangle(atoms: Atoms, obligation: Rectangle, frozen: _Frozen) -> bool:
    labels = obligation.labels
    units = compress(_units(atoms, labels, frozen))
    axes = varying(units)
    if len(axes) < 2:
        return False
    options = [[(labels, labels.select(axis, 0).unsqueeze(axis)) for axis in axes if axis != keep] for keep in axes]
    best = max(options, key=lambda unions: _count(atoms, unions, frozen))
    for union in best:
        atoms.unite(*union)
    return True


def _meet_grouped(atoms: Atoms, grid: Grouped, frozen: _Frozen) -> None:
    positions, groups = grid.positions(), grid.groups() if grid.inputs is not None else None
    if groups is not None and _count(atoms, groups, frozen) > _count(atoms, positions, frozen):
        if grid.shared is not None:
            frozen.append((grid.shared, grid.reason))
        positions = groups
    for union in positions:
        atoms.unite(*union)


def _units(atoms: Atoms, labels: Tensor, frozen: _Frozen) -> Tensor:
    """Root of each label, 0 for what is frozen."""
    roots = atoms.find(labels)
    if frozen:
        roots = torch.where(torch.isin(roots, atoms.find(torch.cat([labels for labels, _ in frozen]))), 0, roots)
    return roots


def _count(atoms: Atoms, unions: list[tuple[Tensor, Tensor]], frozen: _Frozen) -> int:
    """How many removable units these unions would leave."""
    sides = [torch.broadcast_tensors(*union) for union in unions]
    flat = _units(atoms, torch.cat([side.reshape(-1) for pair in sides for side in pair]), frozen)
    names, index = flat.unique(return_inverse=True)
    trial = Atoms()
    stand_ins = trial.fresh(len(names))
    parts = stand_ins[index].split([side.numel() for pair in sides for side in pair])
    for left, right in zip(parts[::2], parts[1::2], strict=True):
        trial.unite(left, right)
    roots = trial.find(stand_ins)
    dead = roots[names == 0]
    return int((~torch.isin(roots.unique(), dead)).sum())
