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

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import UNKNOWN, ZERO, Layer, align, worth_along, zero_stays
from fx_oto.analysis.tape import OpCall
from fx_oto.core.errors import SettingsError
from fx_oto.core.fx_utils import op_name
from fx_oto.nn.products import grouped_mm_of_any_width
from fx_oto.ops.editor import Editor
from fx_oto.ops.pointwise import Operand, combine
from fx_oto.ops.refusals import freeze_inputs
from fx_oto.ops.rows_and_columns import partner

__all__ = [
    "NOT_ZERO",
    "add_folded",
    "add_matmul",
    "any_width",
    "can_be_zero",
    "contract",
    "count_padding_anew",
    "embedding",
    "embedding_bag",
    "embedding_renorm",
    "grouped_matmul",
    "lift",
    "matmul",
    "may_be_silenced",
    "plus",
    "times",
]

NOT_ZERO = "its value is not zero once removed, and the sum over it would change"


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
    weighted = any(side.weight for side in sides)
    product = combine(p, lifted, len(letters), times, may_cross=weighted)
    pairs = zip(sides, lifted, strict=True)
    columns = [layer for side, one in pairs if side.weight and can_be_zero(p, side) for layer in one.layers]
    kept, left = len(result), lifted[0]
    settled = [_settled(p, layer, kept) for layer in product]
    totals = [_sum_out(p, layer, left, columns, kept, foldable, may_wait=weighted) for layer in settled]
    return [total for total in totals if total is not None]


def can_be_zero(p: Propagation, side: Operand) -> bool:
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


def _settled(p: Propagation, layer: Layer, kept: int) -> Layer:
    """A layer without those of the first dimensions along which all goes together by now.

    Of ``x @ x.mT``, in which x (N, 4, 16) has other channels in each row, each row meets all others.
    """
    inside = any(dim >= kept for dim in layer.dims)
    for dim in layer.dims if inside else ():
        roots = p.atoms.find(layer.labels)
        if dim < kept and torch.equal(roots, roots.narrow(dim, 0, 1).expand_as(roots)):
            rest = [one for one in layer.dims if one != dim]
            layer = Layer(layer.labels.narrow(dim, 0, 1), worth_along(layer.removed, rest))
    return layer


def _sum_out(
    p: Propagation, layer: Layer, left: Operand, columns: Sequence[Layer], kept: int, foldable: bool, *, may_wait: bool
) -> Layer | None:
    """Sum over the dimensions from ``kept`` on."""
    survives = [dim for dim in layer.dims if dim < kept]
    if not survives:
        _consume(p, layer, left, columns, foldable)
        return None
    # y (N, 6, 16) times the weight (3, 16) of nn.Linear: of the grid (6, 16) rows may go, with those of the result, or
    # columns, with those of the weight, which takes nothing from a sum. Nobody knows yet which.
    waits = may_wait and len(layer.dims) > len(survives) == 1 and bool((layer.removed == 0).all())
    narrowed = p.rows_of(layer, survives[0]) if waits else p.narrow_to(layer, survives, "")
    assert narrowed is not None
    removed = zero_stays(narrowed.removed)
    shape = narrowed.labels.shape[:kept]
    return Layer(narrowed.labels.reshape(shape), removed.reshape(removed.shape[:kept]))


def _consume(p: Propagation, layer: Layer, left: Operand, columns: Sequence[Layer], foldable: bool) -> None:
    # Removed channels are often worth a constant, not 0: sigmoid(0) = 0.5. A sum over them then loses 0.5 times the
    # columns of the weight, the same for every input, which slicing adds to the bias where it can ("fold"; of rows and
    # columns in one dimension, twice). Else the sum loses nothing if the columns of the weight are zero as well.
    bad = layer.removed != 0
    if not bad.any():
        return
    inputs, lines = partner(left.layers, layer), [mine.labels for mine in left.layers if mine.dims == layer.dims]
    worth = UNKNOWN if inputs is None else inputs.removed
    if foldable and len(lines) == 1 and p.can_adjust("fold") and not worth.isnan().any():
        p.adjust("fold", lines[0], worth)
        return
    if (read := partner(columns, layer)) is None or not may_be_silenced(p, worth):
        p.freeze_where(bad, layer.labels, NOT_ZERO)
    else:
        p.silence(torch.where(bad, read.labels, 0))


def may_be_silenced(p: Propagation, worth: Tensor) -> bool:
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
            _look_up(p, weight, layer.labels, indices, call.arg("padding_idx"))
    p.put(call.out, layers)


def _look_up(p: Propagation, table: Tensor, rows: Tensor, ids: Tensor, padding: int) -> None:
    """Rows of a table are looked up: they can go if the ids are an input's, which can be counted anew.

    Args:
        p: the engine.
        table: shape ``(rows, columns)``.
        rows: their atoms, of any shape.
        ids: the tensor of ids.
        padding: the id of the row that does not learn; negative if all do.

    Raises:
        SettingsError: a token that is to be kept is none of the rows.
    """
    token, rows = p.vocabularies.ids.get(id(ids)), rows.reshape(-1)
    if token is None:
        p.freeze(rows, "it is the vocabulary that indices look up")
        return
    if len(rows) == table.size(1):
        p.freeze(rows, "a table with as many rows as columns does not tell tokens from features in the outputs")
        return
    kept = [*p.vocabularies.kept, *([padding] if padding >= 0 else [])]
    if kept and not 0 <= min(kept) <= max(kept) < len(rows):
        raise SettingsError(f"keep_tokens must be ids of the {len(rows)} tokens of {token.name!r}, found {kept}")
    others = p.vocabularies.rows.setdefault(token, rows)
    if len(others) != len(rows):
        for labels in (rows, others):
            p.freeze(labels, "one id looks up rows of tables of different lengths")
        return
    p.produce(rows)
    p.unite(rows, others)
    p.freeze(rows[kept], "it is a token that is kept in any case")


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
            _look_up(p, call.args[0], layer.labels, call.args[1], -1)
    p.put(call.out, layers)


def embedding_renorm(call: OpCall, p: Propagation) -> None:
    """Rows of a table that are too long are shortened in place: columns that are zero add nothing to their length."""
    adds_nothing = call.arg("norm_type") > 0 and all(bool((one.removed == 0).all()) for one in p.layers(call.args[0]))
    if not adds_nothing:
        p.freeze_value(call.args[0], "its rows are made shorter, by a norm to which what is gone would add")


def add_folded(edit: Editor, node: Node, contribution: Tensor) -> None:
    """Add what removed input channels contributed to the outputs, shape ``(outputs,)``."""
    spatial = 0 if op_name(node).lower() == "linear" else len(edit.shape(node)) - 2
    constant = edit.constant("folded", contribution.reshape(-1, *[1] * spatial), node.next, node)
    edit.adopt(edit.append(node, torch.add, constant), node)
