"""Rules for elementwise ops: layers that vary along a common dimension are united."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from fx_oto.analysis.engine import FIXED, Propagation
from fx_oto.analysis.labels import UNKNOWN, Layer, align, compress
from fx_oto.analysis.result_forms import tensors_in
from fx_oto.analysis.tape import OpCall
from fx_oto.core.fx_utils import behind, is_random, tensor_leaves
from fx_oto.ops.rows_and_columns import Member, taken_apart
from fx_oto.ops.slopes import PROBES, functional, likeness, note_steep, stand_ins

__all__ = ["Operand", "clusters", "combine", "elementwise", "evaluated", "functional", "glu", "join", "known_number"]
__all__ += ["overwrite", "pointwise", "with_other_sizes"]

# Ops in which an operand that is known can decide the result, whatever the others are: 0 · x, 0 / x, where(x, a, a).
_ABSORBING = {"mul", "div", "floor_divide", "where", "masked_fill", "addcmul", "addcdiv", "lerp", "native_dropout"}
_ABSORBING |= {"_prelu_kernel"}
_FACTORS_BY_CHANCE = {"native_dropout", "dropout", "rrelu_with_noise"}  # 0 · r is 0, whatever r is
_IGNORING = {"zeros_like", "ones_like", "full_like", "fill", "zero"}
DIFFERENT = "training and evaluation return different things here"
# What a number made of sizes may be on other inputs.
_OTHER_SIZES: list[Callable[[float], float]] = [
    lambda n: 2 * n + 1,
    lambda n: 5 * n + 2,
    lambda n: 1 if isinstance(n, int) else n / 9,
]
_OTHER_SIGNS: list[Callable[[float], float]] = [lambda n: n - 1, lambda n: -3 * n - 1]


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A tensor operand: its shape and layers, whether it is a parameter, and the tensor, if it is one as it is."""

    shape: Sequence[int]
    layers: Sequence[Layer]
    weight: bool = False
    value: Tensor | None = None

    @classmethod
    def of(cls, p: Propagation, tensor: Tensor) -> Operand:
        """A tensor as it is."""
        return cls(tensor.shape, p.layers(tensor), p.is_weight(tensor), tensor)


def pointwise(call: OpCall, p: Propagation) -> None:
    """Any elementwise op, under broadcasting."""
    operands = [Operand.of(p, t) for t in call.inputs]
    if any(operand.layers for operand in operands):
        layers = elementwise(call, p, operands, call.out.ndim, partial(_evaluated_once, p))
        note_steep(call, p)
        for out in call.outputs:
            p.put(out, layers)


pointwise.is_elementwise = True  # type: ignore[attr-defined]


def elementwise(
    call: OpCall,
    p: Propagation,
    operands: Sequence[Operand],
    ndim: int,
    evaluate: Callable[[OpCall, list[Tensor]], Tensor],
) -> list[Layer]:
    """Layers of the result of an op that works element by element.

    Args:
        call: the call.
        p: the engine.
        operands: the call's tensors, so that they broadcast.
        ndim: dimensions of the result.
        evaluate: computes what a call returns for removed values, one tensor for each operand, NaN for unknown.
    """
    known = {place: one for place, t in enumerate(call.inputs) if (one := known_number(p, t, ndim)) is not None}
    calls = [call, *with_other_sizes(call, p)]

    def worth(values: list[Tensor]) -> Tensor:
        filled = [known.get(place, value) for place, value in enumerate(values)]
        return _agreed([evaluate(one, filled) for one in calls])

    return combine(p, operands, ndim, worth)


def with_other_sizes(call: OpCall, p: Propagation) -> list[OpCall]:
    """The same call on inputs of other sizes: with other numbers in the place of those that may be made of sizes."""
    if not p.sizes.are_read:
        return []

    def changed(change: Callable[[float], float]) -> tuple[Any, Any]:
        args, kwargs = tree_map(
            lambda leaf: change(leaf) if p.sizes.may_vary(call, leaf) else leaf, (call.args, call.kwargs)
        )
        return args, kwargs

    changes = _OTHER_SIZES + _OTHER_SIGNS if p.sizes.are_signed else _OTHER_SIZES
    return [replace(call, args=args, kwargs=kwargs) for args, kwargs in map(changed, changes)]


