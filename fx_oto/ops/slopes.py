"""Ops whose derivative is not finite where what goes is removed, such as the root of a variance that is zero.

What a training has made zero stays in the model until it is cut, and gradients go through it: a NaN there would reach
all weights behind. ``sqrt(0)`` is exact, and its derivative is infinite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import UNKNOWN, Layer, align
from fx_oto.analysis.result_forms import tensors_in
from fx_oto.analysis.tape import OpCall, macs_of_all

__all__ = ["PROBES", "functional", "likeness", "note_steep", "stand_ins"]

# Stand-ins for an operand that is not known.
_PROBES = torch.tensor([-1.3, 0.7, 2.9, -41.0, 33.0], dtype=torch.float64, device="cpu")
PROBES = len(_PROBES)
_STOPS = {"detach", "detach_", "lift_fresh"}


def note_steep(call: OpCall, p: Propagation) -> None:
    """Note what must not be zero in a training: where the derivative is not finite, and reaches weights that stay.

    Of ``conv(x).square().mean().sqrt()``, the gradient of a removed channel is NaN, and so is that of ``x``. A ReLU
    behind ``conv`` lets no gradient through where it is zero, and the same code does no harm.
    """
    for position in _not_finite(call, p, among=False):
        value = call.inputs[position]
        reached = list(_reached(p, value, set()))
        for layer in p.layers(value):
            for is_weight in {is_weight for is_weight, _ in reached}:
                ends = torch.cat([labels for which, labels in reached if which == is_weight])
                p.steep(layer.labels, ends, is_weight)


def _reached(p: Propagation, value: Tensor, seen: set[int]) -> Iterator[tuple[bool, Tensor]]:
    """Where a gradient goes that is not finite where elements of a value are removed.

    Yields:
        Whether it is a parameter, of which only what is zero gets such a gradient, or else what a contraction returns,
        through which it goes to all that is before; and its labels, ``(n,)``.
    """
    call = p.maker(value)
    if id(value) in seen or (call is not None and call.name in _STOPS):
        return
    seen.add(id(value))
    sources = [] if call is None else [call.inputs[position] for position in _not_finite(call, p, among=True)]
    # Of what is written in place only the last call is known.
    if call is None or macs_of_all([call]) or any(one is value for one in sources):
        yield from ((call is None, layer.labels.reshape(-1)) for layer in p.layers(value))
        return
    for source in sources:
        yield from _reached(p, source, seen)


def _not_finite(call: OpCall, p: Propagation, among: bool) -> list[int]:
    """The operands whose gradient is not finite somewhere where they are removed.

    Args:
        call: the call.
        p: the engine.
        among: whether that of the result is not either.
    """
    operands = call.inputs
    tracked = [i for i, one in enumerate(operands) if p.layers(one)]
    if not getattr(p.rule_for(call.func), "is_elementwise", False):
        return tracked if among else []  # other ops have finite derivatives, and stop nothing
    return [i for i in tracked if any(_is_steep(call, p, i, layer, among) for layer in p.layers(operands[i]))]


def _is_steep(call: OpCall, p: Propagation, position: int, layer: Layer, among: bool) -> bool:
    wide = call.out.ndim
    values = [_beside(p, one, [dim - layer.labels.ndim for dim in layer.dims], wide) for one in call.inputs]
    values[position] = align(layer.removed, wide)
    key = ("steep", position, among, likeness(call, values))
    if key not in p.memo:
        p.memo[key] = _gradient_is_steep(call, values, position, among)
    return bool(p.memo[key])


def likeness(call: OpCall, values: Sequence[Tensor]) -> str:
    """What decides what a call makes of values: all it is given, but of tensors their types alone, and the values."""
    given = tree_map(lambda one: one.dtype if isinstance(one, Tensor) else one, (call.args, call.kwargs))
    return f"{call.func} {given} {[one.tolist() for one in values]}"


def _beside(p: Propagation, other: Tensor, places: Sequence[int], wide: int) -> Tensor:
    """What an operand is worth where another one is removed along some dimensions, from the last; NaN if unknown."""
    for layer in p.layers(other):
        if any(dim - other.ndim in places for dim in layer.dims):
            return align(layer.removed, wide)
    return UNKNOWN.view((1,) * wide)


def _gradient_is_steep(call: OpCall, values: Sequence[Tensor], position: int, among: bool) -> bool:
    operands: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        operands.append(value.clone().requires_grad_(value.is_floating_point()))
        return operands[-1]

    try:
        args, kwargs = tree_map(leaf, stand_ins(call, values))
        with torch.enable_grad():
            out = tensors_in([functional(call.func)(*args, **kwargs)])[0]
            coming = torch.full_like(out, torch.nan if among else 1.0)
            (found,) = torch.autograd.grad(out, operands[position : position + 1], coming, allow_unused=True)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):
        return among  # what cannot be tried out is steep nowhere, and stops nothing
    known = ~values[position].isnan().unsqueeze(0)
    return found is not None and bool((~found.isfinite() & known).any())


def stand_ins(call: OpCall, values: Sequence[Tensor]) -> tuple[Any, dict[str, Any]]:
    """The arguments of a call with removed values, several stand-ins for what is unknown, in a dimension of their own.

    Removed values of shapes ``(1, 8, 1)`` and ``(1, 1, 1)`` become operands of shapes ``(5, 1, 8, 1)`` and
    ``(5, 1, 1, 1)``. The stand-ins of each operand come in another order, so that ``x - y`` is not 0 in all of them.
    """
    remaining = iter(range(len(values)))

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        position = next(remaining)
        value = values[position].unsqueeze(0)
        probes = _PROBES.roll(position).view(-1, *[1] * (value.ndim - 1))
        if leaf.dtype.is_complex:
            return torch.where(value.isnan(), probes * (1 + 0.5j), value)
        filled = torch.where(value.isnan(), probes, value)
        if leaf.dtype is torch.bool:
            return filled > 0
        return filled if leaf.dtype.is_floating_point else filled.to(leaf.dtype)

    args, kwargs = tree_map(fill, (call.args, {k: v for k, v in call.kwargs.items() if k != "dtype"}))
    return args, kwargs


def functional(func: Any) -> Any:
    """The op that returns what an in-place one writes.

    Raises:
        AttributeError: there is none.
    """
    if not func._schema.is_mutable:
        return func
    name = func._schema.name.split("::")[1]
    return getattr(getattr(torch.ops.aten, name.removesuffix("_")), func._overloadname)
