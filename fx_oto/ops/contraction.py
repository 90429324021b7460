"""Contractions: each is *pointwise multiply, then sum*; their groups and constants once some channels are gone.

The channels that are summed over tie the input to the weight's input axis; the weight's other axis makes the
output's channels. A sum loses nothing when what is removed is worth 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from fx_oto.analysis.closure import Grouped
from fx_oto.analysis.engine import FIXED, SLIDES, Propagation
from fx_oto.analysis.labels import UNKNOWN, ZERO, Layer, align, zero_stays
from fx_oto.analysis.tape import OpCall
from fx_oto.core.fx_utils import op_name
from fx_oto.nn.products import grouped_mm_of_any_width
from fx_oto.ops.editor import Editor
from fx_oto.ops.pointwise import Operand, combine
from fx_oto.ops.pooling import steps_by_one
from fx_oto.ops.refusals import freeze_inputs

__all__ = [
    "add_folded",
    "add_matmul",
    "any_width",
    "channel_dim",
    "contract",
    "convolution",
    "count_padding_anew",
    "embedding",
    "embedding_bag",
    "embedding_renorm",
    "fewer_groups",
    "grouped_matmul",
    "lift",
    "matmul",
    "plus",
    "times",
]

_OF_ONE_LINE = "rows and columns of the kernel are one axis of a parameter"
_NOT_ZERO = "its value is not zero once removed, and the sum over it would change"


def matmul(call: OpCall, p: Propagation) -> None:
    """``mm``, ``bmm``, ``mv``, ``dot`` and their like."""
    left, right = call.args[:2]
    p.put(call.out, _product(p, left, right))


def add_matmul(call: OpCall, p: Propagation) -> None:
    """``addmm``, ``baddbmm``: a product plus a bias."""
    bias, left, right = call.args[:3]
    scales = (call.arg("beta"), call.arg("alpha"))
    scale_is_one = scales == (1, 1) and not any(p.sizes.may_vary(call, scale) for scale in scales)
    product = Operand(call.out.shape, _product(p, left, right, foldable=scale_is_one))
    layers = combine(p, [product, Operand.of(p, bias)], call.out.ndim, plus)
    p.put(call.out, layers if scale_is_one else [Layer(one.labels, zero_stays(one.removed)) for one in layers])


def grouped_matmul(call: OpCall, p: Propagation) -> None:
    """``torch.nn.functional.grouped_mm`` of rows ``(n, k)``, each with one of the matrices ``(e, k, m)``."""
    left, right, offsets = call.args[:3]
    if (left.ndim, right.ndim) != (2, 3) or any(isinstance(one, Tensor) for one in call.args[3:]):
        freeze_inputs(call, p)
        return
    p.freeze_value(offsets, "it tells which rows are whose")
    inside = p.narrow(p.layers(right), (1, 2), "rows choose one of them")
    of_one = [layer.map(lambda t: t.reshape(t.shape[1:])) for layer in inside]
    sides = [Operand.of(p, left), Operand(right.shape[1:], of_one, p.is_weight(right))]
    p.put(call.out, contract(p, sides, ("nk", "km"), "nm", foldable=False))


def any_width(edit: Editor, node: Node) -> None:
    """Kernels of grouped products take some widths only."""
    given = [edit.argument(node, i, name) for i, name in enumerate(("mat_a", "mat_b", "offs"))]
    edit.replace(node, grouped_mm_of_any_width, *given)


def _product(p: Propagation, left: Tensor, right: Tensor, foldable: bool = True) -> list[Layer]:
    batch = "ab"[: max(left.ndim, right.ndim) - 2]
    rows, columns = ("n" if left.ndim > 1 else ""), ("m" if right.ndim > 1 else "")
    terms = (batch[: max(left.ndim - 2, 0)] + rows + "k", batch[: max(right.ndim - 2, 0)] + "k" + columns)
    sides = [Operand.of(p, left), Operand.of(p, right)]
    if batch and p.attention == "head_dim" and not any(side.weight for side in sides):
        sides = [_alike_in_all_heads(p, side, len(batch)) for side in sides]
    return contract(p, sides, terms, batch + rows + columns, foldable and p.is_weight(right))


def _alike_in_all_heads(p: Propagation, side: Operand, batch: int) -> Operand:
    """Where labels form a grid of heads, which the product is batched over, and widths: all heads lose the same."""
    widths = range(batch, len(side.shape))
    layers = [
        p.narrow_to(layer, widths, "") if len(layer.dims) > 1 and layer.dims[0] < batch else layer
        for layer in side.layers
    ]
    return Operand(side.shape, [layer for layer in layers if layer is not None])


def contract(
    p: Propagation, sides: Sequence[Operand], terms: Sequence[str], result: str, foldable: bool
) -> list[Layer]:
    """Layers of ``einsum("terms[0],terms[1]->result")``, of two operands or more.

    Args:
        p: the engine.
        sides: the operands; a weight's columns are only read, never driven to zero.
        terms: a letter for each dimension of each side.
        result: a letter for each dimension of the result.
        foldable: whether a constant contribution of removed channels can move into a bias.
    """
    letters = result + "".join(letter for letter in dict.fromkeys("".join(terms)) if letter not in result)
    lifted = [lift(p, side, term, letters, len(result)) for side, term in zip(sides, terms, strict=True)]
    product = combine(p, lifted, len(letters), times, may_cross=False)
    pairs = zip(sides, lifted, strict=True)
    columns = [layer for side, one in pairs if side.weight and _can_be_zero(p, side) for layer in one.layers]
    return [total for layer in product if (total := _sum_out(p, layer, lifted[0], columns, len(result), foldable))]


def _can_be_zero(p: Propagation, side: Operand) -> bool:
    """Whether a weight is a parameter, all of which an optimizer can drive to zero; a buffer is what it is."""
    return all(bool((layer.removed == 0).all()) for layer in side.layers if not p.is_made_up(layer))


def lift(p: Propagation, side: Operand, term: str, letters: str, kept: int) -> Operand:
    """An operand with a dimension for each of ``letters``, in their order: of size 1 where ``term`` lacks it."""
    order = [term.index(letter) for letter in letters if letter in term]
    entries = tuple(slice(None) if letter in term else None for letter in letters)
    layers = [layer.map(lambda t: t.permute(order)[entries]) for layer in side.layers]
    if side.weight:
        layers = [_as_weight(p, layer, kept) for layer in layers]
    return Operand([side.shape[term.index(letter)] if letter in term else 1 for letter in letters], layers)


def _as_weight(p: Propagation, layer: Layer, kept: int) -> Layer:
    """A weight's rows are variables; its columns are only read, so nothing makes them zero."""
    # x (N, 5) times the weight (8, 5) of nn.Linear: output channel i is zero once row i is, so the optimizer drives
    # that row to zero: it is a variable of the group. Column j is cut when channel j of x goes; as that is zero by
    # then, the column may hold anything, and a penalty on it would only do harm.
    if all(dim < kept for dim in layer.dims):
        p.produce(layer.labels)
        return layer
    p.consume(layer.labels)
    return Layer.uniform(layer.labels)


