"""Rules for ops that are not understood: they keep their inputs whole, and say why."""

from __future__ import annotations

from dataclasses import dataclass

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.tape import OpCall

__all__ = ["OPAQUE", "KeepWhole", "freeze_inputs"]


@dataclass(frozen=True)
class KeepWhole:
    """The rule that ``fx_oto.kinds.keep_whole`` makes."""

    reason: str

    mixing = True

    def __call__(self, call: OpCall, p: Propagation) -> None:
        """Follow a call."""
        for value in call.inputs:
            p.freeze_value(value, self.reason)

    def __repr__(self) -> str:
        return f"keep_whole({self.reason!r})"


# Code that is called as a whole: what enters it and its own parameters stay as they are.
OPAQUE = KeepWhole("it enters code that could not be captured, and is called as a whole")


def freeze_inputs(call: OpCall, p: Propagation) -> None:
    """Keep whole all that enters an op without a rule; its result is untracked."""
    tracked = [value for value in call.inputs if p.layers(value)]
    for value in tracked:
        p.freeze_value(value, f"no rule is known for the op {call.name}")
    # The user is told where channels enter it: integers, such as a buffer of positions, are places and not channels.
    if any(value.is_floating_point() or value.is_complex() for value in tracked):
        p.unknown_op(call.name)