def _agreed(ways: Sequence[Tensor]) -> Tensor:
    """Return what all results agree on, and NaN where they differ."""
    removed = ways[0]
    for other in ways[1:]:
        removed = torch.where((removed == other) | (ways[0] == math.inf), removed, UNKNOWN)
    return removed


def known_number(p: Propagation, tensor: Tensor, ndim: int) -> Tensor | None:
    """The content of a constant of one element, such as a bound or a temperature in a buffer."""
    content = p.constant(tensor) if tensor.numel() == 1 else None
    return None if content is None else content.to("cpu", torch.float64).reshape((1,) * ndim)


def glu(call: OpCall, p: Propagation) -> None:
    """``glu``: the first half times the sigmoid of the second, so their channels are coupled in pairs."""
    source = call.args[0]
    dim = int(call.arg("dim")) % source.ndim
    width = call.out.size(dim)

    def half(which: int) -> Operand:
        layers = [
            layer.map(lambda t: t.narrow(dim, which * width, width) if t.size(dim) > 1 else t)
            for layer in p.layers(source)
        ]
        return Operand(call.out.shape, layers)

    def worth(values: list[Tensor]) -> Tensor:
        return torch.where(values[0] == 0, values[0], values[0] * values[1].sigmoid())

    p.put(call.out, combine(p, [half(0), half(1)], source.ndim, worth))


def overwrite(call: OpCall, p: Propagation) -> None:
    """``copy_`` and ``fill_``: the second operand's values in the place of the first."""
    if not isinstance(call.args[1], Tensor):
        pointwise(call, p)
        return
    operands = [Operand.of(p, t) for t in call.inputs[:2]]
    number = known_number(p, call.inputs[1], call.out.ndim)
    p.put(call.out, combine(p, operands, call.out.ndim, lambda values: values[1] if number is None else number))


def join(call: OpCall, p: Propagation) -> None:
    """``by_mode``: one of two values, depending on the mode; the labels of both are united.

    A removed element's worth is known where both modes agree on it. Where training draws random numbers, which never
    agree, it is the one in evaluation. What varies along a dimension of which the modes have other sizes, such as
    tokens that training drops, is kept whole.
    """
    _, *sides = call.args
    left, right = map(tensor_leaves, sides)
    by_chance = _draws_in_training(p.fx_node)
    if [t.ndim for t in left] != [t.ndim for t in right]:
        for value in (*left, *right):
            p.freeze_value(value, DIFFERENT)
        return
    for one, other in zip(left, right, strict=True):
        differing = [dim for dim in range(one.ndim) if one.size(dim) != other.size(dim)]
        for value in (one, other):
            p.keep_along(value, differing, DIFFERENT)
        operands = [Operand.of(p, t) for t in (one, other)]
        layers = combine(p, operands, one.ndim, (lambda values: values[1]) if by_chance else _agreed)
        for value in (one, other):
            p.put(value, layers)


def _draws_in_training(node: Node) -> bool:
    """Return whether the value that ``by_mode`` chooses in training depends on random numbers."""
    _, training, evaluation = node.args
    return any(map(is_random, behind(training) - behind(evaluation)))


