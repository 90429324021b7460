"""Rules for ops that treat every channel alike, and for reductions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fx_oto.labels import UNKNOWN, ZERO, Layer
from fx_oto.propagation import Propagation
from fx_oto.tape import OpCall

__all__ = ["along", "fold", "freeze_inputs", "opaque", "reduction", "triangle", "unfold", "window"]


def window(call: OpCall, p: Propagation) -> None:
    """Pooling, upsampling, reflection padding: channels pass, the spatial dimensions are mixed."""
    source = call.args[0]
    digit = re.search(r"([123])d", call.name)
    spatial = int(digit.group(1)) if digit else source.ndim - 2
    keep = range(source.ndim - spatial)
    narrowed = (p.narrow_to(layer, keep, "a window slides along it") for layer in p.layers(source))
    layers = [Layer(layer.labels, _zero_stays(layer.removed)) for layer in narrowed if layer is not None]
    for value in call.inputs[1:]:
        p.freeze_value(value, "it steers how values are sampled")
    _put(call, p, layers)


def unfold(call: OpCall, p: Propagation) -> None:
    """``im2col``: each channel becomes as many as a window has places, and the windows make a sequence."""
    source, size = call.args[0], math.prod(call.arg("kernel_size"))
    dim = source.ndim - 3
    layers = []
    for layer in p.layers(source):
        if (narrowed := p.narrow_to(layer, range(dim + 1), "a window slides along it")) is None:
            continue
        padded = any(call.arg("padding")) and not (narrowed.removed == 0).all()
        one = Layer(narrowed.labels, UNKNOWN.view((1,) * source.ndim) if padded else narrowed.removed)
        layers.append(one.map(lambda t: (t.repeat_interleave(size, dim) if t.size(dim) > 1 else t).flatten(-2)))
    p.put(call.out, layers)


def fold(call: OpCall, p: Propagation) -> None:
    """``col2im``: each channel is summed from as many as a window has places, which go together."""
    source, size = call.args[0], math.prod(call.arg("kernel_size"))
    dim = source.ndim - 2
    layers = []
    for layer in p.layers(source):
        if (narrowed := p.narrow_to(layer, range(dim + 1), "a window slides along it")) is None:
            continue
        labels, removed = narrowed.labels, torch.where((narrowed.removed == 0).all(), ZERO, UNKNOWN)
        if labels.size(dim) > 1:
            places = labels.unflatten(dim, (-1, size))
            labels = places.select(dim + 1, 0)
            p.unite(places, labels.unsqueeze(dim + 1))
        layers.append(Layer(labels.unsqueeze(-1), removed.view((1,) * call.out.ndim)))
    p.put(call.out, layers)


def _put(call: OpCall, p: Propagation, layers: Iterable[Layer]) -> None:
    """Layers of the results; indices beside the first are not known once their channel is removed."""
    values = list(layers)
    for position, out in enumerate(call.outputs):
        known = position == 0 or out.is_floating_point()
        p.put(out, values if known else [Layer(one.labels, UNKNOWN.view((1,) * out.ndim)) for one in values])


def _zero_stays(removed: Tensor) -> Tensor:
    return torch.where(removed == 0, ZERO, UNKNOWN)


# Reductions that map zeros to zero; of these, the ones to which an element worth 0 adds nothing.
_ZERO_TO_ZERO = {"sum", "nansum", "mean", "amax", "amin", "max", "min", "linalg_vector_norm", "norm", "prod"}
_ZERO_TO_ZERO |= {"var", "std", "var_mean", "std_mean"}
_NEUTRAL = {"sum", "nansum", "mean", "linalg_vector_norm", "norm"}
# Those in which it counts, and how slicing sees to that.
_COUNTING = {"mean": "mean", **dict.fromkeys(("var", "std", "var_mean", "std_mean"), "var")}


def reduction(call: OpCall, p: Propagation) -> None:
    """``sum``, ``mean``, ``amax`` …: dimensions that are not tracked simply go."""
    source = call.args[0]
    dims = _reduced(call, source.ndim)
    keepdim = bool(_optional(call, "keepdim"))
    layers, absorbed = [], []
    for layer in p.layers(source):
        survives = [dim for dim in layer.dims if dim not in dims]
        widths = dims.intersection(layer.dims) if p.loses(call.out) == "head_dim" else set()
        if not survives or widths:
            absorbed.append(p.narrow_to(layer, widths, "") or layer if widths else layer)
            continue
        narrowed = p.narrow_to(layer, survives, "")
        assert narrowed is not None
        removed = _zero_stays(narrowed.removed) if call.name in _ZERO_TO_ZERO else UNKNOWN.view((1,) * source.ndim)
        if call.name == "mean":
            removed = narrowed.removed
        layers.append(Layer(narrowed.labels, removed).map(lambda t: t if keepdim else _drop(t, dims)))
    for layer in absorbed:
        if call.name == "mean" and len(absorbed) == 1 and (layer.removed != 0).any() and _alike(p, source, layer):
            p.adjust("mean", layer.labels, UNKNOWN)
        else:
            _absorb(call, p, layer)
    _put(call, p, layers)


def _alike(p: Propagation, value: Tensor, layer: Layer) -> bool:
    """Whether every removed element is worth the same, whatever that is: ``0 - mean``, say, or its square.

    Then slicing can compute that worth beside the value, by the same elementwise ops on what they are made from.
    """
    if len(layer.dims) != 1 or layer.removed.numel() > 1:
        return False
    if not layer.removed.isnan().any():
        return True
    call = p.made_by(value)
    tags = set() if call is None or call.mutates else set(getattr(call.func, "tags", ()))
    if call is None or torch.Tag.pointwise not in tags or torch.Tag.nondeterministic_seeded in tags:
        return False
    back = value.ndim - layer.dims[0]
    varying = [t for t in call.inputs if t.ndim >= back and t.size(-back) > 1]
    mine = [[one for one in p.layers(t) if t.ndim - back in one.dims] for t in varying]
    return all(len(found) == 1 and _alike(p, t, found[0]) for t, found in zip(varying, mine, strict=True))


def _absorb(call: OpCall, p: Propagation, layer: Layer) -> None:
    """Everything tracked by this layer is reduced away."""
    order = _optional(call, "ord") or _optional(call, "p") or 2
    if call.name not in _NEUTRAL | _COUNTING.keys() or order < 0:
        p.freeze(layer.labels, f"{call.name} runs over it")
        return
    p.freeze_where(
        layer.removed != 0, layer.labels, "its value is not zero once removed, and the sum over it would change"
    )
    if kind := _COUNTING.get(call.name):
        p.adjust(kind, layer.labels)


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
    """Softmax, cumulative sums, sorting: kept whole along their dimension, every other one passes."""
    source = call.args[0]
    dim = int(call.arg("dim")) % source.ndim
    layers = []
    for layer in p.layers(source):
        narrowed = p.narrow_to(layer, set(range(source.ndim)) - {dim}, f"{call.name} runs along it")
        if narrowed is not None:
            keeps_zero = call.name in ("cumsum", "sort", "topk")
            removed = _zero_stays(narrowed.removed) if keeps_zero else UNKNOWN.view((1,) * source.ndim)
            layers.append(Layer(narrowed.labels, removed))
    _put(call, p, layers)


def triangle(call: OpCall, p: Propagation) -> None:
    """``tril`` and ``triu``: what they zero depends on the place in the last two dimensions, the others pass."""
    source = call.args[0]
    layers = (p.narrow_to(layer, range(source.ndim - 2), "a triangle is cut from it") for layer in p.layers(source))
    p.put(call.out, [Layer(layer.labels, _zero_stays(layer.removed)) for layer in layers if layer is not None])


def opaque(call: OpCall, p: Propagation) -> None:
    """Code that is called as a whole: what enters it and its own parameters stay as they are."""
    for value in call.inputs:
        p.freeze_value(value, "it enters code that could not be captured, and is called as a whole")


def freeze_inputs(call: OpCall, p: Propagation) -> None:
    """What has no rule keeps whole whatever enters it; its result is untracked."""
    tracked = [value for value in call.inputs if p.layers(value)]
    for value in tracked:
        p.freeze_value(value, f"no rule is known for the op {call.name}")
    if tracked:
        p.unknown_op(call.name)
