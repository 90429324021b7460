"""Decides whether a reshape moves each channel to the same place on inputs of other sizes.

Sizes are products of numbers and of symbols, one for each size that inputs of other sizes change. Where
``(B, 16, H, W)`` becomes ``(-1, 512)``, rows end after 512 elements and channels after ``H W`` of them: on other
images another mix of channels is in a row. Where it becomes ``(B, -1)``, each row ends with the last channel.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import Layer
from fx_oto.analysis.result_forms import is_pointwise
from fx_oto.analysis.tape import OpCall
from fx_oto.core.fx_utils import op_name
from fx_oto.ops.reshape.symbols import Size, product, steps_of

__all__ = ["cut_moves", "entries_of", "spelled_out"]

_GIVEN = {"view", "reshape", "_unsafe_view", "view_as", "reshape_as", "unflatten"}
_TURNING = ("transpose", "permute", "flatten", "movedim", "moveaxis", "swapaxes", "swapdims", "squeeze", "unsqueeze")
_EXPANDING = {"expand", "broadcast_to"}
_SPREADING = {*_EXPANDING, "repeat", "tile", "repeat_interleave"}
_JOINING = {"cat", "concat", "concatenate"}
_REPEATING = {"repeat", "tile", *_JOINING}
_SLIDING = ("conv", "pool", "getitem", "slice", "narrow", "select", "view", "reshape", "unflatten", "unfold")


def cut_moves(call: OpCall, p: Propagation, layer: Layer) -> bool | None:
    """Return whether a reshape cuts what varies along a layer at places that depend on the sizes of inputs.

    None if code computes its sizes in a way that does not tell, such as ``T // 2``.
    """
    node, source = p.fx_node, call.args[0]
    if op_name(node) not in _GIVEN or not _is_all(node, call):
        return False
    if all(isinstance(size, int) and size >= 0 for size in entries_of(node)):  # torch refuses more elements, or fewer
        return False
    old = [_parts(p, _read_by(node), source, dim) for dim in range(source.ndim)]
    sizes = [product(parts) for parts in old]
    known = {name for size in sizes for name in size.powers}
    new = _given(p, node, sizes, known)
    if new is None:
        return None
    # Torch refuses inputs for which those are others that are on one side alone. And of (B, 16, H / 2, 2, W), which
    # becomes (B, 16, H, W), H is even, for each size is a whole number.
    pinned = list((product(sizes) / product(new)).powers)
    steps = steps_of([one.pinned(pinned) for one in sizes])
    old = [[one.pinned(pinned).in_steps(steps) for one in parts] for parts in old]
    sizes, new = ([one.pinned(pinned).in_steps(steps) for one in some] for some in (sizes, new))
    # (B, 16, H, W) to (B, -1): B is the same on both sides, so what is left is (16, H, W) to (-1): its one cut, after
    # all of them, falls where the channels end.
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(sizes[:-1], new[:-1], strict=False))
    first = len(list(alike))  # within what comes before, such as the batch, each reshape is one of the rest
    known = {name for size in sizes[first:] for name in size.powers}
    tails = [product(new[dim:]) for dim in range(len(new) - 1, first, -1)]
    found: list[bool | None] = []
    for dim in (dim for dim in layer.dims if dim >= first):
        _, length, after = old[dim] if len(old[dim]) == 3 else (Size(), sizes[dim], Size())
        found.append(_moves(after * product(sizes[dim + 1 :]), length, tails, known))
    return True if True in found else None if None in found else False


def spelled_out(node: Node, dims: int = 1) -> set[int]:
    """Return products of neighbouring sizes that a reshape gives as plain numbers: code relies on these.

    Args:
        node: the reshape.
        dims: how many dimensions at least.
    """
    products, rows = set[int](), list[list[int]]()
    for entry in entries_of(node) if op_name(node) in _GIVEN else []:
        rows = [[*row, entry] for row in [*rows, []]] if isinstance(entry, int) and entry >= 0 else []
        products |= {math.prod(row) for row in rows if len(row) >= dims}
    return products


def _read_by(node: Node) -> Node | None:
    """The tensor that a node reshapes, or works on."""
    first: Any = [*node.args[:1], *(node.kwargs[key] for key in ("input", "self") if key in node.kwargs), None][0]
    if isinstance(first, Node) and isinstance(first.meta.get("val"), tuple | list):  # its parts, such as of a chunk
        return _read_by(first)
    return first if isinstance(first, Node) and isinstance(first.meta.get("val"), Tensor) else None


def _is_all(node: Node, call: OpCall) -> bool:
    """Return whether a call is all that a node does."""
    ends = [one.meta["val"] for one in (_read_by(node), node) if one is not None]
    return [one.shape for one in ends] == [call.args[0].shape, call.out.shape]


def _moves(inner: Size, length: Size, tails: Sequence[Size], known: set[Any]) -> bool | None:
    """Return whether cuts, after every ``tail`` elements, fall elsewhere among channels of ``inner`` elements each."""
    # Channels of H W elements each, cut after 512 of them: where H W = 64 a row ends with 8 channels, where it is 100
    # within one. Cut after 2 H W, a row ends with 2 channels on all inputs.
    within = [place for place, tail in enumerate(tails) if (inner / tail).is_whole()]
    for tail in tails[within[-1] + 1 if within else 0 :]:
        if (tail / (inner * length)).is_whole():
            return False
        share = tail / inner
        if share.powers or share.number.denominator != 1 or not (length / share).is_whole():
            return all(name in known for name, power in tail.powers.items() if power < 0) or None
    return False


def _parts(p: Propagation, node: Node | None, source: Tensor, dim: int) -> list[Size]:
    """The size of a dimension of a node's value: one factor, or three: repeats of all channels, channels, of each."""
    size = source.size(dim)
    if not p.is_fixed(source, dim):
        settled = size in p.sizes.fixed or _is_settled(p, node, dim - source.ndim)
        return [Size(Fraction(size)) if settled else _of_dim(p, node, dim)]
    layer = next((layer for layer in p.layers(source) if dim in layer.dims), None)
    if layer is None:
        return [Size(Fraction(size))]
    line = layer.labels[tuple(slice(None) if d == dim else 0 for d in range(source.ndim))]
    channels = line.unique().numel()
    if channels == size:
        return [Size(Fraction(size))]
    run = int((line == line[0]).to(torch.int64).cumprod(0).sum())
    whole = line[: channels * run : run].repeat_interleave(run)
    if size % len(whole) or not torch.equal(whole.repeat(size // len(whole)), line):
        return [Size(Fraction(size))]
    copies = ((size // len(whole), _REPEATING), (run, {"repeat_interleave"}))
    before, after = (_copies(node, dim, times, names) for times, names in copies)
    told = _traced(p, node, dim) if node is not None and bool(before.powers) != bool(after.powers) else None
    each = told and told / (Size(Fraction(channels)) * (after if before.powers else before))
    if each and each.is_whole():  # of 8 channels that were flattened, H W pixels
        before, after = (each, after) if before.powers else (before, each)
    return [before, Size(Fraction(channels)), after]


def _copies(node: Node | None, dim: int, times: int, names: Collection[str]) -> Size:
    """How often channels are repeated along a dimension: a number where code tells, as in ``cat([x] * 4, 1)``."""
    number = Size(Fraction(times))
    while times > 1 and node is not None:
        value, name = node.meta["val"], op_name(node)
        if name in names:
            return number if _times_told(node, dim - value.ndim) == times else Size.symbol(times)
        node = source if (source := _read_by(node)) is not None and source.meta["val"].shape == value.shape else None
    return number if times == 1 else Size.symbol(times)


def _times_told(node: Node, back: int) -> int | None:
    """How many parts are put one after the other along a dimension, counted from the last, if that is told."""
    if op_name(node) in _JOINING:
        parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
        along: Any = [*node.args[1:], node.kwargs.get("dim", 0)][0]
        is_told = isinstance(parts, tuple | list) and (along - back) % node.meta["val"].ndim == 0
        return len(parts) if is_told else None
    given = _times_each(node) if op_name(node) == "repeat_interleave" else entries_of(node)
    told = given[back] if given is not None and -back <= len(given) else None
    return told if isinstance(told, int) else None


def _of_dim(p: Propagation, node: Any, dim: int) -> Size:
    """The size of a dimension; of one that others were flattened into, the product of theirs."""
    key = _of_dim, node, dim
    if key not in p.memo:
        value = node.meta["val"]
        told = product(_parts(p, node, value, dim)) if p.is_fixed(value, dim) else _traced(p, node, dim)
        p.memo[key] = told or _plain(p, value.size(dim))
    found: Size = p.memo[key]
    return found


def _traced(p: Propagation, node: Node, dim: int) -> Size | None:
    """The size of a dimension, from where it was turned, flattened or reshaped; None if it was not."""
    size = node.meta["val"].size(dim)
    while (spread := _spread(p, node, dim)) is None and (source := _read_by(node)) is not None:
        value, name = source.meta["val"], op_name(node)
        if (lost := _lost(node)) is not None:
            dim, node = dim + (dim >= lost), source
        elif name in _TURNING:
            parts = _turned_into(node, value, dim)
            whole = math.prod(value.size(one) for one in parts) == size
            return product([_of_dim(p, source, one) for one in parts]) if whole else None
        elif name in _GIVEN:
            sizes = [_of_dim(p, source, one) for one in range(value.ndim)]
            new = _given(p, node, sizes, {symbol for one in sizes for symbol in one.powers})
            return None if new is None else new[dim]
        elif value.ndim != node.meta["val"].ndim or value.size(dim) != size:
            return None
        else:
            node = source
    return spread


def _spread(p: Propagation, node: Node, dim: int) -> Size | None:
    """The size of a dimension of what a node spreads, of which code tells how many times; None of any other node."""
    # What (B, T, 12) expands to, (B, 3, T, 12), has 3 T 12 elements for each example, on all inputs: as (B 3, T, -1)
    # it ends in 12 again. Were 3 a size that may be another one, 12 might be mixed with it.
    name, ndim = op_name(node), node.meta["val"].ndim
    if name == "stack":
        parts = node.args[0] if node.args else node.kwargs["tensors"]
        given: Any = [*node.args[1:], node.kwargs.get("dim", 0)][0]
        new = int(given) % ndim
        if not isinstance(parts, tuple | list):
            return None
        return Size(Fraction(len(parts))) if dim == new else _read(p, (parts[0], dim - (dim > new)))
    if name not in _SPREADING or (source := _read_by(node)) is None:
        return None
    place = dim - (ndim - source.meta["val"].ndim)
    before = _read(p, (source, place)) if place >= 0 else Size()
    if (given := _times_each(node) if name == "repeat_interleave" else entries_of(node)) is None:
        return None
    told = _read(p, given[dim - ndim]) if dim - ndim >= -len(given) else Size()
    if told is None or before is None or name in _EXPANDING:
        return told or before
    return told * before


def _times_each(node: Node) -> list[Any] | None:
    """How often ``repeat_interleave`` repeats along each dimension; None if that is another number for each element."""
    ndim, kwargs = node.meta["val"].ndim, node.kwargs
    named = [kwargs[key] for key in ("repeats", "dim") if key in kwargs]
    times, along = [*node.args[{"input", "self"}.isdisjoint(kwargs) :], *named, None][:2]
    number = times.meta["val"] if isinstance(times, Node) else times
    if not isinstance(number, int) or not isinstance(along, int):
        return None
    return [times if dim == along % ndim else 1 for dim in range(ndim)]


def _lost(node: Node) -> int | None:
    """Which dimension a node takes one index of, if it does that."""
    if op_name(node) != "getitem" or not isinstance(node.args[1], int):
        return None
    parts: Any = node.args[0]
    if isinstance(parts.meta["val"], Tensor):
        return 0
    dim = parts.args[1] if len(parts.args) > 1 else parts.kwargs.get("dim", 0)
    return int(dim) % (node.meta["val"].ndim + 1) if op_name(parts) == "unbind" else None


def _turned_into(node: Node, value: Tensor, dim: int) -> list[int]:
    """The dimensions of what a node turns or flattens that make up one of its own: its strides tell."""
    stand_in = torch.empty(value.shape, device="meta")
    kwargs = {key: one for key, one in node.kwargs.items() if key not in ("input", "self")}
    args, kwargs = map_arg((node.args[1:], kwargs), lambda read: read.meta["val"])
    turned = getattr(stand_in, op_name(node))(*args, **kwargs)
    begin, end = turned.stride(dim), turned.stride(dim) * turned.size(dim)
    strides = [(one, stand_in.stride(one)) for one in range(value.ndim) if value.size(one) > 1]
    return [one for one, stride in strides if begin <= stride and stride * value.size(one) <= end]


def _is_settled(p: Propagation, node: Any, back: int) -> bool:
    """Return whether a dimension, counted from the last, has a size that inputs do not change, as after pooling."""
    waiting = [node]
    for one in waiting:
        if not isinstance(one, Node) or one.op == "placeholder":
            continue
        value, name = one.meta["val"], _name(one)
        if "adaptive" in name or one.op == "get_attr":
            return True
        size = value.shape[back]
        below = [read for read in one.all_input_nodes if _has(read, value.ndim, back, size)]
        cut = any(word in name for word in _SLIDING) and (size == 1 or not below or "view" in name or "shape" in name)
        if (cut or not below) and one not in _of_inputs(p, one.graph):  # computed from parameters
            return True
        if cut:
            continue
        if not below and size == 1:
            return True
        # Of two that are added torch refuses one of another size, so it is enough that one of them has a settled one.
        waiting += [read for read in (below if _is_pointwise(p, one) else below[:1]) if read not in waiting]
    return False


def _of_inputs(p: Propagation, graph: Graph) -> set[Node]:
    """The nodes that are computed from inputs, found once for all."""
    if _of_inputs not in p.memo:
        found = p.memo[_of_inputs] = set[Node]()
        for node in graph.nodes:
            if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
                found.add(node)
    return cast(set[Node], p.memo[_of_inputs])


def _is_pointwise(p: Propagation, node: Node) -> bool:
    """Return whether a node combines what it reads element by element."""
    calls = p.calls_of(node.name)
    return bool(calls) and all(is_pointwise(call.func) for call in calls)


def _name(node: Node) -> str:
    if node.op != "call_module":
        return op_name(node).lower()
    module = node.graph.owning_module.get_submodule(str(node.target))  # type: ignore[union-attr]
    return type(module).__name__.lower()


def _has(node: Node, ndim: int, back: int, size: int) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim == ndim and value.shape[back] == size


def _given(p: Propagation, node: Node, sizes: Sequence[Size], known: set[Any]) -> list[Size] | None:
    """The sizes of the result; of one that is not told, or not understood, what is left for it."""
    given = [_read(p, entry) for entry in entries_of(node)]
    if op_name(node) == "unflatten":
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
        dim %= len(sizes)
        left = _filled(given, sizes[dim], known)
        return left and [*sizes[:dim], *left, *sizes[dim + 1 :]]
    return _filled(given, product(sizes), known)


def _filled(given: list[Size | None], total: Size, known: set[Any]) -> list[Size] | None:
    open_ = [place for place, size in enumerate(given) if size is None]
    strange = [place for place, size in enumerate(given) if size is not None and not known.issuperset(size.powers)]
    if not open_ and len(strange) == 1:
        open_ = strange
    if len(open_) > 1:
        return None
    told = [size for place, size in enumerate(given) if place not in open_ and size is not None]
    if None in given and any(size.is_rounded for size in told):  # without -1 torch refuses what does not divide
        return None
    left = total / product(told)
    return [left if place in open_ or size is None else size for place, size in enumerate(given)]


def entries_of(node: Node) -> list[Any]:
    """Sizes one by one, each a number, a node, or a pair of a node that returns several and a place."""
    if op_name(node).endswith("_as"):
        other: Any = node.args[1] if len(node.args) > 1 else node.kwargs["other"]
        return [(other, dim) for dim in range(other.meta["val"].ndim)]
    first = (op_name(node) == "unflatten" and "dim" not in node.kwargs) + {"input", "self"}.isdisjoint(node.kwargs)
    given: Any = node.args[first:] or [
        node.kwargs[key] for key in ("shape", "size", "sizes", "repeats", "dims") if key in node.kwargs
    ]
    if len(given) == 1 and isinstance(given[0], tuple | list):
        return list(given[0])
    if len(given) == 1 and isinstance(given[0], Node) and not isinstance(given[0].meta["val"], int):
        return [(given[0], dim) for dim in range(len(given[0].meta["val"]))]
    return list(given)


def _read(p: Propagation, entry: Any) -> Size | None:
    """A size that a node gives, None if torch is to find it."""
    if isinstance(entry, int | float):
        return Size(Fraction(entry)) if entry >= 0 else None
    if isinstance(entry, Node):
        return _computed(p, entry)
    node, dim = entry
    value: Any = node.meta["val"]
    if isinstance(value, Tensor):
        return _of_dim(p, node, dim)
    return _plain(p, value[dim]) if p.sizes.vary(node) else Size(Fraction(int(value[dim])))


def _computed(p: Propagation, node: Node) -> Size | None:
    """A number that a node computes."""
    number: Any = node.meta["val"]
    name, args = op_name(node), node.args
    if not p.sizes.vary(node):
        return Size(Fraction(int(number)))
    if name == "int" and args:
        return _read(p, args[0])
    if name == "size" and len(args) == 2:
        return _of_dim(p, args[0], int(args[1]))  # type: ignore[arg-type]
    if name in ("mul", "floordiv", "truediv") and len(args) == 2:
        left, right = _read(p, args[0]), _read(p, args[1])
        if left is not None and right is not None:
            made = left * right if name == "mul" else left / right
            return made if made.is_whole() else replace(made, is_rounded=True)
    return _plain(p, number)


def _plain(p: Propagation, value: Any) -> Size:
    return Size(Fraction(int(value))) if value in p.sizes.fixed or value == 0 else Size.symbol(int(value))
