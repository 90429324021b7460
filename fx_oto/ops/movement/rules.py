"""Rules for ops that only move data: the op itself is run on the labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fx_oto.analysis.engine import FIXED, Propagation
from fx_oto.analysis.labels import UNKNOWN, Layer, Region, compress, laid_along, zero_stays
from fx_oto.analysis.result_forms import tensors_in
from fx_oto.analysis.sizes import PLACE
from fx_oto.analysis.tape import OpCall
from fx_oto.core.fx_utils import op_name
from fx_oto.ops.movement.grids import Move, continue_region, is_grid, is_one_line, open_region
from fx_oto.ops.movement.rows import keep_rows, masked_rows

__all__ = [
    "as_complex",
    "as_real",
    "carried",
    "create",
    "expand",
    "follow",
    "identity",
    "index",
    "movement",
    "moves_data",
    "pad",
    "repeat",
    "roll",
    "slide",
]

_Rule = TypeVar("_Rule", bound=Callable[[OpCall, Propagation], None])
# Ops that take no size, so that code around them which slicing cannot rewrite may still call them.
_SIZE_FREE = {"aten::permute", "aten::transpose.int", "aten::t", "aten::unsqueeze", "aten::squeeze.dim", "aten::alias"}


def moves_data(rule: _Rule) -> _Rule:
    """Mark a rule under which labels may form grids: nothing is asked of them until another op reads them."""
    rule.moves_data = True  # type: ignore[attr-defined]
    return rule


@moves_data
def identity(call: OpCall, p: Propagation) -> None:
    """Copies and casts: the same layers."""
    source = call.args[0]
    p.put(call.out, p.layers(source))
    if p.is_weight(source):
        p.put_weight(call.out)
    if region := p.region(source):
        p.put_region(call.out, region)


@moves_data
def movement(call: OpCall, p: Propagation) -> None:
    """Any op that moves elements of one tensor: permute, slice, split, flip, roll, pixel shuffle and more."""
    source = call.args[0]
    p.keep_along(source, _at_varying_places(call, p), PLACE)

    def move(labels: Tensor) -> list[Tensor]:
        args = (labels.expand(source.shape), *call.args[1:])
        return [compress(moved) for moved in tensors_in([call.func(*args, **call.kwargs)])]

    follow(call, p, source, move)
    if call.name == "diagonal":  # what stands in row i and column i goes with both, or not at all
        lines = [layer.labels for layer in p.layers(call.out) if call.out.ndim - 1 in layer.dims]
        for labels in lines[1:]:
            p.unite(lines[0], labels)


def _at_varying_places(call: OpCall, p: Propagation) -> set[int]:
    """The dimensions of the first argument along which inputs of other sizes move other elements, or further."""
    source = call.args[0]
    ndim = source.ndim
    if call.name == "diagonal":  # as long as the shorter of two
        both = {call.arg("dim1") % ndim, call.arg("dim2") % ndim}
        return set() if all(p.is_fixed(source, dim) for dim in both) else both
    if not p.sizes.are_read or p.indexes or call.func.name() in _SIZE_FREE:
        return set()
    if call.name == "repeat":
        lead = len(call.args[1]) - ndim
        return {i - lead for i, varies in enumerate(p.sizes.vary_in(call, call.args[1])) if i >= lead and varies}
    if call.name == "roll":
        dims = call.arg("dims")
        shifts = p.sizes.vary_in(call, call.arg("shifts"))
        return {dim % ndim for dim, varies in zip(dims, shifts, strict=False) if varies}
    names = [arg.name for arg in call.func._schema.arguments[1:]]
    along = next((name for name in names if name in ("dim", "dimension")), None)
    numbers = tree_leaves([call.arg(name) for name in names if name != along])
    if not any(p.sizes.may_vary(call, n) for n in numbers):
        return set()
    return set(range(ndim)) if along is None else {call.arg(along) % ndim}


@moves_data
def roll(call: OpCall, p: Propagation) -> None:
    """``roll``: along a tracked dimension slicing can select, but not together with another one."""
    source, dims = call.args[0], [dim % call.out.ndim for dim in call.arg("dims")]
    if len(dims) != 1:
        for layer in p.layers(source):
            if not dims or set(dims).intersection(layer.dims):
                p.freeze(layer.labels, "it is rolled together with another dimension")
    movement(call, p)


def follow(call: OpCall, p: Propagation, source: Tensor, move: Move) -> None:
    """Labels go where ``move`` brings them; where a dimension is split or merged, a movement region begins."""
    layers: Sequence[Layer] = p.layers(source)
    if p.is_weight(source):
        for out in call.outputs:
            p.put_weight(out)
    if not layers:
        return
    if any(out.dtype != source.dtype for out in call.outputs):
        p.freeze_value(source, "its bits are read as another type")
        return
    if not p.rewritable and call.func.name() not in _SIZE_FREE and not _stays_as_it_is(call, p, source):
        p.freeze_value(source, "it is reshaped inside an opaque function, into which slicing does not see")
    region, results = _in_region(p, source, layers, move, len(call.outputs))
    moved = [carried(layer, move, len(call.outputs)) for layer in region.coordinates] if region else []
    for i, out in enumerate(call.outputs):
        p.put(out, _of_their_own(p, [result[i] for result in results]))
        if region is not None:
            now = replace(region, coordinates=tuple(result[i] for result in moved))
            continue_region(p, source, out, now)


def _in_region(
    p: Propagation, source: Tensor, layers: Sequence[Layer], move: Move, count: int
) -> tuple[Region | None, list[list[Layer]]]:
    """The region that a movement belongs to, perhaps one that begins here, and where it brings labels."""
    # (N, 16) becomes (N, 4, 4) by a view: what was a line of 16 labels is a grid of 4 by 4, of which no single label
    # can go without leaving a hole. But where it becomes (N, 16) again, in another order, the ops between merely
    # shuffle, and any label can go: a region begins where the grid does, and slicing replaces it by one selection.
    # A grid that another op reads, such as attention, loses rows or columns instead.
    region = p.region(source)
    results = [carried(layer, move, count) for layer in layers]
    split = [place for place, layer in enumerate(layers) if len(layer.dims) == 1 and is_grid(results[place])]
    if region is not None or not split:
        return region, results
    if is_one_line(layers[split[0]], results[split[0]], move):
        region, layers = open_region(p, source, layers, split[0])
        return region, [carried(layer, move, count) for layer in layers]
    for grid in (layer for place in split for layer in results[place]):
        p.rectangle(grid.labels)
    return None, results


def _stays_as_it_is(call: OpCall, p: Propagation, source: Tensor) -> bool:
    """Whether a function of the user's reshapes to the form that is there, as by ``x.view_as(x)``: tried on less."""
    node, dims = p.fx_node, {dim for layer in p.layers(source) for dim in layer.dims}
    if source.shape != call.out.shape or node.op != "call_function" or node.kwargs:
        return False
    left = [size - (dim in dims) for dim, size in enumerate(source.shape)]
    given = [getattr(arg, "meta", {}).get("val", arg) for arg in node.args]
    if any(isinstance(one, Tensor) and one.ndim and one.shape != source.shape for one in given):
        return False
    try:
        less = [
            one.new_empty(left if one.ndim else (), device="meta") if isinstance(one, Tensor) else one for one in given
        ]
        result = node.target(*less)  # type: ignore[operator]
    except Exception:  # code that spells sizes out
        return False
    return isinstance(result, Tensor) and list(result.shape) == left


