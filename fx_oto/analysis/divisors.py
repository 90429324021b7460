"""Parameters by which a model divides: cut with their group, but not driven to zero with it.

Of ``(x @ w.T) / scale``, channel i is zero once row i of ``w`` is. If entry i of the scale were zero as well, there
would be 0 / 0; and nothing asks for that, as ``w`` alone makes the channel zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fx_oto.analysis.dependencies import Axis
from fx_oto.analysis.tape import Tape
from fx_oto.analysis.values import storage_of

__all__ = ["AxisName", "divisors_among"]

# A parameter and one of its dimensions.
AxisName = tuple[str, int]


def divisors_among(
    axes: Sequence[Axis], roots: Tensor, tape: Tape, divided: Sequence[tuple[Tensor, Tensor]]
) -> frozenset[AxisName]:
    """The axes of parameters that would make a divisor zero.

    Args:
        axes: every axis of every parameter and buffer.
        roots: class of each atom, shape ``(atoms,)``.
        tape: the recorded calls.
        divided: values that must not be zero, each with the atoms that would make it so, ``(n,)``.
    """
    behind = _parameters_behind(tape) if divided else {}
    found = set[AxisName]()
    for value, labels in divided:
        names, classes = behind.get(storage_of(value), frozenset()), roots[labels].unique()
        for axis in axes:
            if axis.tensor in names and torch.isin(roots[axis.start : axis.start + axis.size], classes).any():
                found.add((axis.tensor, axis.dim))
    return frozenset(found)


def _parameters_behind(tape: Tape) -> dict[int, frozenset[str]]:
    """The names of the parameters of which what lies in a memory is computed."""
    found: dict[int, frozenset[str]] = {}
    for name, tensor in tape.tensors.items():
        found[storage_of(tensor)] = found.get(storage_of(tensor), frozenset()) | {name}
    for call in tape.calls:
        read = frozenset[str]().union(*(found.get(storage_of(one), frozenset()) for one in call.inputs))
        for out in (*call.outputs, *call.written):
            found[storage_of(out)] = found.get(storage_of(out), frozenset()) | read
    return found
