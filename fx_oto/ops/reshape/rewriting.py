"""Sizes that code reads keep their original value; sizes that a node uses are rewritten from the labels."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fx_oto.core.fx_utils import op_name, source_line
from fx_oto.ops.editor import Editor
from fx_oto.ops.reshape.mixing import entries_of, spelled_out

__all__ = [
    "broadcast",
    "check_sizes",
    "created",
    "read_count",
    "read_size",
    "read_strides",
    "repeated",
    "times_each",
    "times_ratio",
    "use_sizes",
]

# What these create is the same along a dimension.
_FILLED = ("zeros", "ones", "full", "empty")
_ALIKE = (*_FILLED, *(f"new_{name}" for name in _FILLED), "expand", "expand_as", "broadcast_to")


def read_size(edit: Editor, node: Node) -> None:
    """``x.shape``, ``x.size()``, ``x.size(1)``: of a cut dimension, the size that it would have."""
    source = node.args[0]
    fixed = edit.cut_dims(source)
    if not fixed or not isinstance(source, Node):
        return
    dim = edit.argument(node, 1, "dim") if op_name(node) != "getattr" else None
    wanted = range(len(edit.shape(source))) if dim is None else [dim % len(edit.shape(source))]
    with edit.graph.inserting_before(node):
        sizes = tuple(_size(edit, source, d, d in fixed) for d in wanted)
    if dim is None:
        _spread_sizes(edit, node, sizes)
    else:
        edit.substitute(node, sizes[0])


def _size(edit: Editor, source: Node, dim: int, fixed: bool) -> Any:
    """The size that was traced, or a node that reads it from what is left in the graph."""
    # Code computes with sizes, such as x.shape[1] // 2, and what is computed is rewritten where it is used, as if sizes
    # were the full ones. So of x (N, 16), cut to (N, 12), x.shape[1] is the number 16. Where channels were merged with
    # the batch, (N · 16,) cut to (N · 12,), it is what is left, times 16 / 12.
    full = edit.shape(source)[dim]
    while edit.is_lost(source):
        source = source.args[0]  # type: ignore[assignment]
    if len(edit.shape(source)) <= dim or edit.shape(source)[dim] != full:
        return full
    cut = edit.cut(source)
    if fixed and (dim not in cut or not _repeats(edit, source, dim)):
        return full
    size = edit.graph.call_method("size", (source, dim))
    size.meta["val"] = full
    if fixed:
        size = edit.graph.call_function(times_ratio, (size, full, len(cut[dim])))
        size.meta["val"] = full
    return size


def _repeats(edit: Editor, source: Node, dim: int) -> bool:
    """Return whether a dimension is the product of what is cut and of something else, such as the batch."""
    return any(dim in layer.dims and len(layer.labels.unique()) < layer.labels.numel() for layer in edit.layers(source))


def read_count(edit: Editor, node: Node) -> None:
    """``x.numel()``: the original count, which may grow with the batch."""
    source = node.args[0]
    cut = edit.cut(source)
    if cut and isinstance(source, Node):
        full = math.prod(edit.shape(source)[dim] for dim in cut)
        count = edit.append(node, times_ratio, full, math.prod(map(len, cut.values())))
        count.meta["val"] = node.meta["val"]


def read_strides(edit: Editor, node: Node) -> None:
    """``x.stride()``, ``x.stride(0)``: what they would be, with all elements of the cut dimensions in between."""
    source = node.args[0]
    cut = edit.cut(source)
    if not cut or not isinstance(source, Node):
        return
    strides, shape = source.meta["val"].stride(), edit.shape(source)
    inside = [[dim for dim in cut if strides[dim] < stride] for stride in strides]
    ratios = [(math.prod(shape[dim] for dim in dims), math.prod(len(cut[dim]) for dim in dims)) for dims in inside]
    dim = edit.argument(node, 1, "dim")
    value = node.meta["val"]
    read = edit.append(node, times_ratio, *ratios[dim]) if dim is not None else edit.append(node, times_each, ratios)
    read.meta["val"] = value


def _spread_sizes(edit: Editor, node: Node, sizes: Sequence[Any]) -> None:
    for user in list(node.users):
        if op_name(user) == "numel":
            user.op, user.target, user.args = "call_function", math.prod, (tuple(sizes),)
        if op_name(user) == "getitem":
            part = sizes[user.args[1]]  # type: ignore[index]
            if isinstance(part, tuple):
                _spread_sizes(edit, user, part)
            else:
                edit.substitute(user, part)
    edit.substitute(node, tuple(sizes))


def use_sizes(edit: Editor, node: Node) -> None:
    """``view``, ``reshape``, ``expand`` and ``unflatten`` with literal or computed sizes, or those of a tensor."""
    source = node.args[0]
    if isinstance(source, Node) and (edit.cut(node) or edit.cut(source)):
        sizes = [_listed(edit, node, entry) for entry in entries_of(node)]
        if op_name(node).endswith("_as"):
            node = edit.replace(node, getattr(Tensor, op_name(node).removesuffix("_as")), source)
        _use_given(edit, node, source, sizes)


def _use_given(edit: Editor, node: Node, source: Node, sizes: list[Any]) -> None:
    cut = edit.cut(node)
    created = _created(edit, node, source) if op_name(node).startswith(("expand", "broadcast")) else set()
    lead: tuple[Any, ...] = (source,)
    if op_name(node) == "unflatten":
        lead = (source, edit.argument(node, 1, "dim") % len(edit.shape(source)))
    offset = 0 if len(lead) == 1 else lead[1]
    for dim, index in cut.items():
        place = dim - offset
        if dim not in created and 0 <= place < len(sizes):
            sizes[place] = _resized(edit, node, sizes[place], edit.shape(node)[dim], len(index))
    node.args = (*lead, tuple(sizes))
    node.kwargs = {}
    _select_created(edit, node, created & set(cut))


def _listed(edit: Editor, node: Node, entry: Any) -> Any:
    """One of the sizes that a node gives; of another tensor's, or of several, a node that reads it."""
    if not isinstance(entry, tuple):
        return entry
    several, dim = entry
    with edit.graph.inserting_before(node):
        if isinstance(several.meta["val"], Tensor):
            return _size(edit, several, dim, dim in edit.cut_dims(several))
        size = edit.graph.call_function(operator.getitem, entry)
    size.meta["val"] = several.meta["val"][dim]
    return size


