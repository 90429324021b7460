"""Rules for ops that work on a window or a plane of each channel alike."""

from __future__ import annotations

import math
import re

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import UNKNOWN, ZERO, Layer
from fx_oto.analysis.tape import OpCall
from fx_oto.ops.reductions import let_through

__all__ = ["fold", "triangle", "unfold", "window"]

_SLIDES = "a window slides along it"


def window(call: OpCall, p: Propagation) -> None:
    """Pooling, upsampling, reflection padding: channels pass, the spatial dimensions are mixed."""
    source = call.args[0]
    digit = re.search(r"([123])d", call.name)
    spatial = int(digit.group(1)) if digit else source.ndim - 2
    let_through(call, p, range(source.ndim - spatial), _SLIDES)
    for value in call.inputs[1:]:
        p.freeze_value(value, "it steers how values are sampled")


def unfold(call: OpCall, p: Propagation) -> None:
    """``im2col``: each channel becomes as many as a window has places, and the windows make a sequence."""
    source, size = call.args[0], math.prod(call.arg("kernel_size"))
    dim = source.ndim - 3
    layers = []
    for layer in p.narrow(p.layers(source), range(dim + 1), _SLIDES):
        padded = any(call.arg("padding")) and not (layer.removed == 0).all()
        one = Layer.uniform(layer.labels) if padded else layer
        layers.append(one.map(lambda t: (t.repeat_interleave(size, dim) if t.size(dim) > 1 else t).flatten(-2)))
    p.put(call.out, layers)


def fold(call: OpCall, p: Propagation) -> None:
    """``col2im``: each channel is summed from as many as a window has places, which go together."""
    source, size = call.args[0], math.prod(call.arg("kernel_size"))
    dim = source.ndim - 2
    layers = []
    for layer in p.narrow(p.layers(source), range(dim + 1), _SLIDES):
        labels = layer.labels
        if labels.size(dim) > 1:
            places = labels.unflatten(dim, (-1, size))
            labels = places.select(dim + 1, 0)
            p.unite(places, labels.unsqueeze(dim + 1))
        layers.append(Layer.uniform(labels.unsqueeze(-1), ZERO if (layer.removed == 0).all() else UNKNOWN))
    p.put(call.out, layers)


def triangle(call: OpCall, p: Propagation) -> None:
    """``tril`` and ``triu``: what they zero depends on the place in the last two dimensions, the others pass."""
    let_through(call, p, range(call.out.ndim - 2), "a triangle is cut from it")
