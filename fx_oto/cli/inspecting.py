"""``inspect``: what of a model can go, why the rest cannot, and what it all costs.

With ``--json``, one object on standard output; keys are only ever added to it:

- ``schema`` (1), ``command``, ``version``, ``model``, ``warnings`` (texts);
- ``capture``: ``front_end``, ``opaque`` (names), ``sizes``: each ``dims`` (input, dimension), ``size``, ``fixed`` and
  ``decided`` (why, or ``""``);
- ``cost``: ``params`` and ``macs`` of the full model, MACs on the example inputs, a batch of ``samples``;
- ``explained``: of the parameters that ``--only`` names, all without it: ``params``, ``prunable``, ``kept``;
- ``zigs``: their number; ``families``: each ``name``, ``zigs``, ``params_per_zig``, ``macs_per_zig``, and ``slots``,
  each ``tensor``, ``dim``, ``variable``, ``indices`` (how many);
- ``removal``: each ``fraction`` of every family and the ``params`` and ``macs`` that would be left;
- ``causes``: each ``why``, ``axes``, ``cost``;
- ``axes``: each ``tensor``, ``dim``, ``size``, ``prunable``, ``kept``, ``cost``, ``families`` (names), ``why``.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

from fx_oto.cli.subject import prepared
from fx_oto.core.context import Capture, Context
from fx_oto.core.fx_utils import holder
from fx_oto.core.picture import check_picture
from fx_oto.core.tables import counted, macs_text, table, terminal_width, wrapped
from fx_oto.reports.costs import Cost, cost
from fx_oto.viz.couplings import families_touching
from fx_oto.zigs.explanation import AxisExplanation, Explanation
from fx_oto.zigs.families import Family
from fx_oto.zigs.partition import Partition, partition

__all__ = ["Inspection", "inspect"]

_FRACTIONS = (0.25, 0.5, 0.75, 0.9)
_MOST_MODULES = 3


@dataclass(frozen=True)
class Inspection:
    """The result of the command; ``str()`` prints it, ``to_dict()`` has it as plain values.

    Attributes:
        model: as the user named it.
        kind: the model's class.
        capture: how it became a graph.
        cost: of the full model.
        zigs: its partition.
        families: those to be shown, each with its position in the partition.
        explanation: of the parameters to be shown.
        axes: whether the axes are to be listed: None for none, or what of them.
    """

    model: str
    kind: str
    capture: Capture
    cost: Cost
    zigs: Partition
    families: tuple[tuple[int, Family], ...]
    explanation: Explanation
    axes: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The keys that the docstring of the module lists."""
        explained, families = self.explanation.to_dict(), self.zigs.to_dict()["families"]
        return {
            "model": self.model,
            "capture": asdict(self.capture),
            "cost": self.cost.to_dict(),
            "explained": {key: explained[key] for key in ("params", "prunable", "kept")},
            "zigs": self.zigs.num_zigs,
            "families": [families[i] for i, _ in self.families],
            **self.zigs.forecast().to_dict(),
            "causes": explained["causes"],
            "axes": explained["axes"],
        }

    def __str__(self) -> str:
        parts = [self._head(), self._families(), str(self.zigs.forecast()), self._causes()]
        if self.axes is not None:
            parts.append(self._axes())
        return "\n\n".join(filter(None, parts))

    def _head(self) -> str:
        found = self.explanation
        lines = [f"{self.model} ({self.kind}): {self.cost}", str(self.capture)]
        families = counted(len(self.zigs.families), "family", "families")
        lines += [f"{self.zigs.num_zigs:,} zero-invariant groups (ZIGs) in {families}"]
        share = found.kept / max(found.params, 1)
        of = "" if found.params == self.cost.params else f" of the {found.params:,} shown"
        lines += [f"{found.kept:,} parameters{of} ({share:.1%}) can never go"]
        return "\n".join(map(wrapped, lines))

    def _families(self) -> str:
        if not self.families:
            return "no family of ZIGs: nothing of what is shown can be pruned"
        params, macs = self.zigs.params.marginal.tolist(), self.zigs.macs.marginal.tolist()
        costs = [(f"{round(params[i]):,}", macs_text(macs[i], self.zigs.samples)) for i, _ in self.families]
        rows = [
            (family.name, f"{len(family):,}", *cost, _coupled(family))
            for (_, family), cost in zip(self.families, costs, strict=True)
        ]
        headers = ("family", "ZIGs", "params/ZIG", "MACs/ZIG", "modules")
        return table(rows, headers, numeric=headers[1:4], width=terminal_width())

    def _causes(self) -> str:
        found = self.explanation
        rows = [
            (f"{cause.cost:,}", f"{cause.cost / max(found.params, 1):.1%}", cause.axes, cause.why)
            for cause in found.causes
        ]
        headers = ("cost", "share", "axes", "kept whole because")
        return table(rows, headers, numeric=headers[:3], width=terminal_width()) if rows else "nothing is kept whole"

    def _axes(self) -> str:
        rows = [
            (f"{axis.tensor}[{axis.dim}]", axis.size, axis.prunable, axis.kept, f"{axis.cost:,}", _why(axis))
            for axis in self.explanation
            if self.axes == "all" or axis.kept
        ]
        headers = ("parameter axis", "size", "can go", "kept", "cost", "family, or why it is kept")
        return table(rows, headers, numeric=headers[1:5], width=terminal_width())


def inspect(options: argparse.Namespace) -> Inspection:
    """Carry out the command."""
    if options.draw is not None:
        check_picture(options.draw, "--draw")
    model, inputs, gm = prepared(options)
    zigs = partition(gm)
    if options.draw is not None:
        zigs.draw(*options.only).save(options.draw)
    return Inspection(
        model=options.model,
        kind=type(model).__name__,
        capture=Context.of(gm).capture,
        cost=cost(model, inputs),
        zigs=zigs,
        families=tuple((i, zigs.families[i]) for i in families_touching(zigs, options.only)),
        explanation=zigs.explain(*options.only),
        axes="all" if options.only else ("frozen" if options.frozen else None),
    )


def _coupled(family: Family) -> str:
    """The modules that a family has a part in; a parameter that no module but the model holds, by its own name."""
    modules = list(dict.fromkeys(holder(slot.tensor) for slot in family.slots))
    more = len(modules) - _MOST_MODULES
    return ", ".join(modules[:_MOST_MODULES]) + (f" and {more} more" if more > 0 else "")


def _why(axis: AxisExplanation) -> str:
    families = ", ".join(name for name, _ in axis.families)
    return "; ".join(filter(None, (families, axis.why)))