def combine(
    p: Propagation,
    operands: Sequence[Operand],
    ndim: int,
    worth: Callable[[list[Tensor]], Tensor],
    *,
    may_cross: bool = True,
) -> list[Layer]:
    """Layers of an elementwise result.

    Args:
        p: the engine.
        operands: the tensors that are combined under broadcasting.
        ndim: dimensions of the result.
        worth: the op on removed values, one tensor for each operand, NaN for unknown.
        may_cross: whether a grid that meets what varies along one of its axes only may keep another axis.
    """
    # x (N, 16, H, W) + y (N, 16, 1, 1): both vary along 1, so channel i of x and of y get one label, and go together.
    # x (heads, width) + y (1, width): the labels of x are a grid, of which heads or widths go, and nobody knows yet
    # which. y is "thin": its columns go with those of x if widths go, and stay if heads do.
    groups = _group([_whole(p, operand) for operand in operands], ndim)
    layers = []
    for dims, members in (part for group in groups for part in taken_apart(p, *group)):
        members.sort(key=lambda member: -len(member[1].dims))
        labels, thin = members[0][1].labels, _thin(members, operands, ndim) if may_cross else []
        removed = _removed(operands, members, thin, ndim, worth)
        if thin and not (removed == 0).all():  # what is removed depends on which axis survives
            thin = []
            removed = _removed(operands, members, thin, ndim, worth)
        if (removed == math.inf).any():
            p.freeze_where(removed == math.inf, labels, "once zero, it would be 0 / 0 or the like")
            _note_divisors(p, operands, members, lambda others: _removed(operands, others, [], ndim, worth))
            removed = torch.where(removed == math.inf, UNKNOWN, removed)
        for member in members[1:]:
            couple = p.crossing if member in thin else p.unite
            couple(labels, member[1].labels)
        # x (8,) and y (8,) with labels, z (8,) without: z is kept whole, so x + y + z is as well. Where z is (1,), it
        # does not vary, and nothing of it would have to go.
        present = {position for position, _ in members}
        absent = [operand.shape for position, operand in enumerate(operands) if position not in present]
        free = {dim for dim in dims if not any(_spans(shape, ndim, {dim}) for shape in absent)}
        whole = Layer(labels, removed)
        result = whole if free == dims else p.narrow_to(whole, free, FIXED)
        if result is None:
            continue  # untracked, like what it is combined with
        for position, layer in members:
            if operands[position].weight:
                p.produce(layer.labels)
        layers.append(result)
    return layers


def _note_divisors(
    p: Propagation, operands: Sequence[Operand], members: Sequence[Member], removed: Callable[..., Tensor]
) -> None:
    """Of ``x / scale``, the scale must not be zero: were it anything else, the result would be a number."""
    for at, (position, layer) in enumerate(members):
        value, other = operands[position].value, (position, Layer.uniform(layer.labels))
        if value is not None and not (removed([*members[:at], other, *members[at + 1 :]]) == math.inf).any():
            p.keep_from_zero(value, layer.labels)


def _thin(members: Sequence[Member], operands: Sequence[Operand], ndim: int) -> list[Member]:
    """Those that vary along one dimension, where the first varies along several, over which they are broadcast."""
    grid = set(members[0][1].dims)
    tracked: dict[int, set[int]] = {}
    for position, layer in members:
        tracked.setdefault(position, set()).update(layer.dims)
    return [
        (position, layer)
        for position, layer in members
        if len(layer.dims) == 1 < len(grid) and not _spans(operands[position].shape, ndim, grid - tracked[position])
    ]


def _removed(
    operands: Sequence[Operand],
    members: Sequence[Member],
    thin: Sequence[Member],
    ndim: int,
    worth: Callable[[list[Tensor]], Tensor],
) -> Tensor:
    """Return the worth of removed elements, whichever axis of a grid survives; NaN where that makes a difference.

    A bias of shape (heads, width) loses its rows where whole heads go, and its columns where a part of their width
    does: queries that are zero stay zero with it either way. One of shape (heads, 1) stays where a part of the width
    goes.
    """
    fat = [member for member in members if member not in thin]
    axes = [(dim,) for dim in members[0][1].dims] if thin else [()]
    ways = []
    for axis in axes:
        known = fat + [member for member in thin if member[1].dims == axis]
        ways.append(worth([_worth(position, known, ndim) for position in range(len(operands))]))
    return _agreed(ways)


def _whole(p: Propagation, operand: Operand) -> Operand:
    """Without grids of which a part is kept whole, and without what is a single index: no slice of them can go."""
    partly = [one for one in operand.layers if not one.dims or (len(one.dims) > 1 and not one.labels.all())]
    for layer in partly:
        p.freeze(layer.labels, FIXED)
    return Operand(operand.shape, [layer for layer in operand.layers if layer not in partly], operand.weight)


