"""Convolutions: contractions at each place of a window that slides; grouped, transposed, and at computed places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn.functional import pad

from fx_oto.analysis.closure import Grouped
from fx_oto.analysis.engine import FIXED, SLIDES, Propagation
from fx_oto.analysis.labels import ZERO, Layer, zero_stays
from fx_oto.analysis.tape import OpCall
from fx_oto.core.fx_utils import op_name
from fx_oto.ops.contraction import NOT_ZERO, can_be_zero, contract, may_be_silenced, plus
from fx_oto.ops.editor import Editor
from fx_oto.ops.pointwise import Operand, combine
from fx_oto.ops.pooling import STEERS, steps_by_one
from fx_oto.ops.removed.rules import along
from fx_oto.ops.rows_and_columns import one_line

__all__ = ["channel_dim", "convolution", "deformed", "fewer_groups", "slide_over_zeros"]

_OF_ONE_LINE = "rows and columns of the kernel are one axis of a parameter"


def convolution(call: OpCall, p: Propagation) -> None:
    """Convolution in any number of dimensions, transposed, grouped or depthwise."""
    source, weight, bias = call.args[:3]
    transposed, groups = call.arg("transposed"), call.arg("groups")
    spatial = source.ndim - 2
    still = [2 + i for i in range(spatial) if steps_by_one(call, p, i, weight.shape[2:])]
    beside = [layer for layer in p.layers(source) if min(layer.dims) >= 2 and not set(still).isdisjoint(layer.dims)]
    lines = [(2 + i,) for i in range(spatial) if 2 + i not in still and _keeps_places(call, p, i)]
    slid = [layer for layer in p.layers(source) if layer.dims in lines]
    inputs = _channels(p, [layer for layer in p.layers(source) if layer not in (*beside, *slid)])
    sides = [Operand(source.shape[:2], inputs), _kernel(p, weight)]
    if groups == 1:
        padded = any(n or p.sizes.may_vary(call, n) for n in call.arg("padding"))
        foldable = p.is_weight(weight) and not transposed and not padded
        layers = contract(p, sides, ("bc", "co" if transposed else "oc"), "bo", foldable)
    else:
        by_image = p.narrow([layer for layer in inputs if 0 in layer.dims], (0,), "")
        sides[0] = Operand(source.shape[:2], one_line(p, [layer for layer in inputs if layer.dims == (1,)]))
        layers = _grouped(p, sides, groups, transposed, call.out.size(1))
        layers += [Layer(layer.labels, zero_stays(layer.removed)) for layer in by_image]
    layers = _of_all_places(call, p, layers, bias)
    keeps_zero = bias is None
    for layer in p.narrow(beside, still, SLIDES):
        layers.append(Layer(layer.labels, zero_stays(layer.removed)) if keeps_zero else Layer.uniform(layer.labels))
    for layer in slid:  # among zeros, in the place of what is gone: what it makes there depends on what is beside
        p.freeze_where(layer.removed != 0, layer.labels, SLIDES)
        p.adjust("slide", layer.labels)
        layers.append(Layer.uniform(layer.labels))
    p.put(call.out, layers)


def _keeps_places(call: OpCall, p: Propagation, i: int) -> bool:
    """Whether a window stands once at each index of the spatial dimension ``i``, with zeros beyond the ends."""
    # Over the channels' means, (N, 1, 16), a window of 3 is an efficient channel attention.
    stride, padding, dilation = (call.arg(name) for name in ("stride", "padding", "dilation"))
    numbers = [row[i % len(row)] for row in (stride, padding, dilation)]
    reach = numbers[2] * (call.args[1].size(2 + i) - 1)
    fixed = not any(p.sizes.may_vary(call, n) for n in numbers)
    return fixed and not call.arg("transposed") and numbers[0] == 1 and 2 * numbers[1] == reach


def slide_over_zeros(edit: Editor, node: Node, labels: Tensor) -> None:
    """Put zeros back where channels are gone along which a window slides, and take what is left of what it makes."""
    source, layers = node.args[0], edit.layers(node.args[0])  # type: ignore[arg-type]
    layer = along(layers, labels, edit.cuts.found.roots.__getitem__)
    assert layer is not None
    dim, ndim = layer.dims[0], layer.labels.ndim
    kept = edit.cut(source)[dim]
    places = torch.full((labels.numel(),), len(kept))
    places[kept] = torch.arange(len(kept))
    at = edit.constant("spread", places, node, node)
    with edit.graph.inserting_before(node):
        zero = edit.graph.call_function(pad, (source, [0, 0] * (ndim - 1 - dim) + [0, 1]))
        node.update_arg(0, edit.graph.call_function(torch.index_select, (zero, dim, at)))
    index = edit.constant("kept", kept, node.next, node)
    edit.adopt(edit.append(node, torch.index_select, dim, index), node)


def deformed(call: OpCall, p: Propagation) -> None:
    """Convolution of places that were computed, as torchvision's ``deform_conv2d``, the same of all channels."""
    source, weight, offset, mask, bias = call.args[:5]
    for value in (offset, mask):
        p.freeze_value(value, STEERS)
    inputs = Operand(source.shape[:2], _channels(p, p.layers(source)))
    if call.arg("groups") > 1 or call.arg("offset_groups") > 1:
        for layer in (*inputs.layers, *p.layers(weight), *p.layers(bias)):
            p.freeze(layer.labels, "a deformable convolution has groups of channels, or of places")
        p.put(call.out, ())
        return
    layers = contract(p, [inputs, _kernel(p, weight)], ("bc", "oc"), "bo", False)
    p.put(call.out, _of_all_places(call, p, layers, bias))


