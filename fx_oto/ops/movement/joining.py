"""Rules for ops that join tensors: labels are joined as the values are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fx_oto.analysis.engine import FIXED, Propagation
from fx_oto.analysis.labels import UNKNOWN, Layer, compress
from fx_oto.analysis.tape import OpCall
from fx_oto.ops.movement.rules import moves_data
from fx_oto.ops.pointwise import clusters

__all__ = ["concatenate"]


@moves_data
def concatenate(call: OpCall, p: Propagation) -> None:
    """``cat``, and ``stack`` along a new dimension: labels are joined as the values are; what has none gets atom 0."""
    # One of no rows, such as of those that no token chose, has rows on other inputs; torch leaves out what has no form.
    tensors = [t for t in call.args[0] if t.shape != (0,) or call.out.ndim == 1 or call.name == "stack"]
    dim = call.arg("dim") % call.out.ndim

    def lifted(value: Tensor) -> Tensor:
        return value.unsqueeze(dim) if call.name == "stack" else value

    layers = [[layer.map(lifted) for layer in p.layers(t)] for t in tensors]
    p.put(call.out, _joined(p, [lifted(t) for t in tensors], layers, dim))
    if all(p.is_weight(t) for t in tensors):
        p.put_weight(call.out)


def _joined(p: Propagation, tensors: Sequence[Tensor], layers: Sequence[Sequence[Layer]], dim: int) -> list[Layer]:
    joined = []
    for dims in clusters(layer.dims for operand in layers for layer in operand):
        fitting = [[layer for layer in operand if dims.intersection(layer.dims)] for operand in layers]
        chosen = [found[0] if found else None for found in fitting]
        for extra in (layer for found in fitting for layer in found[1:]):
            p.freeze(extra.labels, "two of its dimensions are tied together")
        # x (N, 4) and y (N, 6) joined along 1 are labels 1 … 4, then 5 … 10. Joined along 0, their channels lie side by
        # side, so they are united, and channel i goes from both or from neither.
        present = [layer for layer in chosen if layer is not None]
        if dim not in dims:
            joined += _across(p, present, len(present) == len(chosen))
            continue
        spread = [[1 if layer is None else layer.labels.size(d) for layer in chosen] for d in range(tensors[0].ndim)]
        shape = [max(sizes) for sizes in spread]
        labels, removed = [], []
        for tensor, layer in zip(tensors, chosen, strict=True):
            shape[dim] = tensor.size(dim)
            labels.append(
                torch.zeros((), dtype=torch.int64).expand(shape) if layer is None else layer.labels.expand(shape)
            )
            removed.append(UNKNOWN.expand(shape) if layer is None else layer.removed.expand(shape))
        joined.append(Layer(compress(torch.cat(labels, dim)), compress(torch.cat(removed, dim))))
    return joined


def _across(p: Propagation, layers: Sequence[Layer], everywhere: bool) -> list[Layer]:
    """Parts that are joined along another dimension than the one they vary along lose the same slices, or none."""
    if not everywhere:
        for layer in layers:
            p.freeze(layer.labels, FIXED)
        return []
    for layer in layers[1:]:
        p.unite(layers[0].labels, layer.labels)
    removed = layers[0].removed
    if any(not torch.equal(*torch.broadcast_tensors(removed, layer.removed)) for layer in layers[1:]):
        return [Layer.uniform(layers[0].labels)]
    return [layers[0]]
