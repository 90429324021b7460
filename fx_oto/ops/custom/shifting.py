"""The rule for users' ops that move elements: one run on numbered elements tells where they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import Layer, compress, laid_along, varying
from fx_oto.analysis.sizes import PLACE
from fx_oto.analysis.tape import OpCall
from fx_oto.core.errors import RuleError
from fx_oto.ops.custom.elements import run_on
from fx_oto.ops.movement.rules import carried
from fx_oto.ops.pointwise import with_other_sizes

__all__ = ["Movement"]


@dataclass(frozen=True)
class Movement:
    """The rule that ``fx_oto.kinds.movement`` makes."""

    move: Callable[..., Any] | None = None

    mixing = False

    def __call__(self, call: OpCall, p: Propagation) -> None:
        """Follow a call."""
        if len(call.inputs) != 1:
            raise RuleError(
                f"movement expects an op of one tensor, but {call.name} has {len(call.inputs)}: use another kind"
            )
        source = call.inputs[0]
        numbers = torch.arange(source.numel()).view(source.shape)
        moved = self._run(call, numbers)
        if (
            moved is None
            or not self._moves_alike(call, numbers, moved)
            or [one.shape for one in moved] != [out.shape for out in call.outputs]
        ):
            why = (
                f"{call.name} does not return the numbered elements that it is given, each always in the same place: "
                "if it only moves elements, use the rule movement(move=…)"
            )
            p.freeze_value(source, why)
            for out in call.outputs:
                p.put(out, ())
            return
        if any(not _same(self._run(one, numbers), moved) for one in with_other_sizes(call, p)):
            p.keep_along(source, range(source.ndim), PLACE)
        shift = _Shift(call, p, moved, partial(self._run, call))
        for which, out in enumerate(call.outputs):
            p.put(out, [layer for one in p.layers(source) if (layer := shift.after(one, which)) is not None])
            if p.is_weight(source):
                p.put_weight(out)

    def _moves_alike(self, call: OpCall, numbers: Tensor, moved: Sequence[Tensor]) -> bool:
        """Return whether it moves other numbers, with another seed, in the same way: it neither sorts nor shuffles."""
        order = torch.randperm(numbers.numel(), generator=torch.Generator().manual_seed(0))
        again = self._run(call, order.view(numbers.shape), seed=1)
        return again is not None and all(
            torch.equal(order[one], other) for one, other in zip(moved, again, strict=True)
        )

    def _run(self, call: OpCall, numbers: Tensor, seed: int = 0) -> list[Tensor] | None:
        """Where each element of each result comes from."""
        for counted in (numbers + 1, (numbers + 1).double()):
            results = run_on(call, [counted], self.move, seed)
            if results is None:
                continue
            found = [result.long() - 1 for result in results]
            if _lossless(results, found, numbers):
                return found
        return None

    def __repr__(self) -> str:
        return "movement()" if self.move is None else f"movement({getattr(self.move, '__name__', self.move)})"


def _same(found: Sequence[Tensor] | None, expected: Sequence[Tensor]) -> bool:
    return found is not None and len(found) == len(expected) and all(map(torch.equal, found, expected))


def _lossless(results: Sequence[Tensor], found: Sequence[Tensor], numbers: Tensor) -> bool:
    """Return whether the results hold numbers of elements, and their type can hold all of these."""
    if not numbers.numel():
        return True
    top = int(numbers.max()) + 1
    for result, positions in zip(results, found, strict=True):
        if result.is_floating_point() and top >= 1 / torch.finfo(result.dtype).eps:
            return False
        if (
            not torch.equal((positions + 1).to(result.dtype), result)
            or (positions < 0).any()
            or (positions >= top).any()
        ):
            return False
    return True


@dataclass(eq=False)
class _Shift:
    """A movement whose every element is known.

    Attributes:
        moved: for each result, where each of its elements lies in the flattened source.
        run: what the op makes of other numbers.
    """

    call: OpCall
    p: Propagation
    moved: Sequence[Tensor]
    run: Callable[[Tensor], list[Tensor] | None]
    selecting: bool = field(default=False, init=False)

    def after(self, layer: Layer, which: int) -> Layer | None:
        """The layer of a result, along the dimensions of which slices can go; None where there are none."""
        results = carried(layer, self._move, len(self.moved))
        result, labels = results[which], [one.labels for one in (layer, *results)]
        fitting = [dim for dim in result.dims if self._fits(labels, result.labels, dim)]
        if len(fitting) == len(result.dims) or self._selects(layer, result):
            return result
        why = f"{self.call.name} does not do to a smaller tensor what it does to this one"
        return self.p.narrow_to(result, fitting, why)

    def _move(self, labels: Tensor) -> list[Tensor]:
        flat = labels.expand(self.call.inputs[0].shape).reshape(-1)
        return [compress(flat[one]) for one in self.moved]

    def _fits(self, labels: Sequence[Tensor], result: Tensor, dim: int) -> bool:
        """Return whether slices of a result can go: of what is left of its input, the op makes what is left of it."""
        trials = list(_slices(result, dim))
        return bool(trials) and all(self._leaves([_rectangle(one, gone) for one in labels]) for gone in trials)

    def _leaves(self, kept: Sequence[dict[int, Tensor] | None]) -> bool:
        """Return whether the op makes what is kept of its results out of what is kept of its input, the first.

        Of ``(N, 8)``, a flip of the channels leaves 7, …, 1 once 0 is gone, which is the flip of 1, …, 7. A shuffle of
        2 groups, 0, 4, 1, 5, …, does not: of 1, …, 7 it cannot make equal groups.
        """
        if any(cut is None for cut in kept):
            return False
        shape = self.call.inputs[0].shape
        whole = (torch.arange(shape.numel()).view(shape), *self.moved)
        numbers, *expected = (_taken(one, cut or {}) for one, cut in zip(whole, kept, strict=True))
        return numbers.numel() > 0 and _same(self.run(numbers), expected)

    def _selects(self, before: Layer, after: Layer) -> bool:
        """Return whether slicing can replace it by a selection along one dimension; if so, note that it will."""
        source, p = self.call.inputs[0], self.p
        alone = before.dims == after.dims and len(before.dims) == len(self.moved) == 1 and not self.selecting
        if not alone or not p.rewritable or self.moved[0].ndim != source.ndim:
            return False
        dim = before.dims[0]
        for other, size in enumerate(source.shape):
            line = laid_along(torch.arange(size), other, source.ndim)
            found = self._move(line)[0]
            if other == dim and found.numel() == found.size(dim):
                positions = found.reshape(-1)
            elif other == dim or size != self.moved[0].size(other) or not torch.equal(found, compress(line)):
                return False
        self.selecting = True
        p.put_gather(self.call.out, source, dim, positions)
        return True


def _slices(labels: Tensor, dim: int) -> Iterator[Tensor]:
    """Labels of some of the slices along a dimension, never all: those that go in a trial."""
    size = labels.size(dim)
    half = torch.randperm(size, generator=torch.Generator().manual_seed(size))
    for places in ([0], [size - 1], half[: size // 2].tolist(), half[size // 2 :].tolist(), half[1:].tolist()):
        gone = labels.index_select(dim, torch.tensor(places)).unique()
        gone = gone[gone > 0]
        if gone.numel() and not torch.isin(labels, gone).all():
            yield gone


def _rectangle(labels: Tensor, gone: Tensor) -> dict[int, Tensor] | None:
    """The indices that stay, by dimension, once some labels are gone; None if no rectangle stays."""
    stays = compress(~torch.isin(labels, gone))
    dims = varying(stays)
    if len(dims) > 1 or not stays.any():
        return None
    return {dim: stays.reshape(-1).nonzero().reshape(-1) for dim in dims}


def _taken(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    for dim, index in kept.items():
        tensor = tensor.index_select(dim, index)
    return tensor
