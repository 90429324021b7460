"""What rules have said about labels while the tape was played, and how it is told as ``Dependencies``."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fx_oto.analysis.closure import Obligation
from fx_oto.analysis.dependencies import Adjustment, Axis, Dependencies, Gather, Reason, Work
from fx_oto.analysis.labels import Layer
from fx_oto.analysis.tape import Tape

__all__ = ["Findings", "Values"]

# For each FX node, by name, the layers of each tensor in its value.
Values = dict[str, tuple[tuple[Layer, ...], ...]]


@dataclass(eq=False)
class Findings:
    """Notes that grow call by call; see ``Dependencies`` for those that have the same name there.

    Attributes:
        frozen: atoms that are kept whole, each time with the reason.
        obligations: choices that wait for all unions.
        consumed: atoms whose indices are only summed over.
        kernels: atoms of what convolutions slide along, each time with the reason why they stay.
        selected: for a tensor, by ``id``: what it is a selection from, along which dimension, at which positions.
    """

    frozen: list[tuple[Tensor, Reason]] = field(default_factory=list)
    obligations: list[Obligation] = field(default_factory=list)
    producers: list[tuple[str, Tensor]] = field(default_factory=list)
    consumed: list[Tensor] = field(default_factory=list)
    kernels: list[tuple[Tensor, Reason]] = field(default_factory=list)
    contracting: set[str] = field(default_factory=set)
    works: list[Work] = field(default_factory=list)
    adjustments: list[Adjustment] = field(default_factory=list)
    selected: dict[int, tuple[Tensor, int, Tensor]] = field(default_factory=dict)
    unknown: dict[tuple[str, str], Reason] = field(default_factory=dict)
    unequal: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    values: Values = field(default_factory=dict)

    def gathers(self, tape: Tape) -> dict[str, Gather]:
        """The selections that begin and end at nodes of the graph, by the name of the last."""
        named: dict[int, str] = {}
        for name, _, value in tape.steps:
            if isinstance(value, Tensor):
                named.setdefault(id(value), name)  # an identity returns what another node has made
        return {
            named[key]: Gather(named[id(entry)], dim, positions)
            for key, (entry, dim, positions) in self.selected.items()
            if key in named and id(entry) in named
        }

    def keep_kernels(self, roots: Tensor) -> None:
        """Keep whole what convolutions slide along, where something else reads the same weight and could cut it.

        Of all others there is nothing to say: they meet nothing, and are in no group.
        """
        variable = self._variable(roots)
        for labels, reason in self.kernels:
            if variable[labels].any():
                self.frozen.append((labels, reason))

    def dependencies(
        self, roots: Tensor, axes: tuple[Axis, ...], gathers: dict[str, Gather], contents: dict[str, Tensor]
    ) -> Dependencies:
        """All of it, once every atom has its final root."""
        return Dependencies(
            axes=axes,
            roots=roots,
            variable=self._variable(roots),
            works=tuple(self.works),
            reasons=self._reasons(roots),
            values=self.values,
            producers=tuple(self.producers),
            contracting=frozenset(self.contracting),
            adjustments=tuple(self.adjustments),
            gathers=gathers,
            unknown=tuple(self.unknown.values()),
            unequal=tuple(self.unequal),
            contents=contents,
        )

    def _variable(self, roots: Tensor) -> Tensor:
        # A row of a convolution's weight makes its channel: once it is zero, the channel is, so it is driven to zero
        # (a variable of the group). The column of the next layer's weight that reads the channel is only cut with it:
        # it is multiplied by zero, whatever it is, and what training makes of it does not matter. A tensor that is
        # both, such as a tied embedding, is driven to zero: producers come last.
        variable = torch.bincount(roots)[roots] > 1  # what meets nothing is no group
        for labels in self.consumed:
            variable[labels] = False
        for _, labels in self.producers:
            variable[labels] = True
        return variable

    def _reasons(self, roots: Tensor) -> dict[int, Reason]:
        reasons: dict[int, Reason] = {}
        for labels, reason in self.frozen:
            for root in roots[labels[labels > 0]].unique().tolist():
                reasons.setdefault(root, reason)
        return reasons
