"""Rules for what is not understood: it keeps whole what enters it, and says why."""

from __future__ import annotations

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.tape import OpCall

__all__ = ["freeze_inputs", "opaque"]


def opaque(call: OpCall, p: Propagation) -> None:
    """Code that is called as a whole: what enters it and its own parameters stay as they are."""
    for value in call.inputs:
        p.freeze_value(value, "it enters code that could not be captured, and is called as a whole")


def freeze_inputs(call: OpCall, p: Propagation) -> None:
    """What has no rule keeps whole whatever enters it; its result is untracked."""
    tracked = [value for value in call.inputs if p.layers(value)]
    for value in tracked:
        p.freeze_value(value, f"no rule is known for the op {call.name}")
    # The user is told where channels enter it: integers, such as a buffer of positions, are places and not channels.
    if any(value.is_floating_point() or value.is_complex() for value in tracked):
        p.unknown_op(call.name)
