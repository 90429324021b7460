"""Recurrent layers and cells as one call each.

Below ``nn.LSTM`` and its like, torch calls one kernel or another, or spells the recurrence out step by step,
by device and type. What they do to labels is the same in all of them, and does not grow with the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fx_oto.nn.whole_calls import Shown, WholeCalls

__all__ = ["CELLS", "GATES", "SEQUENCES", "WholeRecurrence", "recurrent_macs"]

# How many blocks of rows, one row for each hidden unit, the weights of each kind have.
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
SEQUENCES = tuple(GATES)
CELLS = tuple(f"{name}_cell" for name in GATES)


def recurrent_macs(name: str, tensors: Sequence[Tensor]) -> int:
    """Multiply-adds of a recurrent call on these tensors, the input first: every matrix is applied at every step."""
    if name not in SEQUENCES + CELLS:
        return 0
    states = 2 if name.startswith("lstm") else 1
    return tensors[0][..., 0].numel() * sum(t.numel() for t in tensors[1 + states :] if t.ndim == 2)


class WholeRecurrence(WholeCalls):
    """Show each recurrent call as the operator that it has a name for, with results of the right sizes."""

    names = frozenset(f"{name}{overload}" for name in SEQUENCES + CELLS for overload in ("", ".input", ".default"))

    def shown(self, func: Any, args: tuple[Any, ...]) -> Shown | None:
        """Return the op that stands for a recurrent call."""
        name = getattr(func, "__name__", "").partition(".")[0]
        if name in CELLS:
            return getattr(torch.ops.aten, name).default, args, lambda: func(*args)
        if name in SEQUENCES and isinstance(args[3], bool):  # else it is a packed sequence
            return getattr(torch.ops.aten, name).input, args, lambda: _by_one_step(func, *args)
        return None


def _by_one_step(func: Any, source: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Results of the right sizes, at the price of one step."""
    batch_first = rest[-1]
    time = int(batch_first)
    step, *states = func(source.narrow(time, 0, 1), *rest)
    out = step.new_empty((source.size(time), source.size(1 - time), step.size(2)))
    return (out.transpose(0, 1) if batch_first else out, *states)
