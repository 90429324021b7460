"""Parameters that are not trained and only added, such as sines of positions: they are what they are, like buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from fx_oto.analysis.tape import OpCall, Tape

__all__ = ["untrained_tables"]


def untrained_tables(
    tape: Tape, parameters: Mapping[str, Tensor], moves_data: Callable[[OpCall], bool]
) -> frozenset[str]:
    """The names of parameters without gradient, where others have one, that are moved, looked up and added, no more.

    A weight that is multiplied is none: it may be trained later, and its group waits for that.

    Args:
        tape: the recorded calls.
        parameters: by name.
        moves_data: whether all that a call does is to move data.
    """
    untrained = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    if len(untrained) == len(parameters):
        return frozenset()
    held = {id(tape.tensors[name]): frozenset([name]) for name in untrained}
    added, others = set[str](), set[str]()
    for call in tape.calls if held else ():
        read = frozenset[str]().union(*(held.get(id(one), frozenset()) for one in call.inputs))
        if call.name in ("add", "add_") and not any(id(one) in held for one in call.written):
            added |= read
        elif moves_data(call) or call.name == "embedding":
            held.update({id(out): read for out in call.outputs} if read else {})
        else:
            others |= read
    return frozenset(added - others)