def _of_size(tensor: Tensor, size: list[int]) -> Tensor:
    return tensor.new_empty(size if tensor.ndim else (), device="meta")


def _of_their_own(p: Propagation, layers: Sequence[Layer]) -> list[Layer]:
    """A created dimension, such as the repeats of a head, stays whole once it is merged into a tracked one."""
    merged = [
        layer
        for layer in layers
        if p.is_made_up(layer)
        and any(set(layer.dims) & set(other.dims) and not p.is_made_up(other) for other in layers)
    ]
    for layer in merged:
        p.freeze(layer.labels, FIXED)
    return [layer for layer in layers if layer not in merged]


def carried(layer: Layer, move: Move, count: int) -> list[Layer]:
    """A layer of each result of a movement, of which there are ``count``."""
    labels = move(layer.labels)
    if layer.removed.numel() > 1:
        return [Layer(*pair) for pair in zip(labels, move(layer.removed), strict=True)]
    return [Layer(moved, layer.removed.reshape((1,) * moved.ndim)) for moved in labels[:count]]


# What expands inside, to a size that no argument says, so that slicing cannot rewrite it.
_SPREADING = {"meshgrid", "broadcast_tensors", "repeat_interleave"}


def expand(call: OpCall, p: Propagation) -> None:
    """``expand``: every dimension it creates gets atoms of its own, to follow what it is combined with."""
    source, out = call.args[0], call.out
    lead = out.ndim - source.ndim
    old = [1] * lead + list(source.shape)
    if p.is_weight(source):
        p.put_weight(out)
    layers = [layer.map(lambda t: t[(None,) * lead]) for layer in p.layers(source)]
    created = [d for d in range(out.ndim) if old[d] == 1]
    if op_name(p.fx_node) in _SPREADING:
        created = []
    p.put(out, layers + _fresh(p, out, created, UNKNOWN))


