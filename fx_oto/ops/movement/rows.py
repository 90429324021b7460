"""Rules for ops that gather rows, or write into them, by an index: graphs, mixtures of experts, tables.

Element ``(i, j)`` of a source goes to, or comes from, ``(index, j)``: along the dimension of the index it moves, along
every other it stays where it is. So channels are not mixed, wherever the rows go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fx_oto.analysis.aliases import overwritten
from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import UNKNOWN, ZERO, Layer
from fx_oto.analysis.tape import OpCall
from fx_oto.nn.modes import called
from fx_oto.ops.pointwise import Operand, combine, known_number

__all__ = ["at_places", "by_rows", "in_order", "keep_rows", "masked_rows", "pack", "unpack"]

_WRITES = ("setitem", "index_put", "index_put_")


def by_rows(call: OpCall, p: Propagation) -> None:
    """``gather``, ``scatter``, ``index_add`` and their like, along one dimension."""
    target, index = call.args[0], call.arg("index")
    dim = call.arg("dim") % max(target.ndim, 1)
    values = [one for one in call.inputs if one is not index]
    moved = [*values, index] if index.ndim == target.ndim else values  # else one index for each whole row
    others = set(range(target.ndim)) - {dim}
    if index.ndim != target.ndim:
        p.freeze_value(index, "it tells which elements are taken")
    # An index, or a source, that is shorter than the target reaches a part of its channels, and which is not said. Of
    # heads beside examples, in one dimension, the size of an index does not follow.
    layers = [layer for one in moved for layer in p.layers(one)]
    full = {d for d in others if len({tensor.size(d) for tensor in moved if tensor.ndim == target.ndim}) == 1}
    full -= {d for layer in layers for d in layer.dims if len(layer.labels.unique()) < layer.labels.numel()}
    why = f"{call.name} moves along it"
    operands = [Operand(_without(one.shape, dim), p.narrow(p.layers(one), full, why)) for one in moved]
    p.put(call.out, combine(p, operands, target.ndim, _zero_of_zeros(len(values))))


def at_places(call: OpCall, p: Propagation) -> None:
    """``x[rows] = y`` and ``x[mask] += y``: what is written lies as the target does behind the indexed dimensions."""
    target, value = call.args[0], call.arg("values")
    indices: Sequence[Any] = call.arg("indices")
    given = [place for place, index in enumerate(indices) if index is not None]
    if len(given) == 1 and (places := _constant_places(p, indices[given[0]])) is not None:
        _at_constant_places(call, p, given[0], places % target.size(given[0]))
        return
    if len(given) == 1 and _is_mask(indices[given[0]]) and value.numel() == 1:
        _fill(call, p, given[0])
        return
    for index in indices:
        p.freeze_value(index, "it tells which elements are taken")
    leading = [index for index in indices if index is not None]
    taken = sum(index.ndim if _is_mask(index) else 1 for index in leading)
    if list(indices[: len(leading)]) != leading or value.ndim > target.ndim - taken + _block(leading):
        for tensor in (target, value):
            p.freeze_value(tensor, "it is written at places that lie between other dimensions")
        return
    rest = target.ndim - taken
    why = f"{call.name} writes along it"
    operands = [_row_of(p, target, rest, why), _row_of(p, value, min(rest, value.ndim), why)]
    number, zero_of_zeros = known_number(p, value, target.ndim), _zero_of_zeros(2)

    def worth(values: list[Tensor]) -> Tensor:
        return zero_of_zeros(values if number is None else [values[0], number])

    p.put(call.out, combine(p, operands, target.ndim, worth))


def in_order(call: OpCall, p: Propagation) -> None:
    """``x.masked_scatter(mask, y)`` where whole rows of ``x`` are written: those of ``y`` lie as they do."""
    target, mask, source = call.args
    rest = _same_along(mask.expand(call.out.shape))
    if not rest or source.shape[-len(rest) :] != rest or target.shape[-len(rest) :] != rest:
        for tensor in call.args:
            p.freeze_value(tensor, "it is written element after element")
        return
    why = f"{call.name} writes along it"
    operands = [_row_of(p, tensor, len(rest), why) for tensor in (target, source, mask)]
    p.put(call.out, combine(p, operands, call.out.ndim, _zero_of_zeros(2)))


def masked_rows(call: OpCall) -> torch.Size:
    """The sizes of the rows of which ``x[mask]`` takes all or nothing, because the mask is expanded along them."""
    indices = call.args[1] if call.name == "index" else []
    alone = len(indices) == 1 and _is_mask(indices[0]) and indices[0].ndim == call.args[0].ndim
    return _same_along(indices[0]) if alone else torch.Size()


def keep_rows(call: OpCall, p: Propagation, rows: torch.Size) -> None:
    """Of the rows that a mask takes from, what goes is what goes of the mask."""
    source, (mask,) = call.args
    operands = [_row_of(p, tensor, len(rows), "it is indexed by data") for tensor in (source, mask)]
    p.put(source, combine(p, operands, source.ndim, lambda values: values[0]))


def _same_along(mask: Tensor) -> torch.Size:
    """The sizes of the last dimensions of a mask along which it was expanded."""
    strides = mask.stride()
    return mask.shape[mask.ndim - next((at for at, one in enumerate(reversed(strides)) if one), mask.ndim) :]


def _row_of(p: Propagation, tensor: Tensor, count: int, why: str) -> Operand:
    """A tensor along its last dimensions; what varies along others is kept whole."""
    lead = tensor.ndim - count
    layers = p.narrow(p.layers(tensor), range(lead, tensor.ndim), why)
    return Operand(tensor.shape[lead:], [layer.map(lambda t: t.reshape(t.shape[lead:])) for layer in layers])


def _constant_places(p: Propagation, index: Tensor) -> Tensor | None:
    """The indices along a dimension at which something is written, where they are the same in every call."""
    name, given = called(p.fx_node)
    rewritable = p.rewritable and name in _WRITES and len(given) > 1
    content = p.constant(index) if rewritable and index.ndim == 1 else None
    if content is None or (_is_mask(index) and p.layers(index)):  # a mask of channels goes with them
        return None
    return (content.nonzero().reshape(-1) if _is_mask(index) else content).cpu()


def _at_constant_places(call: OpCall, p: Propagation, dim: int, places: Tensor) -> None:
    """``x[:, [0, 2]] = y``: what is written at a channel is that channel."""
    target, value = call.args[0], call.arg("values")
    p.freeze_value(call.arg("indices")[dim], "it tells which elements are taken")
    lines = [layer for layer in p.layers(target) if len(layer.dims) == 1]
    for grid in (layer for layer in p.layers(target) if len(layer.dims) > 1):
        p.freeze(grid.labels, "it is written at some places")
    shape = [len(places) if one == dim else size for one, size in enumerate(target.shape)]
    taken = [layer.map(lambda t: t.index_select(dim, places) if t.size(dim) > 1 else t) for layer in lines]
    number = known_number(p, value, target.ndim)

    def worth(values: list[Tensor]) -> Tensor:
        here, new = values if number is None else (values[0], number)
        return torch.where(new == 0, here, UNKNOWN) if call.arg("accumulate") else new

    written = combine(p, [Operand(shape, taken), Operand.of(p, value)], target.ndim, worth)
    now = {layer.dims: layer for layer in written}
    parts = [places.tolist() if one == dim else range(size) for one, size in enumerate(target.shape)]
    p.put(call.out, [overwritten(layer, parts, target.shape, now.get(layer.dims)) for layer in lines])


def _fill(call: OpCall, p: Propagation, place: int) -> None:
    """``x[mask] = 0`` and ``x[:, mask] += 1``: each element stays where it is, as in ``masked_fill``."""
    target, mask, value = call.args[0], call.arg("indices")[place], call.arg("values")
    p.freeze_value(value, "it is written at many places")
    before, after = [1] * place, [1] * (target.ndim - mask.ndim - place)
    masks = [layer.map(lambda t: t.reshape(*before, *t.shape, *after)) for layer in p.layers(mask)]
    operands = [Operand.of(p, target), Operand((*before, *mask.shape, *after), masks)]
    number = known_number(p, value, target.ndim)

    def worth(values: list[Tensor]) -> Tensor:
        here, masked = values
        new = UNKNOWN if number is None else here + number if call.arg("accumulate") else number
        return torch.where((here == new) | (masked == 0), here, torch.where(masked == 1, new, UNKNOWN))

    p.put(call.out, combine(p, operands, target.ndim, worth))


def pack(call: OpCall, p: Propagation) -> None:
    """``pack_padded_sequence``: the steps of all examples become rows of one matrix."""
    source = call.args[0]
    behind = p.narrow(p.layers(source), range(2, source.ndim), "sequences are packed along it")
    p.put(call.outputs[0], [layer.map(lambda t: t.flatten(0, 1)) for layer in behind])


def unpack(call: OpCall, p: Propagation) -> None:
    """``pad_packed_sequence``: rows become steps of examples, and what is missing a number."""
    source = call.args[0]
    behind = p.narrow(p.layers(source), range(1, source.ndim), "sequences are padded along it")
    layers = [layer.map(lambda t: t.unsqueeze(0)) for layer in behind]
    if call.arg("padding_value") != 0:
        layers = [Layer.uniform(layer.labels, UNKNOWN) for layer in layers]
    p.put(call.outputs[0], layers)


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def _block(indices: Sequence[Tensor]) -> int:
    """How many dimensions the indexed elements have."""
    return max((1 if _is_mask(index) else index.ndim for index in indices), default=0)


def _without(shape: Sequence[int], *dims: int) -> list[int]:
    return [1 if dim in dims else size for dim, size in enumerate(shape)]


def _zero_of_zeros(count: int) -> Callable[[list[Tensor]], Tensor]:
    """Where the first operands are zero once removed, so is the result, whichever of them an element comes from."""

    def worth(values: list[Tensor]) -> Tensor:
        zero = torch.stack(torch.broadcast_tensors(*[value == 0 for value in values[:count]])).all(0)
        return torch.where(zero, ZERO, UNKNOWN)

    return worth