def times(values: list[Tensor]) -> Tensor:
    """A product of removed values; of what is unknown and zero, zero."""
    zero = torch.stack([value == 0 for value in torch.broadcast_tensors(*values)]).any(0)
    return torch.where(zero, ZERO, math.prod(values))


def _sum_out(
    p: Propagation, layer: Layer, left: Operand, columns: Sequence[Layer], kept: int, foldable: bool
) -> Layer | None:
    """Sum over the dimensions from ``kept`` on."""
    survives = [dim for dim in layer.dims if dim < kept]
    if not survives:
        _consume(p, layer, left, columns, foldable)
        return None
    narrowed = p.narrow_to(layer, survives, "")
    assert narrowed is not None
    removed = zero_stays(narrowed.removed)
    shape = narrowed.labels.shape[:kept]
    return Layer(narrowed.labels.reshape(shape), removed.reshape(removed.shape[:kept]))


def _consume(p: Propagation, layer: Layer, left: Operand, columns: Sequence[Layer], foldable: bool) -> None:
    # Removed channels are often worth a constant, not 0: sigmoid(0) = 0.5. A sum over them then loses 0.5 times the
    # columns of the weight, the same for every input, which slicing adds to the bias where it can ("fold"). Where it
    # cannot, or what they are worth depends on data, the sum loses nothing if the columns are zero as well.
    bad = layer.removed != 0
    if not bad.any():
        return
    inputs = next((mine for mine in left.layers if mine.dims == layer.dims), None)
    worth = UNKNOWN if inputs is None else inputs.removed
    if foldable and p.can_adjust("fold") and inputs is not None and not worth.isnan().any():
        p.adjust("fold", inputs.labels, worth)
        return
    read = next((column for column in columns if column.dims == layer.dims), None)
    if read is None or not _may_be_silenced(p, worth):
        p.freeze_where(bad, layer.labels, _NOT_ZERO)
    else:
        p.silence(torch.where(bad, read.labels, 0))


def _may_be_silenced(p: Propagation, worth: Tensor) -> bool:
    """Whether zero weights take away what is not zero: infinity times zero is no number, and fewer draws are others."""
    return not worth.isinf().any() and not p.reads_drawn


def plus(values: list[Tensor]) -> Tensor:
    """A sum of removed values."""
    return values[0] + values[1]