@moves_data
def repeat(call: OpCall, p: Propagation) -> None:
    """``repeat``: a dimension of one element becomes one that is created, as by ``expand``."""
    source, out = call.args[0], call.out
    movement(call, p)
    if op_name(p.fx_node) in ("repeat", "tile"):
        lead = out.ndim - source.ndim
        created = [dim for dim in range(out.ndim) if dim < lead or source.size(dim - lead) == 1]
        p.put(out, [*p.layers(out), *_fresh(p, out, created, UNKNOWN)])


# Memory that nobody has written yet may be taken for zero: code that reads it may find anything.
_CREATED = {**dict.fromkeys(("zeros", "new_zeros", "empty", "new_empty"), 0.0), "ones": 1.0, "new_ones": 1.0}


_COUNTING = ("arange", "linspace", "logspace", "eye")


def create(call: OpCall, p: Propagation) -> None:
    """Factories (``zeros``, ``arange``, ``randn`` …): fresh atoms for every dimension.

    What a function counts by for itself, as ``one_hot`` numbers its classes, is as long as it is.
    """
    if call.name in _COUNTING and op_name(p.fx_node) != call.name:
        return
    worth = _CREATED.get(call.name)
    if call.name in ("full", "new_full") and isinstance(value := call.arg("fill_value"), int | float):
        worth = None if p.sizes.may_vary(call, value) else float(value)
    removed = UNKNOWN if worth is None else torch.tensor(worth, dtype=torch.float64)
    for out in call.outputs:
        p.put(out, _fresh(p, out, range(out.ndim), removed))


def _fresh(p: Propagation, out: Tensor, dims: Sequence[int], removed: Tensor) -> list[Layer]:
    if not p.rewritable:
        return []
    lengths = {dim: out.size(dim) for dim in dims if out.size(dim) > 1}
    return [Layer.uniform(laid_along(p.made_up(n), dim, out.ndim), removed) for dim, n in lengths.items()]


