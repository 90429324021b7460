"""Ops on pairs of inputs: bilinear forms, and the distances between all rows of two tables."""

from __future__ import annotations

import torch
from torch import Tensor

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import UNKNOWN, ZERO, Layer
from fx_oto.analysis.tape import OpCall
from fx_oto.ops.contraction import contract
from fx_oto.ops.pointwise import Operand, combine

__all__ = ["distance", "distance_of_rows", "distance_of_two", "trilinear"]


def trilinear(call: OpCall, p: Propagation) -> None:
    """``_trilinear``, of which bilinear forms are made: three operands are spread, multiplied, and summed."""
    # x (N, 4), weight (5, 4, 6) and y (N, 6) are spread to (N, 1, 4, 1), (1, 5, 4, 6) and (N, 1, 1, 6); the sum over
    # the last two is (N, 5). A channel of x goes with its column of the weight, and so does one of y.
    spread = [call.arg(f"expand{n}") for n in (1, 2, 3)]
    tensors, letters = call.args[:3], "abcdefgh"[: call.args[0].ndim + len(spread[0])]
    summed = {letters[dim] for dim in call.arg("sumdim")}
    terms = ["".join(letter for i, letter in enumerate(letters) if i not in dims) for dims in spread]
    result = "".join(letter for letter in letters if letter not in summed)
    p.mixes()
    p.put(call.out, contract(p, [Operand.of(p, tensor) for tensor in tensors], terms, result, False))


def distance(call: OpCall, p: Propagation) -> None:
    """``cdist``: to the distance between two rows adds nothing what is worth the same in both."""
    left, right = (_with_rows(p, tensor, dim) for tensor, dim in zip(call.args[:2], (-2, -3), strict=True))
    width, layers = call.out.ndim, []
    for layer in combine(p, [left, right], width + 1, _difference, may_cross=False):
        if width not in layer.dims:
            layers.append(Layer.uniform(layer.labels.squeeze(width)))
            continue
        _sum(p, layer)
        if len(layer.dims) > 1:
            p.freeze(layer.labels, "distances are taken over a part of it")
    p.mixes()
    p.put(call.out, layers)


def distance_of_rows(call: OpCall, p: Propagation) -> None:
    """``pdist``: between all rows of one table."""
    (table,) = call.inputs
    why = "distances are taken between all pairs of rows"
    columns = Operand(table.shape, p.narrow(p.layers(table), {1}, why))
    for layer in combine(p, [columns, columns], 2, _difference):
        _sum(p, layer)
    p.mixes()
    p.put(call.out, ())


def distance_of_two(call: OpCall, p: Propagation) -> None:
    """``dist``: a norm of the difference."""
    both = call.inputs
    for layer in combine(p, [Operand.of(p, one) for one in both], max(one.ndim for one in both), _difference):
        _sum(p, layer)
        if call.arg("p") < 0:
            p.freeze(layer.labels, "a norm of negative order runs over it")
    p.put(call.out, ())


def _sum(p: Propagation, layer: Layer) -> None:
    p.freeze_where(layer.removed != 0, layer.labels, "the distance over it would change")


def _with_rows(p: Propagation, tensor: Tensor, dim: int) -> Operand:
    """One table with a dimension of 1 for the rows of the other."""
    shape = list(tensor.shape)
    shape.insert(len(shape) + dim + 1, 1)
    return Operand(shape, [one.map(lambda t: t.unsqueeze(dim)) for one in p.layers(tensor)], p.is_weight(tensor))


def _difference(values: list[Tensor]) -> Tensor:
    return torch.where(values[0] == values[1], ZERO, UNKNOWN)
