"""Data movement along a cut dimension selects from what is left of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fx_oto.analysis.dependencies import Gather
from fx_oto.analysis.labels import compress, laid_along
from fx_oto.core.fx_utils import op_name
from fx_oto.ops.editor import Cut, Editor

__all__ = ["gather", "gather_from_entry", "getitem", "pad", "select", "split"]


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
    """Slices, rolls and shuffles along a cut dimension select from what is left of it."""
    source: Any = node.args[0]
    for dim, kept in edit.cut(source).items():
        positions = _positions(edit, node, source, dim)
        whole = torch.equal(positions, torch.arange(edit.shape(source)[dim]))
        if whole and not (op_name(node) == "narrow" and edit.argument(node, 1, "dim") % len(edit.shape(source)) == dim):
            continue  # it selects along another dimension; a narrow says how long all of this one is
        _select(edit, node, source, dim, _places(positions, kept))
        return


def _positions(edit: Editor, node: Node, source: Node, dim: int) -> Tensor:
    """Index into the source for each index of the result, found by running the node on coordinates."""
    shape = edit.shape(source)
    coordinate = laid_along(torch.arange(shape[dim]), dim, len(shape)).expand(shape)
    args, kwargs = edit.plain((node.args[1:], node.kwargs))
    if node.op == "call_module":
        result = edit.gm.get_submodule(str(node.target))(coordinate)
    elif node.op == "call_method":
        result = getattr(coordinate, str(node.target))(*args, **kwargs)
    else:
        result = node.target(coordinate, *args, **kwargs)  # type: ignore[operator]
    if result.ndim == len(shape) and not result.numel():  # empty along this dimension, or along another one
        return torch.arange(min(shape[dim], result.shape[dim]))
    moved = compress(result)
    if moved.ndim != len(shape) or moved.shape[dim] != moved.numel():
        raise edit.refuse(node, "it moves a cut dimension elsewhere")
    return moved.reshape(-1)


def _select(edit: Editor, node: Node, source: Node, dim: int, places: Tensor) -> None:
    start, length = _run(places)
    if torch.equal(places, torch.arange(start, start + length)):
        edit.replace(node, torch.narrow, source, dim, start, length)
    else:
        edit.replace(node, torch.index_select, source, dim, edit.constant("kept", places, node))


def getitem(edit: Editor, node: Node) -> None:
    """``x[:, 2:8]`` on tensors: the entry of a cut dimension selects from what is left of it."""
    source, entries = node.args[:2]
    assert isinstance(source, Node)
    cut = edit.cut(source)
    if not cut or not isinstance(source.meta["val"], Tensor):
        return
    entries = list(entries) if isinstance(entries, tuple) else [entries]
    _expand_ellipsis(edit, entries, len(edit.shape(source)))
    dim = 0
    for place, entry in enumerate(entries):
        if entry is None:
            continue
        if dim in cut and entry != slice(None):
            source, entries[place] = _take(edit, node, source, dim, entry, cut[dim])
        dim += 1
    node.args = (source, tuple(entries))


def select(edit: Editor, node: Node) -> None:
    """``select``: one index, which is kept, of what is left."""
    source = node.args[0]
    cut = edit.cut(source)
    dim = edit.argument(node, 1, "dim") % len(edit.shape(source))  # type: ignore[arg-type]
    if dim in cut:
        position = edit.argument(node, 2, "index") % edit.shape(source)[dim]  # type: ignore[arg-type]
        edit.set_argument(node, 2, "index", int(_places(torch.tensor([position]), cut[dim])))


def _expand_ellipsis(edit: Editor, entries: list[Any], ndim: int) -> None:
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        count = ndim - sum(entry is not None for entry in entries) + 1
        entries[at : at + 1] = [slice(None)] * count


def _take(edit: Editor, node: Node, source: Node, dim: int, entry: Any, kept: Tensor) -> tuple[Node, Any]:
    positions = torch.arange(edit.shape(source)[dim])[edit.plain(entry)]
    if positions.ndim == 0:
        return source, int(_places(positions[None], kept))
    if positions.ndim != 1:
        raise edit.refuse(node, "it indexes a cut dimension by something other than a number, a slice or a list")
    places = _places(positions, kept)
    start, length = _run(places)
    if torch.equal(places, torch.arange(start, start + length)):
        return source, slice(start, start + length)
    index = edit.constant(f"kept_{dim}", places, node)
    with edit.graph.inserting_before(node):
        return edit.graph.call_function(torch.index_select, (source, dim, index)), slice(None)


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
    entry = edit.nodes[gather.entry]
    kept = edit.cut(entry)[gather.dim]
    places = _places(gather.positions[cut[gather.dim]], kept)
    edit.replace(node, torch.index_select, entry, gather.dim, edit.constant("order", places, node))


def _run(places: Tensor) -> tuple[int, int]:
    """Where places begin, and how many there are: perhaps none."""
    return int(places[:1].sum()), len(places)


def _places(positions: Tensor, kept: Tensor) -> Tensor:
    """Where those of ``positions`` that are kept lie among what is kept (``kept`` is ascending)."""
    return torch.searchsorted(kept, positions[torch.isin(positions, kept)])