def _group(operands: Sequence[Operand], ndim: int) -> list[tuple[set[int], list[Member]]]:
    """Layers of all operands, grouped so that those that vary along a common dimension are together.

    Where ``(heads, width)`` is a grid, ``(1, heads, 1, width)``, all that varies along 1 or 3 is one group, and what
    varies along 2, such as tokens, is another.
    """
    aligned = [
        (position, Layer(align(layer.labels, ndim), align(layer.removed, ndim)))
        for position, operand in enumerate(operands)
        for layer in operand.layers
    ]
    return [
        (dims, [member for member in aligned if dims.intersection(member[1].dims)])
        for dims in clusters(layer.dims for _, layer in aligned)
    ]


def clusters(all_dims: Iterable[tuple[int, ...]]) -> list[set[int]]:
    """Sets of dimensions that some layer ties together: of (0), (1, 2), (2, 3), these are {0} and {1, 2, 3}."""
    found: list[set[int]] = []
    for dims in map(set, all_dims):
        touching = [cluster for cluster in found if cluster & dims]
        found = [cluster for cluster in found if not cluster & dims] + [dims.union(*touching)]
    return found


def _spans(shape: Sequence[int], ndim: int, dims: set[int]) -> bool:
    """Return whether a tensor, broadcast to ``ndim`` dimensions, is longer than 1 along one of ``dims``."""
    lead = ndim - len(shape)
    return any(dim >= lead and shape[dim - lead] > 1 for dim in dims)


def _worth(position: int, members: list[Member], ndim: int) -> Tensor:
    mine = [layer.removed for place, layer in members if place == position]
    if len(mine) > 1 and all(bool((removed == 0).all()) for removed in mine):
        return mine[0]
    return mine[0] if len(mine) == 1 else UNKNOWN.view((1,) * ndim)


def evaluated(call: OpCall, values: list[Tensor]) -> Tensor:
    """Run the op on removed values; where an unknown one decides the result, it is unknown."""
    name = call.name.removesuffix("_")
    if name == "empty_like":  # as ``movement.create``
        return torch.zeros_like(values[0])
    if torch.Tag.nondeterministic_seeded in call.func.tags:
        zero = (values[0] == 0) & (name in _FACTORS_BY_CHANCE)
        return torch.where(zero, values[0], UNKNOWN)
    # 0 · x is 0 for any x, so it is worth a trial with several x; x + 1 of an unknown x needs none.
    absorbs = name in _IGNORING or (name in _ABSORBING and not all(bool(value.isnan().all()) for value in values))
    if not absorbs:
        unknown = torch.stack(torch.broadcast_tensors(*[value.isnan() for value in values])).any(0)
        if unknown.any():
            known = _probe(call, [torch.nan_to_num(value) for value in values]) if not unknown.all() else UNKNOWN
            return torch.where(unknown, UNKNOWN, known)
    return _probe(call, values)


def _evaluated_once(p: Propagation, call: OpCall, values: list[Tensor]) -> Tensor:
    key = ("worth", likeness(call, values))
    if key not in p.memo:
        p.memo[key] = evaluated(call, values)
    return cast(Tensor, p.memo[key])


def _probe(call: OpCall, values: list[Tensor]) -> Tensor:
    """Run the op on several stand-ins for what is unknown: what all agree on is known."""
    unknown = UNKNOWN.view((1,) * values[0].ndim)
    args, kwargs = stand_ins(call, values)
    try:
        results = _real(tensors_in([functional(call.func)(*args, **kwargs)])[0])
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):
        return unknown
    if results.size(0) != PROBES:  # nothing unknown came in, or the op ignores its operands
        results = results.expand(PROBES, *results.shape[1:])
    agree = (results == results[0]).all(0)
    known = torch.where(agree, results[0], UNKNOWN)
    known = torch.where(agree | results.isfinite().any(0), known, math.inf)  # x / 0, whatever x is
    if len(values) == 1 and all(math.isfinite(one) for one in tree_leaves(call.args[1:]) if type(one) is float):
        known = torch.where(known.isinf() & values[0].isfinite(), math.inf, known)  # the logarithm of 0
    if not any(value.isnan().any() for value in values):  # what is no number, although all is known
        known = torch.where(results[0].isnan(), math.inf, known)
    return compress(known)


def _real(results: Tensor) -> Tensor:
    """Results as numbers; a complex one that is not real is unknown."""
    if results.is_complex():
        return torch.where(results.imag == 0, results.real, UNKNOWN).to(torch.float64)
    return results.to(torch.float64)