def _kernel(p: Propagation, weight: Tensor) -> Operand:
    """Of a convolution, along the channels of what it makes, and of what it reads; its window slides."""
    is_weight = p.is_weight(weight)
    window = [layer for layer in p.layers(weight) if is_weight and min(layer.dims) >= 2]
    for layer in window:
        p.slide(layer.labels)
    kernel = _channels(p, [layer for layer in p.layers(weight) if layer not in window])
    return Operand(weight.shape[:2], kernel, is_weight)


def _of_all_places(call: OpCall, p: Propagation, layers: list[Layer], bias: Tensor | None) -> list[Layer]:
    """The layers of a convolution's channels, of shape ``(batch, channels)``, once the bias is added."""
    if bias is not None:
        layers = combine(p, [Operand(call.out.shape[:2], layers), Operand.of(p, bias)], 2, plus)
    return [layer.map(lambda t: t[(...,) + (None,) * (call.out.ndim - 2)]) for layer in layers]


def _channels(p: Propagation, layers: Sequence[Layer]) -> list[Layer]:
    """Layers along batch and channels; what varies over the window only is summed, and kept whole."""
    narrowed = p.narrow(layers, (0, 1), SLIDES)
    return [layer.map(lambda t: t.reshape(t.shape[:2])) for layer in narrowed]


def _grouped(p: Propagation, sides: Sequence[Operand], groups: int, transposed: bool, width: int) -> list[Layer]:
    """Input and output channels stay a grid of groups; the weight's second axis is shared by all groups."""
    # With 8 input channels, 16 output channels and 4 groups the weight is (16, 2, kh, kw): its second axis counts the
    # channels within a group. The inputs are a grid (4, 2), the outputs one of (4, 4). Either whole groups go, rows of
    # both grids; or the same positions in every group, and those of the inputs are the indices of the second axis.
    # A transposed weight is (8, 4, kh, kw): its rows are the inputs, and the outputs have no axis of their own.
    inputs, kernel = sides
    is_weight = kernel.weight or _is_made_of_one(kernel, transposed)
    if not is_weight and not transposed:
        return _by_example(p, inputs, kernel, groups)
    incoming, rows, shared = _along(inputs.layers, 1), _along(kernel.layers, 0), _along(kernel.layers, 1)
    if rows is None or not is_weight or not p.rewritable:
        refusal = "a grouped convolution has a computed weight, or a number of groups that slicing cannot rewrite"
        for layer in (*inputs.layers, *kernel.layers):
            p.freeze(layer.labels, refusal)
        return []
    if incoming is None:  # an input that is kept whole keeps what reads it
        read = rows if transposed else shared
        if read is not None:
            p.freeze(read.labels, FIXED)
    else:
        _lose_nothing(p, incoming, rows if transposed else shared, kernel)
    outgoing = _outgoing(p, incoming, rows, shared, width) if transposed else rows.labels.reshape(-1)
    read, made = (rows, shared) if transposed else (shared, rows)
    if read is not None and kernel.weight:
        p.consume(read.labels)
    if made is not None and kernel.weight:
        p.produce(made.labels)
    grid = None if incoming is None else incoming.labels.reshape(groups, -1)
    common = None if shared is None else shared.labels.reshape(-1)
    why = p.reason("whole groups of the convolution can go, so each group keeps all its channels")
    p.grouped(Grouped(grid, outgoing.view(groups, -1), common, not transposed, why))
    return [Layer.uniform(outgoing.view(1, -1), ZERO)]


