"""The rule for users' ops that work element by element: running them tells what removed channels become."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import UNKNOWN, ZERO
from fx_oto.analysis.result_forms import tensors_in
from fx_oto.analysis.tape import OpCall
from fx_oto.core.errors import RuleError
from fx_oto.ops import pointwise
from fx_oto.ops.contraction import lift
from fx_oto.ops.custom.equations import Equation, operands_of
from fx_oto.ops.pointwise import Operand

__all__ = ["Elementwise", "run_on"]


@dataclass(frozen=True)
class Elementwise:
    """The rule that ``fx_oto.kinds.elementwise`` makes."""

    equation: Equation | None
    zero_if: tuple[str, ...]

    mixing = False

    def __call__(self, call: OpCall, p: Propagation) -> None:
        """Follow a call."""
        operands = [(name, tensor) for name, tensor in operands_of(call) if tensor is not None]
        if len(operands) != len(call.inputs):
            raise RuleError(
                f"{call.name} is given tensors in a container, which elementwise cannot tell apart: pass them one "
                "by one, or use another kind"
            )
        terms, result = self._terms(call, operands)
        if len(set("".join(terms)) - set(result)):
            raise RuleError(f"{self!r}: every letter must be in the result; for sums, use contraction(…) or like(…)")
        lifted = [
            lift(p, Operand.of(p, tensor), term, result, len(result))
            for (_, tensor), term in zip(operands, terms, strict=True)
        ]
        if not any(operand.layers for operand in lifted):
            return
        zeroing = [place for place, (name, _) in enumerate(operands) if name in self.zero_if]
        if len(zeroing) < len(self.zero_if):
            raise RuleError(
                f"zero_if={self.zero_if} names an argument that {call.name} does not have; its tensors are "
                f"{', '.join(name for name, _ in operands) or 'none'}"
            )
        for which, out in enumerate(call.outputs):
            trial = _Trial(terms, result, [operand.shape for operand in lifted], zeroing, which)
            p.put(out, pointwise.elementwise(call, p, lifted, len(result), trial.worth))

    def _terms(self, call: OpCall, operands: Sequence[tuple[str, Tensor]]) -> tuple[list[str], str]:
        if self.equation is not None:
            terms, result = self.equation.fitted(call, operands)
        else:
            result = "abcdefghijklmnopqrstuvwxyz"[: call.out.ndim]
            terms = [result[len(result) - min(tensor.ndim, len(result)) :] for _, tensor in operands]
        shapes = [tuple(tensor.shape) for _, tensor in operands]
        try:
            spread = [
                [dict(zip(term, shape, strict=True)).get(letter, 1) for letter in result]
                for term, shape in zip(terms, shapes, strict=True)
            ]
            expected = torch.broadcast_shapes(*spread)
        except (RuntimeError, ValueError):
            expected = torch.Size((-1,))
        if any(out.shape != expected for out in call.outputs):
            found = ", ".join(str(tuple(out.shape)) for out in call.outputs)
            raise RuleError(
                f"elementwise expects results of the shape that {', '.join(map(str, shapes))} broadcast to, found "
                f"{found}: give an equation such as 'bc...,c->bc...', or use another kind"
            )
        return terms, result

    def __repr__(self) -> str:
        given = [] if self.equation is None else [repr(self.equation.text)]
        return f"elementwise({', '.join(given + ([f'zero_if={self.zero_if}'] if self.zero_if else []))})"


@dataclass(frozen=True, eq=False)
class _Trial:
    """A way to run an op on removed values, to see what they become."""

    terms: Sequence[str]
    result: str
    shapes: Sequence[Sequence[int]]
    zeroing: Sequence[int]
    which: int

    def worth(self, call: OpCall, values: list[Tensor]) -> Tensor:
        """Return the worth of the result for these worths of the operands; NaN for unknown."""
        spread = torch.broadcast_tensors(*values)
        unknown = torch.stack([value.isnan() for value in spread]).any(0)
        zero = torch.zeros_like(unknown)
        for place in self.zeroing:
            zero |= spread[place] == 0
        if (unknown & ~zero).all():
            return UNKNOWN.view((1,) * len(self.result))
        found = self._run(call, values, unknown)
        if found is None:
            return torch.where(zero, ZERO, UNKNOWN)
        if (zero & (found != 0)).any():
            operands = [name for name, tensor in operands_of(call) if tensor is not None]
            raise RuleError(
                f"zero_if says that {call.name} is 0 where {' or '.join(operands[place] for place in self.zeroing)} "
                f"is 0, but it is {float(found[zero & (found != 0)][0]):.3g} for some numbers: drop zero_if"
            )
        undefined = found.isnan() & ~unknown & ~zero
        worth = torch.where(undefined, torch.full((), math.inf, dtype=torch.float64), found)
        return torch.where(zero, ZERO, torch.where(unknown, UNKNOWN, worth))

    def _run(self, call: OpCall, values: list[Tensor], unknown: Tensor) -> Tensor | None:
        """The result for two choices of what is unknown; None where they differ although nothing is."""
        results, shape = [], unknown.shape
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            given = [self._operand(place, value, shape, generator) for place, value in enumerate(values)]
            outputs = run_on(call, given, seed=seed)
            if outputs is None or len(outputs) <= self.which or outputs[self.which].shape != shape:
                return None
            results.append(outputs[self.which].double())
        both = (results[0] == results[1]) | (results[0].isnan() & results[1].isnan())
        return None if (~both & ~unknown).any() else results[0]

    def _operand(self, place: int, value: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """A real tensor in the op's own layout: as small as the removed values, random where they are unknown."""
        sizes = [size if full > 1 else 1 for size, full in zip(shape, self.shapes[place], strict=True)]
        wide = value.expand(sizes).to(torch.float64)
        filled = torch.where(wide.isnan(), torch.rand(sizes, generator=generator, dtype=torch.float64) + 0.5, wide)
        letters = [letter for letter in self.result if letter in self.terms[place]]
        kept = filled.reshape([size for letter, size in zip(self.result, sizes, strict=True) if letter in letters])
        return kept.permute([letters.index(letter) for letter in self.terms[place]]).contiguous()


def run_on(
    call: OpCall, values: Sequence[Tensor], function: Callable[..., Any] | None = None, seed: int = 0
) -> tuple[Tensor, ...] | None:
    """Run what a call runs on other tensors in the place of ``call.inputs``.

    On the CPU with the values as they are, else in the types that the model gives it, else on its device. What it
    draws depends on ``seed``; the state of torch's random number generators is left as it was.

    Returns:
        What it returns, on the CPU; None where it cannot be run.
    """
    for adapted in _ways(values, call.inputs):
        remaining = iter(adapted)
        args, kwargs = tree_map(
            lambda leaf, rest=remaining: next(rest) if isinstance(leaf, Tensor) else leaf, (call.args, call.kwargs)
        )
        devices = {tensor.device for tensor in adapted if tensor.is_cuda}
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
                torch.default_generator.manual_seed(seed)
                for device in devices:
                    torch.cuda.default_generators[device.index].manual_seed(seed)
                results = tensors_in([(function or call.func)(*args, **kwargs)])
        except Exception:  # whatever it cannot do
            continue
        return tuple(result.detach().cpu() for result in results)
    return None


def _ways(values: Sequence[Tensor], like: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    pairs = list(zip(values, like, strict=True))
    yield [value if one.is_floating_point() else value.to(one.dtype) for value, one in pairs]
    yield [value.to(one.dtype) for value, one in pairs]
    if not any(one.device.type in ("meta", "cpu") for one in like):
        yield [value.to(one.device, one.dtype) for value, one in pairs]