def _resized(edit: Editor, node: Node, size: Any, before: int, after: int) -> Any:
    if isinstance(size, Node):  # computed, and so perhaps a multiple of the batch size
        with edit.graph.inserting_before(node):
            scaled = edit.graph.call_function(times_ratio, (size, after, before))
        scaled.meta["val"] = after
        return scaled
    return -1 if size == -1 else after


def _created(edit: Editor, node: Node, source: Node) -> set[int]:
    old, new = edit.shape(source), edit.shape(node)
    lead = len(new) - len(old)
    return {d for d in range(len(new)) if new[d] > 1 and (d < lead or old[d - lead] == 1)}


def broadcast(edit: Editor, node: Node) -> None:
    """``broadcast_tensors``: each alone, for of those that nothing combines different channels may be left."""
    given: Any = node.args[0] if isinstance(node.args[0], tuple | list) else node.args
    if not any(map(edit.cut_dims, given)):
        return
    for user in list(node.users):
        place = user.args[1] if op_name(user) == "getitem" else None
        if not isinstance(place, int):
            raise edit.refuse(node, f"it returns several tensors, which {user.name!r} reads at once")
        with edit.graph.inserting_before(user):
            shape = user.meta["val"].shape
            sizes = tuple(
                _broadcast_size(edit, given[place], given, dim - len(shape), n) for dim, n in enumerate(shape)
            )
            edit.put(edit.graph.call_method("expand", (given[place], sizes)), user)
    edit.substitute(node, ())


