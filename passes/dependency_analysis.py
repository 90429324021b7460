"""Dependency analysis: which indices of which parameter axes must go together."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from fx_oto.context import Context
from fx_oto.dependencies import Dependencies
from fx_oto.errors import FxOtoWarning
from fx_oto.pipeline import Analysis
from fx_oto.propagation import Propagation
from fx_oto.rules import rule_for
from fx_oto.tape import Tape, record_tape

__all__ = ["DependencyAnalysis"]


@dataclass(frozen=True)
class DependencyAnalysis(Analysis):
    """Follow the provenance of every channel through the ATen calls of the graph.

    Provides ``Dependencies``. An op without a rule freezes what enters it, with an ``FxOtoWarning``.
    """

    name: ClassVar[str] = "dependency-analysis"

    def analyse(self, gm: GraphModule, context: Context) -> Dependencies:
        """Play the tape, recording it first if a pass has changed the graph."""
        tape = context.results.get(Tape) or record_tape(gm, context.inputs)
        found = Propagation(gm, tape, rule_for).run()
        for reason in found.unknown:
            warnings.warn(
                f"{reason}: what enters it is kept whole. Teach it with fx_oto.register_rule, or ignore this",
                FxOtoWarning,
                stacklevel=2,
            )
        return found
