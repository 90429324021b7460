"""Ops that run along dimensions: sums and means, softmax, sorting; means of what is left over the original count."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import UNKNOWN, Layer, zero_stays
from fx_oto.analysis.sizes import PLACE
from fx_oto.analysis.tape import OpCall
from fx_oto.core.fx_utils import op_name
from fx_oto.nn.norms import mean_over, variance_over
from fx_oto.ops import pointwise
from fx_oto.ops.contraction import NOT_ZERO
from fx_oto.ops.editor import Editor
from fx_oto.ops.pointwise import Operand
from fx_oto.ops.removed.rules import can_compute_in

__all__ = [
    "along",
    "extreme_beside_zero",
    "let_through",
    "loss",
    "mean_over_share",
    "reduction",
    "renorm",
    "share_of_mean",
    "trace",
    "variance_over_share",
]

# Reductions that map zeros to zero; those to which an element worth 0, or 1, adds nothing.
_ZERO_TO_ZERO = {"sum", "nansum", "mean", "amax", "amin", "max", "min", "linalg_vector_norm", "norm", "prod", "any"}
_ZERO_TO_ZERO |= {"var", "std", "var_mean", "std_mean", "median", "nanmedian", "kthvalue", "mode"}
_NEUTRAL = dict.fromkeys(("sum", "nansum", "mean", "linalg_vector_norm", "norm", "any"), 0) | {"prod": 1, "all": 1}
# Of those that keep the dimension, the ones that map zeros to zero.
_ZERO_OF_ZEROS = {"cumsum", "cummax", "cummin", "sort", "topk", "_fft_r2c", "_fft_c2r", "_fft_c2c"}
# Those in which it counts, and how slicing sees to that.
_COUNTING = {"mean": "mean", **dict.fromkeys(("var", "std", "var_mean", "std_mean"), "var")}
_COUNTING |= dict.fromkeys(("amax", "amin", "max", "min"), "extreme")
# The numbers by which ATen's losses are told what to return.
_EACH, _MEAN = 0, 1


def reduction(call: OpCall, p: Propagation) -> None:
    """``sum``, ``mean``, ``amax`` …: dimensions that are not tracked simply go."""
    source = call.args[0]
    dims = _reduced(call, source.ndim)
    keepdim = bool(_optional(call, "keepdim"))
    # x (N, 16, H, W).mean((2, 3)): labels along 1 survive. x.mean(1): they are absorbed, which changes nothing if what
    # goes is worth 0 and the sum is still divided by 16.
    layers, absorbed = [], []
    for layer in p.layers(source):
        survives = [dim for dim in layer.dims if dim not in dims]
        widths = dims.intersection(layer.dims) if p.loses(call.out) == "head_dim" else set()
        if not survives or widths:
            absorbed.append(p.narrow_to(layer, widths, "") or layer if widths else layer)
            continue
        narrowed = p.narrow_to(layer, survives, "")
        assert narrowed is not None
        result = _after(narrowed, call.name in _ZERO_TO_ZERO) if call.name != "mean" else narrowed
        layers.append(result.map(lambda t: t if keepdim else _drop(t, dims)))
    for layer in absorbed:
        kind = _COUNTING.get(call.name)
        may_count = kind in ("mean", "var") and len(absorbed) == 1 and (layer.removed != 0).any()
        if kind is not None and may_count and p.can_adjust(kind) and can_compute_in(p, source, layer):
            p.adjust(kind, layer.labels, UNKNOWN)
        else:
            _absorb(call, p, layer)
    _put_results(call, p, layers)


def trace(call: OpCall, p: Propagation) -> None:
    """``trace``: what stands in row i and column i goes with both, or not at all."""
    matrix = call.args[0]
    if not p.layers(matrix) or not all(p.is_fixed(matrix, dim) for dim in (0, 1)):
        p.freeze_value(matrix, PLACE)
        return
    lines = [layer.map(lambda t: t.expand(matrix.shape).diagonal()) for layer in p.layers(matrix)]
    worth = torch.stack([line.removed.expand(min(matrix.shape)) for line in lines])
    for line in lines:
        p.unite(lines[0].labels, line.labels)
        p.freeze_where((worth != 0).all(0), line.labels, NOT_ZERO)


def loss(call: OpCall, p: Propagation) -> None:
    """``mse_loss`` and its like: something computed element by element, and its mean or its sum."""
    given = call.given | {"reduction": _EACH}
    each = replace(call, args=tuple(given.values()), kwargs={})
    operands = [Operand.of(p, tensor) for tensor in call.inputs]
    ndim = max(tensor.ndim for tensor in call.inputs)
    layers = pointwise.elementwise(each, p, operands, ndim, pointwise.evaluated)
    if call.arg("reduction") == _EACH:
        p.put(call.out, layers)
        return
    for layer in layers:
        _sum(p, layer, "mean" if call.arg("reduction") == _MEAN else None)
    p.put(call.out, ())


def _absorb(call: OpCall, p: Propagation, layer: Layer) -> None:
    """Everything tracked by this layer is reduced away."""
    order = _optional(call, "ord") or _optional(call, "p") or 2
    if call.name not in _NEUTRAL | _COUNTING or order < 0 or _reads_places(p.fx_node):
        p.freeze(layer.labels, f"{call.name} runs over it")
        return
    if _NEUTRAL.get(call.name):
        p.freeze_where(layer.removed != _NEUTRAL[call.name], layer.labels, f"{call.name} runs over it")
    else:
        _sum(p, layer, _COUNTING.get(call.name))


def _sum(p: Propagation, layer: Layer, counting: str | None) -> None:
    """Sum over a layer, or something that counts the elements as well."""
    p.freeze_where(layer.removed != 0, layer.labels, NOT_ZERO)
    if counting is not None:
        p.adjust("share" if counting == "mean" and p.can_adjust("share") else counting, layer.labels)


def _optional(call: OpCall, name: str) -> Any:
    try:
        return call.arg(name)
    except KeyError:
        return None


def _reduced(call: OpCall, ndim: int) -> set[int]:
    dims = _optional(call, "dim")
    if dims is None or dims == []:
        return set(range(ndim))
    return {int(d) % ndim for d in (dims if isinstance(dims, Iterable) else [dims])}


def _drop(tensor: Tensor, dims: set[int]) -> Tensor:
    return tensor.reshape([size for dim, size in enumerate(tensor.shape) if dim not in dims])


def along(call: OpCall, p: Propagation) -> None:
    """Softmax, cumulative sums, sorting, Fourier transforms: kept whole along their dimensions, every other passes."""
    ndim = call.args[0].ndim
    let_through(
        call, p, set(range(ndim)) - _reduced(call, ndim), f"{call.name} runs along it", call.name in _ZERO_OF_ZEROS
    )


def renorm(call: OpCall, p: Propagation) -> None:
    """Slices along one dimension that are too long are made shorter: zeros add nothing to their length."""
    source = call.args[0]
    for layer in p.layers(source):
        counted = torch.zeros_like(layer.removed, dtype=torch.bool) if call.arg("p") > 0 else layer.removed == 0
        if set(layer.dims) != {call.arg("dim") % source.ndim}:
            p.freeze_where(counted | (layer.removed != 0), layer.labels, "it adds to a norm, by which others are cut")
    _put_results(call, p, [_after(layer, keeps_zero=True) for layer in p.layers(source)])


def let_through(call: OpCall, p: Propagation, dims: Collection[int], why: str, keeps_zero: bool = True) -> None:
    """Layers along some dimensions pass an op that works on each index of these alike; others are kept whole."""
    narrowed = p.narrow(p.layers(call.args[0]), dims, why)
    _put_results(call, p, [_after(layer, keeps_zero) for layer in narrowed])


def _after(layer: Layer, keeps_zero: bool) -> Layer:
    return Layer(layer.labels, zero_stays(layer.removed)) if keeps_zero else Layer.uniform(layer.labels)


def _put_results(call: OpCall, p: Propagation, layers: Sequence[Layer]) -> None:
    """Layers of the results; indices beside the first are not known once their channel is removed."""
    for position, out in enumerate(call.outputs):
        known = position == 0 or out.is_floating_point()
        p.put(out, layers if known else [Layer.uniform(one.labels) for one in layers])


def _reads_places(node: Node) -> bool:
    """Whether code asks where the largest or the smallest is, which nobody knows once something is gone."""
    pair = isinstance(node.meta["val"], tuple) and op_name(node) in ("max", "min")
    return pair and not all(reader.target is operator.getitem and reader.args[1] == 0 for reader in node.users)


def extreme_beside_zero(edit: Editor, node: Node) -> None:
    """The largest, or the smallest, of what is left and of what is gone, which was 0."""
    bound = torch.clamp_min if "max" in op_name(node) else torch.clamp_max
    values = list(node.users) if isinstance(node.meta["val"], tuple) else [node]
    for value in values:
        edit.adopt(edit.append(value, bound, 0), value)


def variance_over_share(edit: Editor, node: Node, share: float, worth: Node | None) -> None:
    """A variance over the original count, with what those are worth that are gone; None if they were 0."""
    if node.target is not variance_over:  # two of its dimensions are cut, or it is from an earlier round
        node = edit.replace(node, variance_over, op_name(node), *node.args, share=1.0, **node.kwargs)
    before: Any = node.kwargs["share"]
    node.update_kwarg("share", before * share)
    node.update_kwarg("known", _with(node.kwargs.get("known", ()), before * (1 - share), worth))


def mean_over_share(edit: Editor, node: Node, share: float, worth: Node | None) -> None:
    """A mean over the original count, with what those are worth that are gone; None if they were 0."""
    if node.target is not mean_over:
        dim, keepdim = edit.argument(node, 1, "dim"), edit.argument(node, 2, "keepdim", False)
        node = edit.replace(node, mean_over, node.args[0], dim, keepdim, 1.0, node.kwargs.get("dtype"), ())
    before: Any = node.args[3]
    node.args = (*node.args[:3], before * share, node.args[4], _with(node.args[5], before * (1 - share), worth))


def share_of_mean(edit: Editor, node: Node, share: float) -> None:
    """A loss that is the mean of what is left, over the original count."""
    edit.append(node, torch.mul, share)


def _with(known: Any, share: float, worth: Node | None) -> Any:
    return known if worth is None else (*known, (share, worth))
