"""Recurrent layers and cells as one call each.

Below ``nn.LSTM`` and its like, torch calls one kernel or another, or spells the recurrence out step by step,
by device and type. What they do to labels is the same in all of them, and does not grow with the sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fx_oto.nn.whole_calls import Shown, WholeCalls

__all__ = ["CELLS", "GATES", "SEQUENCES", "WholeRecurrence", "packed_call", "recurrent_macs", "takes_packed"]

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


def takes_packed(module: nn.Module | None, given: Sequence[Any]) -> TypeGuard[nn.RNNBase]:
    """Whether a call is that of a recurrent layer, with torch's own code and no hooks, on a packed sequence."""
    if not (isinstance(module, nn.RNNBase) and given and isinstance(given[0], PackedSequence)):
        return False
    is_torchs = type(module) in (nn.LSTM, nn.GRU, nn.RNN) and "forward" not in vars(module)
    return is_torchs and not (module._forward_hooks or module._forward_pre_hooks)


def packed_call(
    call: Callable[..., Any], layer: nn.RNNBase, packed: PackedSequence, hx: Any = None
) -> tuple[Any, tuple[Any, ...]]:
    """The operator that a recurrent layer calls on a packed sequence, and its arguments.

    Args:
        call: calls an operator that makes the initial states where there are none.
        layer: the layer.
        packed: a packed sequence.
        hx: the initial states.
    """
    name = layer.mode.lower()
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 2 if name == "lstm" else 1]
    if hx is None:
        rows = layer.num_layers * (2 if layer.bidirectional else 1)
        zeros = torch.ops.aten.new_zeros.default
        states = [call(zeros, (packed.data, [rows, 1, size]), {}) for size in sizes]
    else:
        states = list(hx) if name == "lstm" else [hx]
    begin = states if name == "lstm" else states[0]
    settings = (layer.bias, layer.num_layers, layer.dropout, False, layer.bidirectional)
    args = (packed.data, packed.batch_sizes, begin, layer._flat_weights, *settings)
    return getattr(torch.ops.aten, name).data, args


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
