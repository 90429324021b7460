"""Data movement along a cut dimension selects from what is left of it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fx_oto.analysis.dependencies import Gather
from fx_oto.analysis.labels import compress, laid_along
from fx_oto.analysis.sizes import consumed
from fx_oto.core.fx_utils import op_name
from fx_oto.nn.modes import called
from fx_oto.ops.editor import Cut, Editor

__all__ = ["entries_of", "gather", "gather_from_entry", "getitem", "pad", "setitem", "split"]


def split(edit: Editor, node: Node) -> None:
    """``split``, ``chunk``, ``hsplit`` … along a cut dimension become a split at the places that are left."""
    source, lengths = node.args[0], [part.shape for part in node.meta["val"]]
    assert isinstance(source, Node)
    dim, cut = _split_dim(edit, node, source), edit.cut(source)
    if dim not in cut:
        return
    lengths, full = [shape[dim] for shape in lengths], edit.shape(source)[dim]
    if sum(lengths) == full:
        ends = torch.searchsorted(cut[dim], torch.tensor(lengths).cumsum(0))
        edit.replace(node, torch.split, source, ends.diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist(), dim)
        return
    given = [*node.args[1:2], *(value for key, value in node.kwargs.items() if key != "dim")][0]
    places = torch.as_tensor(edit.plain(given))  # in any order: parts may overlap
    places = torch.where(places < 0, places + full, places).clamp(0, full)
    edit.replace(node, torch.tensor_split, source, torch.searchsorted(cut[dim], places).tolist(), dim)


def _split_dim(edit: Editor, node: Node, source: Node) -> int:
    ndim = len(edit.shape(source))
    by_name = {"hsplit": min(1, ndim - 1), "vsplit": 0, "dsplit": 2}
    dim = by_name[op_name(node)] if op_name(node) in by_name else edit.argument(node, 2, "dim", 0)
    return int(dim) % ndim


def gather(edit: Editor, node: Node) -> None:
    """Slices, rolls, indices and shuffles along a cut dimension select from what is left of it."""
    source: Any = node.args[0]
    shape = edit.shape(source)
    for dim in edit.cut(source):
        entry = _entry(edit, node, shape, dim)
        # What leaves a dimension as it is may still count its elements, such as x.narrow(1, 0, 8) where x is (N, 8).
        if entry == slice(None) and _takes_some(edit, node, shape, dim):
            if any(_takes_some(edit, node, shape, one) for one in range(len(shape)) if one != dim):
                raise edit.refuse(node, "it counts what it moves along a cut dimension, and along another")
            entry = slice(0, shape[dim])
        if entry != slice(None):
            _select(edit, node, source, [slice(None)] * dim + [entry])
            break


def _takes_some(edit: Editor, node: Node, shape: Sequence[int], dim: int) -> bool:
    """Return whether a node would not leave a dimension as it is that is longer."""
    longer = [size + (at == dim) for at, size in enumerate(shape)]
    return bool(_entry(edit, node, longer, dim) != slice(None))


def _entry(edit: Editor, node: Node, shape: Sequence[int], dim: int) -> Any:
    """Return what a node takes along a dimension, as ``x[…]`` would say it; ``slice(None)`` for all of it, in order.

    Found by a run on coordinates: of ``(N, 8)``, ``x.roll(1, 1)`` returns 7, 0, 1, …, 6 and ``x.select(1, 3)`` only 3.
    """
    line = torch.arange(shape[dim])
    result = edit.run(node, laid_along(line, dim, len(shape)).expand([max(size, 1) for size in shape]))
    moved = compress(result)
    positions = moved.reshape(-1)
    if result.ndim < len(shape) and moved.numel() == 1:
        return int(moved)
    if result.ndim == len(shape) and len(positions) == 1:  # one index, perhaps many times
        positions = positions.expand(result.shape[dim])
    if torch.equal(positions, line) or (not len(positions) and result.shape[dim]):  # nothing of another dimension
        return slice(None)
    if result.ndim != len(shape) or moved.shape[dim] != moved.numel():
        raise edit.refuse(node, "it moves a cut dimension elsewhere")
    if not _shares_memory(result, line) or not len(positions):
        return positions
    return slice(int(positions[0]), int(positions[-1]) + 1, int(positions.diff()[:1].sum()) or 1)


def getitem(edit: Editor, node: Node) -> None:
    """``x[:, 2:8]`` on tensors: the entry of a cut dimension selects from what is left of it."""
    source: Any = node.args[0]
    if edit.cut(source) and isinstance(source.meta["val"], Tensor):
        _select(edit, node, source, entries_of(node.args[1], len(edit.shape(source))))


def setitem(edit: Editor, node: Node) -> None:
    """``x[:, 2:8] = y``: what is left of ``y`` is written at the places that are left of those."""
    name, (source, given, *_) = called(node)
    if name != "setitem":  # index_put, which is given None for whole dimensions
        given = tuple(slice(None) if one is None else one for one in given)
    entries = entries_of(given, len(edit.shape(source)))
    left = _left_of(edit, node, source, entries)
    if left == entries:
        return
    if sum(isinstance(one, Tensor | list) or _is_tensor(one) for one in left) > 1:
        raise edit.refuse(node, "it writes at places of a cut dimension together with those of another")
    constants = [
        edit.constant(f"kept_{at}", one, node, node) if isinstance(one, Tensor) else one for at, one in enumerate(left)
    ]
    if name != "setitem":
        constants = [None if one == slice(None) else one for one in constants]
    node.update_arg(node.args.index(source) + 1, tuple(constants))


def _is_tensor(entry: Any) -> bool:
    return isinstance(entry, Node) and isinstance(entry.meta["val"], Tensor)


def entries_of(given: Any, ndim: int) -> list[Any]:
    """What stands between brackets, with an entry for each of ``ndim`` dimensions that an ellipsis stands for."""
    entries = list(given) if isinstance(given, tuple) else [given]
    at = next((at for at, entry in enumerate(entries) if entry is Ellipsis), None)
    if at is not None:
        count = ndim - sum(map(consumed, entries[:at] + entries[at + 1 :]))
        entries[at : at + 1] = [slice(None)] * count
    return entries


def _select(edit: Editor, node: Node, source: Node, entries: Sequence[Any]) -> None:
    """Put ``source[entries]``, of what is left of the source, in the place of a node.

    Of ``(N, 8)``, of which channels 1, 2, 5, 7 are kept, ``x[:, 2:6]`` takes 2 and 5, which lie at 1 and 2 now:
    ``x[:, 1:3]``. ``x[:, [5, 1]]`` takes 5 and 1, which lie at 2 and 0, and are selected one by one.
    """
    read, left, dim = source, _left_of(edit, node, source, entries), 0
    for at, entry in enumerate(entries):
        places = left[at]
        if isinstance(places, Tensor):
            left[at] = edit.constant(f"kept_{dim}", places, node, node)
            if places.ndim == 1:
                with edit.graph.inserting_before(node):
                    read = edit.graph.call_function(torch.index_select, (read, dim, left[at]))
                left[at] = slice(None)
        dim += consumed(entry)
    if read is not source and all(entry == slice(None) for entry in left):
        edit.put(read, node)
    elif left != list(entries):
        edit.replace(node, operator.getitem, read, tuple(left))


def _left_of(edit: Editor, node: Node, source: Node, entries: Sequence[Any]) -> list[Any]:
    """The entries of an index, those of cut dimensions for what is left of the source."""
    cut, left, dim = edit.cut(source), list(entries), 0
    for at, entry in enumerate(entries):
        cut_too = isinstance(entry, Node) and edit.cut(entry)  # a mask
        if dim in cut and entry is not None and entry != slice(None) and not cut_too:
            line = torch.arange(edit.shape(source)[dim])
            positions = line[edit.plain(entry),]  # a tuple: lists in lists are one index
            left[at] = _left(positions, cut[dim], _shares_memory(positions, line))
        dim += consumed(entry)
    return left


def _left(positions: Tensor, kept: Tensor, is_view: bool) -> Any:
    """Where those of some positions that are kept lie: as a number, as a slice, or one by one.

    A view stays one, and a copy a copy: code may write into it, or rely on how it lies in memory.
    """
    stay = torch.isin(positions, kept)
    places = torch.searchsorted(kept, positions[stay])  # kept is in order
    if positions.ndim == 0:
        return int(places)
    if positions.ndim > 1:  # of which a rectangle is left
        return places.view([int(stay.movedim(dim, 0).flatten(1).any(1).sum()) for dim in range(stay.ndim)])
    start, length = int(places[:1].sum()), len(places)
    run = is_view and torch.equal(places, torch.arange(start, start + length))
    return slice(start, start + length) if run else places


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def pad(edit: Editor, node: Node) -> None:
    """Constant padding of a cut dimension: as many on each side as are left of the padding."""
    source, amounts = node.args[0], list(edit.argument(node, 1, "pad"))
    cut = edit.cut(node)
    ndim = len(edit.shape(node))
    for dim, index in cut.items():
        place = 2 * (ndim - 1 - dim)
        if place < len(amounts) and any(amounts[place : place + 2]):
            size = edit.shape(source)[dim]  # type: ignore[arg-type]
            before = edit.plain(amounts[place])
            amounts[place] = int((index < before).sum())
            amounts[place + 1] = int((index >= before + size).sum())
    edit.set_argument(node, 1, "pad", amounts)


def gather_from_entry(edit: Editor, node: Node, gather: Gather, cut: Cut) -> None:
    """The end of a chain of movement through a grid: select from where the chain began."""
    positions = gather.positions[cut[gather.dim]]
    _select(edit, node, edit.nodes[gather.entry], [slice(None)] * gather.dim + [positions])