def _is_made_of_one(kernel: Operand, transposed: bool) -> bool:
    """Whether a kernel is computed of a parameter of its form, and makes nothing where that is zero."""
    rows, made = _along(kernel.layers, 0), _along(kernel.layers, int(transposed))
    lines = rows is not None and all(len(layer.dims) == 1 for layer in kernel.layers)
    distinct = rows is not None and len(rows.labels.unique()) == rows.labels.numel()
    return lines and distinct and (made is None or bool((made.removed == 0).all()))


def _by_example(p: Propagation, inputs: Operand, kernel: Operand, groups: int) -> list[Layer]:
    """Each example has a kernel of its own, computed of it: examples lie beside channels, and none of them is cut."""
    # x (N, 8, H, W) is (1, N · 8, H, W), and kernels (N, 6, 8, k, k) are (N · 6, 8, k, k): in N groups, 8 channels make
    # 6, the same of all examples. Where a kernel is a line of 6 · 8 numbers, whole rows of it can go.
    outputs = kernel.shape[0] // groups
    narrow = [one if len(one.dims) == 1 else p.narrow_to(one, (0,), _OF_ONE_LINE) for one in kernel.layers]
    mine = [_of_one(p, one, 1, groups) for one in inputs.layers if 1 in one.dims]
    rows = [_of_one(p, one, 0, groups) for one in narrow if one is not None and one.dims == (0,)]
    columns = [one for one in narrow if one is not None and one.dims == (1,)]
    sides = [
        Operand((1, inputs.shape[1] // groups), [one for one in mine if one is not None]),
        Operand((outputs, kernel.shape[1]), [*(one for one in rows if one is not None), *columns]),
    ]
    layers = contract(p, sides, ("bc", "oc"), "bo", False)
    return [one.map(lambda t: t.repeat(1, groups) if t.size(1) > 1 else t) for one in layers]


def _of_one(p: Propagation, layer: Layer, dim: int, groups: int) -> Layer | None:
    """A layer of channels beside examples, of one example; None, and kept whole, if they are not alike in all."""
    labels = layer.labels.reshape(groups, -1)
    if labels.size(1) == 1 or not torch.equal(labels, labels[:1].expand_as(labels)):
        p.freeze(layer.labels, "a grouped convolution has a computed weight that is not one for each example")
        return None
    removed = layer.removed if layer.removed.numel() == 1 else layer.removed.narrow(dim, 0, labels.size(1))
    return Layer(layer.labels.narrow(dim, 0, labels.size(1)), removed)


def _lose_nothing(p: Propagation, incoming: Layer, read: Layer | None, kernel: Operand) -> None:
    """What a grouped convolution sums over is zero once removed, or what reads it is."""
    # Of whole groups the rows are zero, and nothing else reads their channels.
    bad = incoming.removed != 0
    if not can_be_zero(p, kernel) or not may_be_silenced(p, incoming.removed):
        p.freeze_where(bad, incoming.labels, NOT_ZERO)
    elif read is not None and bad.any():
        p.silence(read.labels)


def _outgoing(p: Propagation, incoming: Layer | None, rows: Layer, shared: Layer | None, width: int) -> Tensor:
    """Output channels of a transposed convolution, whose weight has one row for each input channel."""
    outgoing = p.atoms.fresh(width)
    if incoming is not None:
        p.unite(incoming.labels.reshape(-1), rows.labels.reshape(-1))
    elif shared is None:
        p.freeze(outgoing, "each group has one output, and its input is kept whole")
    return outgoing


def _along(layers: Sequence[Layer], dim: int) -> Layer | None:
    return next((layer for layer in layers if layer.dims == (dim,)), None)


def fewer_groups(edit: Editor, node: Node) -> None:
    """Functional grouped convolution: groups are channels over channels per group."""
    name = op_name(node)
    position, transposed = (8, node.args[6]) if name == "convolution" else (6, "transpose" in name)
    groups = edit.argument(node, position, "groups", 1)
    if groups == 1 or isinstance(groups, Node):  # computed, such as one for each example: groups that are not cut
        return
    weight = edit.argument(node, 1, "weight")
    dim = channel_dim(edit, node, len(edit.shape(weight)))
    channels = edit.channels(node if transposed else node.args[0], dim)
    edit.set_argument(node, position, "groups", channels // edit.channels(weight))


def channel_dim(edit: Editor, node: Node, weight_ndim: int) -> int:
    """The dimension of a convolution's channels: 0 for a single image, 1 for a batch."""
    return len(edit.shape(node)) - weight_ndim + 1
