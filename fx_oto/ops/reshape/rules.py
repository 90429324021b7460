"""The rule of reshapes: which channels can go although dimensions are merged and split."""

from __future__ import annotations

import math

from torch import Tensor

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import Layer, reshape, runs
from fx_oto.analysis.tape import OpCall
from fx_oto.ops.movement.rules import follow, moves_data
from fx_oto.ops.reshape.mixing import cut_moves, spelled_out

__all__ = ["view"]

_MIXED = "it is mixed with a dimension whose size may be another one on other inputs"


@moves_data
def view(call: OpCall, p: Propagation) -> None:
    """Reshapes: only the dimensions that are merged or split, and vary, are touched."""
    source = call.args[0]
    if source.numel() == 0:
        p.freeze_value(source, "it is reshaped without elements")
        return
    _keep_mixed(p, source, call.out)
    for layer in p.layers(source):
        moves = cut_moves(call, p, layer)
        told = _is_spelled_out(p, source, call.out, layer) if moves else _stays_last(source, call.out, layer)
        if moves is not False and told and layer.labels.numel() == source.size(layer.dims[0]) and p.can_adjust("sizes"):
            p.adjust("sizes", layer.labels.reshape(-1))
        elif moves:
            p.freeze(layer.labels, _MIXED)
    follow(call, p, source, lambda labels: [reshape(labels, source.shape, call.out.shape)])


def _is_spelled_out(p: Propagation, source: Tensor, out: Tensor, layer: Layer) -> bool:
    """Return whether code spells out the number of elements from the channels on, so that slicing can check it.

    Of channels that are last, how many are before them, as where ``(B, 49, C)`` becomes ``(B, 7, 7, -1)``.
    """
    dim = layer.dims[0]
    if 0 < dim == source.ndim - 1:
        return _stays_last(source, out, layer) and source.size(dim - 1) in spelled_out(p.fx_node, 2)
    return math.prod(source.shape[dim:]) in spelled_out(p.fx_node)


def _stays_last(source: Tensor, out: Tensor, layer: Layer) -> bool:
    """Return whether channels are last before and after, so that slicing can check that they are as many."""
    return layer.dims[0] == source.ndim - 1 and source.size(-1) == out.size(-1)


def _keep_mixed(p: Propagation, source: Tensor, out: Tensor) -> None:
    """Keep whole what a reshape cuts at places that have nothing to do with where it begins.

    Where a sequence ``(B, T, 8)`` becomes ``(B, 8, T)`` by a reshape, channel ``c`` of step ``t`` goes to where
    ``8 t + c`` falls in rows of ``T``: which channels share a row depends on ``T``. Where ``(B, 8)`` becomes
    ``(2 B, 4)``, they are halves of each 8, whatever ``B`` is.
    """
    # (B, 8, 6) to (B, 4, 12): B is a run of its own, and 8 · 6 = 4 · 12 is the other.
    for left, right in runs(source.shape, out.shape):
        if len(left) < 2 or len(right) < 2:
            continue
        ends = [math.prod(out.shape[dim] for dim in right[place:]) for place in range(1, len(right))]
        for layer in p.layers(source):
            for dim in (dim for dim in left if layer.labels.size(dim) > 1):
                inner = math.prod(source.shape[other] for other in left if other > dim)
                end = inner * source.size(dim)
                if any(inner < one < end and end % one for one in ends):
                    p.freeze(layer.labels, _MIXED)