def _broadcast_size(edit: Editor, source: Node, others: Sequence[Node], dim: int, size: int) -> Any:
    """How long a dimension, counted from the end, becomes beside others; -1 where it stays as it is."""
    alike = [one for one in (source, *others) if len(edit.shape(one)) >= -dim and edit.shape(one)[dim] == size]
    return -1 if alike[0] is source else _size(edit, alike[0], dim + len(edit.shape(alike[0])), False)


def check_sizes(edit: Editor, node: Node) -> None:
    """Let the graph check that a reshape keeps channels together.

    What is behind them must be as large as in the capture; before channels that are last, what code spells out, and
    they must be last still.
    """
    source: Any = node.args[0]
    shape, kept = edit.shape(source), edit.cut(source)
    cut, where = min(kept, default=len(shape)), source_line(node)
    is_last = cut == len(shape) - 1
    spelled = [cut - 1] if is_last and cut and shape[cut - 1] in spelled_out(node, 2) else range(cut + 1, len(shape))
    for dim in spelled:
        text = f"dimension {dim} of {source.name} was {shape[dim]}, which the code at {where} spells out"
        with edit.graph.inserting_before(node):
            _check(edit, edit.graph.call_method("size", (source, dim)), shape[dim], shape[dim], text)
    if is_last:
        text = f"the last dimension of {source.name} stays the last in the reshape at {where}"
        with edit.graph.inserting_before(node.next):
            before, after = (edit.graph.call_method("size", (one, -1)) for one in (source, node))
            _check(edit, before, after, len(kept[cut]), text)


def _check(edit: Editor, size: Node, other: Node | int, value: int, text: str) -> None:
    """Write a check that a size equals another, both being ``value`` here, where the graph is being written."""
    same = edit.graph.call_function(operator.eq, (size, other))
    text = f"the graph was captured where {text}; trace it on such inputs"
    edit.graph.call_function(torch._assert, (same, text)).meta["val"] = None
    same.meta["val"] = True
    for one in same.all_input_nodes:
        one.meta["val"] = value


def created(edit: Editor, node: Node) -> None:
    """Factories, such as ``zeros`` and ``new_zeros``: every cut dimension is of their making."""
    _select_created(edit, node, set(edit.cut(node)))


def repeated(edit: Editor, node: Node) -> None:
    """``repeat``: every cut dimension that had one element."""
    _select_created(edit, node, _created(edit, node, node.args[0]) & set(edit.cut(node)))  # type: ignore[arg-type]


def _select_created(edit: Editor, node: Node, dims: set[int]) -> None:
    """Dimensions that a node creates are cut after it; one that is computed may be that of channels beside examples."""
    value, cut = node, edit.cut(node)
    for dim in sorted(dims):
        if op_name(node) in _ALIKE and any(isinstance(one.meta["val"], int) for one in node.all_input_nodes):
            value = _first_of(edit, value, dim, len(cut[dim]))
        else:
            index = edit.constant(f"kept_{dim}", cut[dim], value.next, node)
            value = edit.append(value, torch.index_select, dim, index)
        edit.adopt(value, node)


def _first_of(edit: Editor, value: Node, dim: int, after: int) -> Node:
    """As large a share of a dimension as is left of it, where its parts are alike."""
    before = edit.shape(value)[dim]
    first = edit.append(value, torch.narrow, dim, 0, after)
    with edit.graph.inserting_before(first):
        size = edit.graph.call_method("size", (value, dim))
        left = edit.graph.call_function(times_ratio, (size, after, before))
    size.meta["val"], left.meta["val"] = before, after
    first.args = (value, dim, 0, left)
    return first


def times_ratio(size: int, after: int, before: int) -> int:
    """A computed size or count, scaled."""
    return size * after // before


def times_each(sizes: tuple[int, ...], ratios: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Computed strides, each scaled."""
    return tuple(times_ratio(size, *ratio) for size, ratio in zip(sizes, ratios, strict=True))
