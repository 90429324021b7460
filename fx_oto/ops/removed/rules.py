"""Whether the compact graph can compute what removed channels are worth: how it follows from what a node reads."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fx_oto.analysis.dependencies import Worth
from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import Layer, varying
from fx_oto.analysis.result_forms import is_pointwise
from fx_oto.analysis.tape import OpCall
from fx_oto.core.fx_utils import op_name, tensor_leaves
from fx_oto.nn.modes import IN_PLACE
from fx_oto.nn.modules import is_torchs
from fx_oto.ops.reshape.mixing import entries_of

__all__ = ["SIZED", "along", "can_compute_in", "parts_of", "without_writing"]

_COPIES = {"alias", "clone", "lift_fresh_copy", "_to_copy"}
# Movement that names no place along the channels, or whose sizes are seen to.
_MOVES = {"getitem", "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "unsqueeze", "squeeze"}
_NORMS = {"layer_norm", "layernorm", "layer_norm_over", "layernormover"}
_JOINS = {"cat", "concat", "concatenate"}
_MOVES |= _JOINS | {"flatten", "mean", "sum", "roll", "flip", "getattr"}  # x.mT
_SPREADS = {"expand", "repeat"}
_PRODUCTS = {"matmul", "mm", "bmm", "baddbmm", "einsum", "tensordot"}
SIZED = {"view", "reshape", "expand"}


def can_compute_in(p: Propagation, source: Tensor, layer: Layer) -> bool:
    """Return whether the compact graph can compute what removed channels are worth in what the current node reads.

    Args:
        p: the engine.
        source: the value that a call runs over: the node's first, or a copy; of an RMS norm, its squares.
        layer: its channels.
    """
    node, made = next(iter(p.fx_node.all_input_nodes), None), {id(call.out): call for call in p.calls_of(p.node)}
    before = _COPIES | ({"pow"} if "rms" in op_name(p.fx_node).lower() else set())
    while id(source) in made and made[id(source)].name in before:
        source = made[id(source)].args[0]
    return node is not None and node.meta["val"] is source and _can_compute(p, p.node, node, layer.labels.reshape(-1))


def _can_compute(p: Propagation, reader: str, node: Node, labels: Tensor, back: int | None = None) -> bool:
    """Return whether it can do so for what a node returns when another reads it, and note how.

    Args:
        p: the engine.
        reader: the node that reads it.
        node: the node.
        labels: of the channels, shape ``(channels,)``.
        back: how many dimensions before the end they must lie; None for any.
    """
    given = p.given[reader].get(node.name)
    now = None if given is None else along(given, labels, p.atoms.find)
    layer = None if now is None else along(p.values[node.name][0], labels, p.atoms.find)
    if now is None or layer is None or now.removed is not layer.removed:  # written in place since
        return False
    key = node.name, layer.dims[0]
    if key not in p.worths:
        p.worths[key] = _how(p, node, layer)
    return p.worths[key] is not None and back in (None, layer.labels.ndim - layer.dims[0])


def _how(p: Propagation, node: Node, layer: Layer) -> Worth | None:
    if not layer.removed.isnan().any():
        is_line = varying(layer.removed) in ((), layer.dims)
        return "known" if is_line and not layer.removed.isinf().any() else None
    return _from_operands(p, node, layer) or ("table" if p.is_table(node.meta["val"]) else None)


def _from_operands(p: Propagation, node: Node, layer: Layer) -> Worth | None:
    calls, labels = p.calls_of(node.name), layer.labels.reshape(-1)
    read = [one for one in node.all_input_nodes if tensor_leaves(one.meta["val"])]
    returns_it = bool(read) and node.meta["val"] is read[0].meta["val"]  # as dropout does in evaluation
    how: Worth = "elementwise"
    if (calls or returns_it) and read and all(call.name in _COPIES for call in calls):
        how = "cast" if any(call.name == "_to_copy" for call in calls) else "same"
        found = _can_compute(p, node.name, read[0], labels)
    elif _is_joined(node, calls, layer.dims[0]):
        how = "joined"
        found = all(not some.any() or _can_compute(p, node.name, one, some) for one, some in parts_of(node, layer))
    elif [call.name for call in calls] == ["embedding"] and layer.dims == (node.meta["val"].ndim - 1,):
        how = "looked up"
        table = next((one for one in read if one.meta["val"] is calls[0].args[0]), None)  # None of a module
        found = p.is_table(calls[0].args[0]) if table is None else _can_compute(p, node.name, table, labels)
    elif [call.name for call in calls] == ["gather"] and _picks_rows(node, layer.dims[0]):
        how = "gathered"
        found = _can_compute(p, node.name, read[0], labels)
    elif _is_normalized(node, calls, layer.dims[0]):
        how = "normalized"
        found = _can_compute(p, node.name, read[0], labels)
    elif _mixes_others(p, node, layer):
        how = "mixed"
        carrying = [one for one in read if _carries(p, node, one, labels)]
        found = len(carrying) == 1 and _can_compute(p, node.name, carrying[0], labels)
    elif not calls or not _holds_nothing(node, calls) or not all(_can_repeat(p, call, node) for call in calls):
        found = False
    elif any(_moves(p, call) for call in calls):
        how = "moved"
        found = all(_can_compute(p, node.name, one, labels) or _is_index(node, one) for one in read)
    else:
        back = node.meta["val"].ndim - layer.dims[0]
        found = all(_is_alike(one, back) or _can_compute(p, node.name, one, labels, back) for one in read)
    return how if found else None


def _picks_rows(node: Node, dim: int) -> bool:
    """Return whether a node gathers by an index that is the same for every channel, for it was spread over them."""
    index = node.args[2] if len(node.args) > 2 else node.kwargs.get("index")
    if not isinstance(index, Node) or op_name(index) not in _SPREADS or not node.args:
        return False
    before, after = (one.meta["val"].shape for one in (index.all_input_nodes[0], index))
    return bool(dim < len(after) == len(before) and before[dim] == 1)


def _is_normalized(node: Node, calls: Sequence[OpCall], dim: int) -> bool:
    """Return whether a node is a layer norm over the channels, without weights."""
    if [call.name for call in calls] != ["native_layer_norm"] or op_name(node).lower() not in _NORMS:
        return False
    source, shape, weight, bias = calls[0].args[:4]
    plain = weight is None and bias is None and len(shape) == 1 and dim == source.ndim - 1
    return plain and node.all_input_nodes[0].meta["val"] is source


def _mixes_others(p: Propagation, node: Node, layer: Layer) -> bool:
    """Return whether a node is a linear map, or a convolution, of whose rows, or positions, the channels are some.

    So it is over the tokens in networks that mix those of each channel: behind a bias, a channel that was worth 0 is
    worth something else, but the same as all others that are gone.
    """
    kind, dim = op_name(node).lower(), layer.dims[0]
    owner: Any = node.graph.owning_module
    if node.op == "call_module" and not is_torchs(type(owner.get_submodule(str(node.target)))):
        return False
    if kind in ("conv1d", "conv2d", "conv3d"):  # of a kernel that slides, the positions do not go at all
        return any(dim >= call.out.ndim - len(call.arg("stride")) for call in p.calls_of(node.name))
    return kind in _PRODUCTS or (kind == "linear" and dim < node.meta["val"].ndim - 1)


def _carries(p: Propagation, node: Node, operand: Node, labels: Tensor) -> bool:
    """Return whether some of these channels are along what a node reads."""
    given = p.given[node.name].get(operand.name, ())
    return any(bool(torch.isin(p.atoms.find(layer.labels), p.atoms.find(labels)).any()) for layer in given)


def _is_joined(node: Node, calls: Sequence[OpCall], dim: int) -> bool:
    """Return whether a node concatenates along the channels."""
    cats = [call for call in calls if call.name == "cat" and call.arg("dim") % call.out.ndim == dim]
    return len(cats) == len(calls) == 1 and op_name(node) in _JOINS and len(_joined(node)) == len(cats[0].inputs)


def _joined(node: Node) -> list[Node]:
    given = node.args[0] if node.args else node.kwargs.get("tensors")
    return [one for one in given if isinstance(one, Node)] if isinstance(given, list | tuple) else []


def parts_of(node: Node, layer: Layer) -> Iterator[tuple[Node, Tensor]]:
    """What a node joins along the channels, each with the labels of its own, shape ``(channels,)``."""
    parts, dim = _joined(node), layer.dims[0]
    sizes = [one.meta["val"].size(dim) for one in parts]
    yield from zip(parts, layer.labels.reshape(-1).split(sizes), strict=True)


def _holds_nothing(node: Node, calls: Sequence[OpCall]) -> bool:
    """Return whether a node computes with nothing but what it is given; a module may have parameters of its own."""
    known = {id(one) for call in calls for one in call.outputs} | {id(one.meta["val"]) for one in node.all_input_nodes}
    return node.op != "call_module" or all(id(one) in known for call in calls for one in call.inputs)


def _can_repeat(p: Propagation, call: OpCall, node: Node) -> bool:
    """Return whether a call computes each channel by itself, so that it can be made for those that are gone."""
    if _moves(p, call):
        name = op_name(node)
        may_move = name in _MOVES or _works_on_planes(name.lower()) or _has_plain_sizes(node)
        return call.name in _COPIES or (may_move and not _counts_channels(call, node))
    if getattr(call.func, "namespace", "") != "aten" or torch.Tag.nondeterministic_seeded in call.func.tags:
        return False
    return is_pointwise(call.func) and (not call.mutates or without_writing(node) is not None)


def _moves(p: Propagation, call: OpCall) -> bool:
    return p.moves_data(call) or call.name in ("expand", "mean", "sum") or _works_on_planes(call.name)


def _works_on_planes(name: str) -> bool:
    """Whether a function of this name works on each channel of images, or of sequences, alike."""
    return "pool" in name or "upsample" in name or name == "interpolate"


def _counts_channels(call: OpCall, node: Node) -> bool:
    """Return whether it matters how many channels there are: one alone is squeezed, and lists have their places."""
    lists = op_name(node) == "getitem" and any(isinstance(one, list) for one in [*_entries(node.args[1]), node.args[1]])
    return lists or (call.name == "squeeze" and call.func._overloadname == "default")


def _entries(index: Any) -> Sequence[Any]:
    return index if isinstance(index, tuple) else ()


def _has_plain_sizes(node: Node) -> bool:
    """Return whether a node is given one size for each dimension of what it returns."""
    if op_name(node) not in SIZED:
        return False
    sizes = entries_of(node)
    return len(sizes) == node.meta["val"].ndim and all(isinstance(one, int | Node) for one in sizes)


def without_writing(node: Node) -> Any:
    """What computes what a node writes in place; None where nothing is known to."""
    name = op_name(node)
    if node.op == "call_method":
        return name.removesuffix("_")
    return getattr(operator, name[1:]) if name in IN_PLACE else None


def _is_index(node: Node, operand: Node) -> bool:
    """Return whether an operand says at which places a node reads; along the channels it reads all, in order."""
    value = operand.meta["val"]
    return op_name(node) == "getitem" and operand is not node.args[0] and not value.is_floating_point()


def _is_alike(node: Node, back: int) -> bool:
    """Return whether a value is the same for every channel, which lie so many dimensions before the end."""
    value = node.meta["val"]
    return isinstance(value, Tensor) and (value.ndim < back or value.size(-back) == 1)


def along(layers: Sequence[Layer], labels: Tensor, find: Callable[[Tensor], Tensor]) -> Layer | None:
    """The layer that has these labels, or others of the same groups, in this order along one dimension."""
    for layer in layers:
        mine = layer.labels.reshape(-1)
        if len(layer.dims) == 1 and len(mine) == labels.numel() and torch.equal(find(mine), find(labels.reshape(-1))):
            return layer
    return None
