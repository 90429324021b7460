"""Rules for ops that work on a window or a plane of each channel alike."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.fx import Node

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import UNKNOWN, ZERO, Layer, zero_stays
from fx_oto.analysis.tape import OpCall
from fx_oto.core.fx_utils import op_name
from fx_oto.ops.editor import Editor
from fx_oto.ops.pointwise import Operand, combine
from fx_oto.ops.reductions import let_through

__all__ = [
    "SIZED",
    "STEERS",
    "fewer_places",
    "fold",
    "regions",
    "steps_by_one",
    "triangle",
    "unfold",
    "unpool",
    "window",
]

_SLIDES = "a window slides along it"
STEERS = "it steers how values are sampled"
# Functions that are given the size of what they return, as one of their arguments.
SIZED = {"interpolate", "upsample", *(f"adaptive_{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3))}


def window(call: OpCall, p: Propagation) -> None:
    """Pooling, upsampling, reflection padding: channels pass, the spatial dimensions are mixed."""
    source = call.args[0]
    digit = re.search(r"([123])d", call.name)
    spatial = int(digit.group(1)) if digit else source.ndim - 2
    lead = source.ndim - spatial
    # Places of the largest are counted in the whole plane, so there no index of it may go.
    still = range(spatial if isinstance(p.fx_node.meta["val"], Tensor) else 0)
    let_through(call, p, {*range(lead), *(lead + i for i in still if _stays(call, p, i, lead))}, _SLIDES)
    for value in call.inputs[1:]:
        p.freeze_value(value, STEERS)


def unpool(call: OpCall, p: Propagation) -> None:
    """Values are put where the largest were found: both have the same channels, and each plane is zero elsewhere."""
    source, places = call.inputs
    lead = range(source.ndim - (3 if "3d" in call.name else 2))
    operands = [replace(Operand.of(p, one), layers=p.narrow(p.layers(one), lead, _SLIDES)) for one in (source, places)]
    p.put(call.out, combine(p, operands, source.ndim, lambda removed: zero_stays(removed[0])))


def regions(call: OpCall, p: Propagation) -> None:
    """Boxes cut out of feature maps, each a row of the result: channels pass, whichever image a box is of."""
    let_through(call, p, {1}, _SLIDES)
    p.freeze_value(call.arg("rois"), STEERS)


def _stays(call: OpCall, p: Propagation, i: int, lead: int) -> bool:
    """Whether along the spatial dimension ``i`` each index of the result is made of the same index of the source."""
    if call.out.size(lead + i) != call.args[0].size(lead + i):
        return False
    given = call.given
    if "padding" in given and "kernel_size" not in given:
        before = 2 * (call.out.ndim - 1 - lead - i)
        return not any(n or p.sizes.may_vary(call, n) for n in given["padding"][before : before + 2])
    if "output_size" in given:
        scales = given.get("scale_factors") or [value for name, value in given.items() if name.startswith("scales")]
        fits = not scales or scales[i] in (None, 1)
        return fits and given.keys().isdisjoint(("indices", "kernel_size")) and _follows(p, i)
    return "kernel_size" in given and steps_by_one(call, p, i, given["kernel_size"])


def steps_by_one(call: OpCall, p: Propagation, i: int, kernel: Sequence[int]) -> bool:
    """Whether a window of this size is 1 long along its dimension ``i``, and stands at each index once."""
    numbers = {"stride": 1, "padding": 0, "output_padding": 0} | {"kernel": 1}
    rows = {name: call.given[name] for name in numbers if name in call.given} | {"kernel": kernel}
    at = {name: row[i % len(row)] for name, row in rows.items() if row}
    ones = all(n == numbers[name] for name, n in at.items())
    return ones and not any(p.sizes.may_vary(call, n) for n in at.values())


def _follows(p: Propagation, i: int) -> bool:
    """Whether the size that a call asks for can follow what is left of a dimension, or is that of its source anyway."""
    node = p.fx_node
    if node.op == "call_module":
        module = node.graph.owning_module.get_submodule(str(node.target))  # type: ignore[union-attr]
        size = getattr(module, "size", getattr(module, "output_size", 0))
        return p.rewritable and (size[i] if isinstance(size, tuple | list) else size) is None
    size = _size_given(node)
    entry = size[i % len(size)] if isinstance(size, tuple | list) else size
    if size is None or op_name(node) not in SIZED:
        return size is None and p.rewritable
    return size is not entry and not (isinstance(entry, Node) and p.sizes.vary(entry))


def _size_given(node: Node) -> Any:
    by_name = (node.kwargs[name] for name in ("size", "output_size") if name in node.kwargs)
    return next(iter((*node.args[1:2], *by_name)), None)


def fewer_places(edit: Editor, node: Node) -> None:
    """Upsampling, or adaptive pooling, to a given size: along a cut dimension, to what is left of it."""
    size, ndim = _size_given(node), len(edit.shape(node))
    if isinstance(size, tuple | list):
        cut = {dim - ndim: len(index) for dim, index in edit.cut(node).items()}
        left = [entry if entry is None else cut.get(i - len(size), entry) for i, entry in enumerate(size)]
        edit.set_argument(node, 1, "size" if "size" in node.kwargs else "output_size", left)


def unfold(call: OpCall, p: Propagation) -> None:
    """``im2col``: each channel becomes as many as a window has places, and the windows make a sequence."""
    source, size = call.args[0], math.prod(call.arg("kernel_size"))
    dim = source.ndim - 3
    # Of (N, C, 6, 8) and a window of (3, 1), padded by (1, 0), the sequence is a grid of (6, 8).
    still = [i for i in range(2) if steps_by_one(call, p, i, call.arg("kernel_size"))]
    grid = [source.size(dim + 1 + i) if i in still else 0 for i in range(2)]
    grid = [n or call.out.size(-1) // max(sum(grid), 1) for n in grid]
    layers = []
    for layer in p.narrow(p.layers(source), {*range(dim + 1), *(dim + 1 + i for i in still)}, _SLIDES):
        padded = any(call.arg("padding")) and not (layer.removed == 0).all()
        one = Layer.uniform(layer.labels) if padded else layer
        layers.append(one.map(lambda t: _in_sequence(t.repeat_interleave(size, dim) if t.size(dim) > 1 else t, grid)))
    p.put(call.out, layers)


def _in_sequence(plane: Tensor, grid: Sequence[int]) -> Tensor:
    """The last two dimensions of labels, which become one."""
    spread = plane.expand(*plane.shape[:-2], *grid) if plane.shape[-2:].numel() > 1 else plane
    return spread.flatten(-2)


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