def pad(call: OpCall, p: Propagation) -> None:
    """Constant padding: a padded tracked dimension gets fresh atoms for its new indices."""
    source, amounts = call.args[0], call.args[1]
    value = float(call.arg("value") or 0.0)
    if p.sizes.are_read_singly and p.sizes.may_vary(call, call.arg("value")):
        value = math.nan
    around = {source.ndim - 1 - i: (amounts[2 * i], amounts[2 * i + 1]) for i in range(len(amounts) // 2)}
    vary = p.sizes.vary_in(call, amounts)
    varying = {source.ndim - 1 - i for i in range(len(amounts) // 2) if vary[2 * i] or vary[2 * i + 1]}
    if op_name(p.fx_node).startswith("fft_"):  # to a length that is asked for, along the dimensions of the transform
        varying = {dim for dim in varying if any(around[dim])}
    p.keep_along(source, varying, PLACE)
    around = {dim: pair for dim, pair in around.items() if any(pair) or dim in varying}
    if p.is_weight(source) and value == 0:
        p.put_weight(call.out)
    layers = []
    for layer in p.layers(source):
        removed = torch.where(layer.removed == value, layer.removed, UNKNOWN) if around else layer.removed
        tracked = [dim for dim in layer.dims if dim in around]
        if tracked and (len(layer.dims) > 1 or not p.rewritable or min(around[tracked[0]]) < 0):
            p.freeze(layer.labels, "it is padded along a tracked dimension")
        elif tracked:
            layers.append(_padded(layer, tracked[0], around[tracked[0]], value, p))
        else:
            layers.append(Layer(layer.labels, removed))
    p.put(call.out, layers)


def _padded(layer: Layer, dim: int, around: tuple[int, int], value: float, p: Propagation) -> Layer:
    """A layer of ``(1, 8, 1, 1)``, padded by 1 and 2 channels, is one of ``(1, 11, 1, 1)``, of which 3 are new."""
    amounts = [0, 0] * (layer.labels.ndim - 1 - dim) + list(around)
    labels = torch.nn.functional.pad(layer.labels, amounts, value=-1)
    labels[labels < 0] = p.atoms.fresh(sum(around))
    removed = torch.nn.functional.pad(layer.removed.expand(layer.labels.shape), amounts, value=value)
    return Layer(labels, compress(removed))


@moves_data
def index(call: OpCall, p: Propagation) -> None:
    """Indexing by tensors: along the dimensions that they index, what is taken must be the same in every call."""
    source = call.args[0]
    real = [p.constant(t) for t in call.inputs[1:]]
    if rows := masked_rows(call):
        keep_rows(call, p, rows)
    elif len(real) > 1 or any(content is None or (_is_mask(content) and content.ndim > 1) for content in real):
        read = _indexed(call)
        if any(not read.isdisjoint(layer.dims) for layer in p.layers(source)):
            p.keep_along(source, read, "it is indexed by several tensors, a mask of several dimensions, or by data")
    for tensor in () if rows else call.inputs[1:]:
        p.freeze_value(tensor, "it tells which elements are taken")
    constants = iter(real)

    def stand_in(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        content = next(constants)
        return _first_ones(call, leaf, math.prod(rows)) if content is None else content.cpu()

    rest = tree_map(stand_in, call.args[1:])

    def move(labels: Tensor) -> list[Tensor]:
        return [compress(call.func(labels.expand(source.shape), *rest))]

    follow(call, p, source, move)


def _indexed(call: OpCall) -> set[int]:
    """The dimensions to which tensors of indices apply; a mask of two dimensions applies to two."""
    if call.name == "index_select":
        return {call.args[1] % max(call.args[0].ndim, 1)}
    found, dim = set[int](), 0
    for which in call.args[1]:
        count = which.ndim if which is not None and _is_mask(which) else 1
        found.update(range(dim, dim + count) if which is not None else ())
        dim += count
    return found


def _first_ones(call: OpCall, index: Tensor, row: int) -> Tensor:
    """Indices in the place of some that depend on data, at least one, so that labels stay where nothing is taken.

    Masks take whole rows of so many elements.
    """
    if not _is_mask(index):
        return torch.zeros([max(size, 1) for size in index.shape], dtype=torch.int64)
    taken = index.numel() * call.out.numel() // max(call.args[0].numel(), 1)
    mask: Tensor = torch.arange(index.numel()) < max(taken - taken % row, row)
    return mask.view(index.shape)


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def as_complex(call: OpCall, p: Propagation) -> None:
    """``view_as_complex``: the real and the imaginary part go together."""
    last, layers = call.out.ndim, []
    for layer in p.layers(call.args[0]):
        if together := p.narrow_to(layer, range(last), "it is one part of a complex number"):
            layers.append(Layer(together.labels.squeeze(last), zero_stays(together.removed).squeeze(last)))
    p.put(call.out, layers)


def as_real(call: OpCall, p: Propagation) -> None:
    """``view_as_real``: both parts are what the number was."""
    layers = p.layers(call.args[0])
    p.put(call.out, [Layer(one.labels.unsqueeze(-1), zero_stays(one.removed).unsqueeze(-1)) for one in layers])


def negate_parts(call: OpCall, p: Propagation) -> None:
    """``conj``, of which torch makes a view: zero stays zero."""
    p.put(call.out, [Layer(layer.labels, zero_stays(layer.removed)) for layer in p.layers(call.args[0])])


@moves_data
def slide(call: OpCall, p: Propagation) -> None:
    """``Tensor.unfold``: windows along one dimension, whose size and step slicing does not change."""
    dim = call.arg("dimension") % max(call.args[0].ndim, 1)
    size, step = call.arg("size"), call.arg("step")
    still = (size, step) == (1, 1) and not p.sizes.may_vary(call, 1)
    for layer in p.layers(call.args[0]):
        if dim in layer.dims and not still:
            p.freeze(layer.labels, "a window slides along it")
    movement(call, p)