def embedding(call: OpCall, p: Propagation) -> None:
    """Rows of a table: the table's columns become the result's last dimension."""
    weight, indices = call.args[:2]
    layers = []
    for layer in p.layers(weight):
        if layer.dims == (1,):
            p.produce(layer.labels)
            layers.append(layer.map(lambda t: align(t, indices.ndim + 1)))
        else:
            p.look_up(weight, layer.labels, indices, call.arg("padding_idx"))
    p.put(call.out, layers)


def count_padding_anew(edit: Editor, node: Node) -> None:
    """``F.embedding``: the row that does not learn is another one if rows before it are gone."""
    padding = edit.argument(node, 2, "padding_idx")
    weight = node.args[0] if isinstance(node.target, OpOverload) else edit.argument(node, 1, "weight")
    kept = edit.cut(weight).get(0)
    if kept is not None and padding is not None and padding >= 0:
        edit.set_argument(node, 2, "padding_idx", int((kept < padding).sum()))


def embedding_bag(call: OpCall, p: Propagation) -> None:
    """Sums, means and maxima of rows of a table: its columns become the columns of the result."""
    weights = call.arg("per_sample_weights")
    if weights is not None:
        p.freeze_value(weights, "it tells how much of each row is taken")
    layers = []
    for layer in p.layers(call.args[0]):
        if layer.dims == (1,):
            p.produce(layer.labels)
            layers.append(Layer(layer.labels, zero_stays(layer.removed)))
        else:
            p.look_up(call.args[0], layer.labels, call.args[1], -1)
    p.put(call.out, layers)


def embedding_renorm(call: OpCall, p: Propagation) -> None:
    """Rows of a table that are too long are shortened in place: columns that are zero add nothing to their length."""
    adds_nothing = call.arg("norm_type") > 0 and all(bool((one.removed == 0).all()) for one in p.layers(call.args[0]))
    if not adds_nothing:
        p.freeze_value(call.args[0], "its rows are made shorter, by a norm to which what is gone would add")


def convolution(call: OpCall, p: Propagation) -> None:
    """Convolution in any number of dimensions, transposed, grouped or depthwise."""
    source, weight, bias = call.args[:3]
    transposed, groups = call.arg("transposed"), call.arg("groups")
    spatial = source.ndim - 2
    still = [2 + i for i in range(spatial) if steps_by_one(call, p, i, weight.shape[2:])]
    beside = [layer for layer in p.layers(source) if min(layer.dims) >= 2 and not set(still).isdisjoint(layer.dims)]
    inputs = _channels(p, [layer for layer in p.layers(source) if layer not in beside])
    window = [layer for layer in p.layers(weight) if p.is_weight(weight) and min(layer.dims) >= 2]
    for layer in window:
        p.slide(layer.labels)
    kernel = _channels(p, [layer for layer in p.layers(weight) if layer not in window])
    sides = [Operand(source.shape[:2], inputs), Operand(weight.shape[:2], kernel, p.is_weight(weight))]
    if groups == 1:
        padded = any(n or p.sizes.may_vary(call, n) for n in call.arg("padding"))
        foldable = p.is_weight(weight) and not transposed and not padded
        layers = contract(p, sides, ("bc", "co" if transposed else "oc"), "bo", foldable)
    else:
        by_image = p.narrow([layer for layer in inputs if 0 in layer.dims], (0,), "")
        sides[0] = Operand(source.shape[:2], [layer for layer in inputs if layer.dims == (1,)])
        layers = _grouped(p, sides, groups, transposed, call.out.size(1))
        layers += [Layer(layer.labels, zero_stays(layer.removed)) for layer in by_image]
    if bias is not None:
        layers = combine(p, [Operand(call.out.shape[:2], layers), Operand.of(p, bias)], 2, plus)
    layers = [layer.map(lambda t: t[(...,) + (None,) * spatial]) for layer in layers]
    keeps_zero = bias is None
    for layer in p.narrow(beside, still, SLIDES):
        layers.append(Layer(layer.labels, zero_stays(layer.removed)) if keeps_zero else Layer.uniform(layer.labels))
    p.put(call.out, layers)


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
    if not _can_be_zero(p, kernel) or not _may_be_silenced(p, incoming.removed):
        p.freeze_where(bad, incoming.labels, _NOT_ZERO)
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


def add_folded(edit: Editor, node: Node, contribution: Tensor) -> None:
    """Add what removed input channels contributed to the outputs, shape ``(outputs,)``."""
    spatial = 0 if op_name(node).lower() == "linear" else len(edit.shape(node)) - 2
    constant = edit.constant("folded", contribution.reshape(-1, *[1] * spatial), node.next, node)
    edit.adopt(edit.append(node, torch.add, constant), node)
