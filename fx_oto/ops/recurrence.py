"""Rules for recurrent layers and cells: a hidden unit goes with its rows in every gate.

With all its variables zero, a unit's gates are ½ and what it would add to its state is 0, so the state of an LSTM or
GRU halves at every step: it is zero for ever if it is zero at first. A plain recurrence shows its first state once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fx_oto.analysis.engine import FIXED, Propagation
from fx_oto.analysis.labels import ZERO, Layer, laid_along
from fx_oto.analysis.tape import OpCall
from fx_oto.ops.contraction import contract
from fx_oto.ops.pointwise import Operand, combine

__all__ = ["cell", "sequence"]


def sequence(call: OpCall, p: Propagation) -> None:
    """``lstm``, ``gru``, ``rnn_tanh`` and ``rnn_relu``: layers and directions that share one hidden size.

    Of a packed sequence, the first argument are its rows, one for each step of each example.
    """
    source, weights = call.args[0], call.arg("params")
    directions = 2 if call.arg("bidirectional") else 1
    each = len(weights) // (call.arg("num_layers") * directions)
    parts = [weights[start : start + each] for start in range(0, len(weights), each)]
    shown, units = _start(p, _states(call))
    incoming, out = _features(p, source), shown.repeat(directions)
    for first in range(0, len(parts), directions):
        for part in parts[first : first + directions]:
            _direction(call, p, incoming, part, (shown, units))
        incoming = Operand((1, len(out)), _layers(out, 2))
    _put(call, p, [out, shown, units])


def cell(call: OpCall, p: Propagation) -> None:
    """One step: ``lstm_cell`` and its like."""
    weights = [call.arg(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    units = _start(p, _states(call))
    _direction(call, p, _features(p, call.arg("input")), [w for w in weights if w is not None], units)
    _put(call, p, units)


def _states(call: OpCall) -> list[Tensor]:
    """The initial states: of what is shown to the next layer and step, and for an LSTM that of the units' memory."""
    states = call.arg("hx")
    return [states] if isinstance(states, Tensor) else list(states)


def _start(p: Propagation, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Atoms of what is shown and of the hidden units, the same unless there is a projection between them."""
    units = p.atoms.fresh(states[-1].size(-1))
    projected = states[0].size(-1) != len(units)
    shown = p.atoms.fresh(states[0].size(-1)) if projected else units
    if projected:
        p.keep_unequal(shown, units)
    for labels in (shown, units):
        if len(labels) == 1:
            p.freeze(labels, "it is the only unit")
    for state, labels in zip(states, (shown, units), strict=False):
        _initial(p, state, labels)
    return shown, units


def _initial(p: Propagation, state: Tensor, labels: Tensor) -> None:
    side = _features(p, state, "it is the initial state of several layers or sequences")
    if p.is_weight(state):
        for layer in side.layers:
            p.produce(layer.labels)
    _tie(p, side.layers, labels, "its initial state is not known to be zero once it is removed")


def _tie(p: Propagation, layers: Sequence[Layer], labels: Tensor, why: str) -> None:
    """Unite a layer along the last dimension with units, or each block of it, if its removed value is zero."""
    if not layers:
        p.freeze(labels, why)
    for layer in layers:
        p.freeze_where(layer.removed != 0, layer.labels, why)
        p.unite(layer.labels.reshape(-1, len(labels)), labels)


def _features(p: Propagation, value: Tensor, why: str = "a recurrence runs along it") -> Operand:
    """The last dimension of a value; the others are kept whole."""
    narrowed = p.narrow(p.layers(value), (value.ndim - 1,), why)
    layers = [layer.map(lambda t: t.reshape(1, -1)) for layer in narrowed]
    return Operand((1, value.size(-1)), layers)


def _layers(labels: Tensor, ndim: int) -> list[Layer]:
    return [Layer.uniform(laid_along(labels, ndim - 1, ndim), ZERO)] if len(labels) > 1 else []


def _direction(
    call: OpCall, p: Propagation, incoming: Operand, weights: Sequence[Tensor], atoms: tuple[Tensor, Tensor]
) -> None:
    """The weights of one layer in one direction: of the input, of the state, biases, and of a projection."""
    # An LSTM of hidden size 8 has weights (32, inputs) and (32, 8): 4 gates of 8 rows each. Row i of every gate gets
    # the label of unit i, and so does column i of the second, which reads the state.
    shown, units = atoms
    state = Operand((1, len(shown)), _layers(shown, 2))
    biases = weights[2:] if shown is units else weights[2:-1]
    products = [_product(call, p, side, w) for side, w in zip((incoming, state), weights[:2], strict=True)]
    added = [Operand.of(p, bias) for bias in biases]
    gates = combine(p, [*products, *added], 2, lambda values: torch.stack(torch.broadcast_tensors(*values)).sum(0))
    _tie(p, gates, units, FIXED)
    if shown is not units:
        hidden = Operand((1, len(units)), _layers(units, 2))
        _tie(p, _product(call, p, hidden, weights[-1]).layers, shown, FIXED)


def _product(call: OpCall, p: Propagation, side: Operand, weight: Tensor) -> Operand:
    """A linear map at every step."""
    p.work(call.args[0][..., 0].numel() * weight.numel(), p.layers(weight))
    return Operand((1, weight.size(0)), contract(p, [side, Operand.of(p, weight)], ("bk", "ok"), "bo", foldable=False))


def _put(call: OpCall, p: Propagation, atoms: Sequence[Any]) -> None:
    for out, labels in zip(call.outputs, atoms, strict=False):
        p.put(out, _layers(labels, out.ndim))
