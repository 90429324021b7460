"""The rule for users' ops that multiply and sum, as an equation describes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import UNKNOWN, Layer
from fx_oto.analysis.tape import OpCall
from fx_oto.core.errors import RuleError
from fx_oto.ops.contraction import contract, lift, plus, times
from fx_oto.ops.custom.equations import Equation, keep_others, operands_of
from fx_oto.ops.pointwise import Operand, combine

__all__ = ["Sum"]


@dataclass(frozen=True)
class Sum:
    """The rule that ``fx_oto.kinds.contraction`` makes."""

    equation: Equation
    of: tuple[str, ...]
    activation: Callable[[Tensor], Tensor] | None

    mixing = True

    def __post_init__(self) -> None:
        read = self.equation
        factors = [term for term, added in zip(read.terms, read.added, strict=True) if not added]
        if read.added[0] or len(factors) < 2:
            raise RuleError(
                f"{read.text!r}: expected a product of two or more tensors; for fewer, use elementwise() or like(…)"
            )
        for term in read.terms[1:]:
            # In "bi,io,o->bo", i is summed over in the first two terms; a letter that only the third had could not be.
            shared = set(read.terms[0]) if term is factors[1] else set()
            if extra := set(term) - set(read.result) - shared:
                raise RuleError(
                    f"{sorted(extra)[0]!r} in the term {term!r} of {read.text!r} is summed over, but the first two "
                    "terms do not share it; only a letter that they share can be summed over"
                )

    def __call__(self, call: OpCall, p: Propagation) -> None:
        """Follow a call."""
        operands, terms, result = self._fitted(call)
        keep_others(call, p, [tensor for _, tensor in operands])
        # Factors first: of "i,oi,+o,o->o", the last is multiplied before the third is added.
        rows = sorted(zip(self.equation.added, terms, operands, strict=True), key=lambda row: row[0])
        given = [(added, term, Operand.of(p, tensor)) for added, term, (_, tensor) in rows if tensor is not None]
        (_, first, one), (_, second, other), *rest = given
        layers = contract(p, (one, other), (first, second), result, False)
        for added, term, side in rest:
            sides = [Operand(call.out.shape, layers), lift(p, side, term, result, len(result))]
            layers = combine(p, sides, len(result), plus if added else times)
        p.put(call.out, [self._activated(layer) for layer in layers])

    def contracted(self, call: OpCall, p: Propagation) -> list[Layer]:
        """Layers along the axes that it runs over, each axis once."""
        operands, terms, _ = self._fitted(call)
        found, seen = [], set[str]()
        for (_, tensor), term in zip(operands, terms, strict=True):
            new = set(term) - seen
            for layer in p.layers(tensor):
                if {term[dim] for dim in layer.dims} <= new:
                    found.append(layer)
            seen |= set(term)
        return found

    def flops(self, call: OpCall) -> int:
        """Twice the product of all sizes."""
        operands, terms, _ = self._fitted(call)
        sizes: dict[str, int] = {}
        for (_, tensor), term in zip(operands, terms, strict=True):
            for letter, size in zip(term, () if tensor is None else tensor.shape, strict=False):
                sizes[letter] = max(size, sizes.get(letter, 1))
        return 2 * math.prod(sizes.values())

    def registered_for(self, op: Any) -> None:
        """Let torch count what an op multiplies, unless it does already."""
        packet = getattr(op, "_overloadpacket", None)
        known = flop_registry.get(packet)
        if packet is None or (known is not None and not hasattr(known, "contraction")):
            return

        def formula(*args: Any, out_val: Any, **kwargs: Any) -> int:
            outputs = (out_val,) if isinstance(out_val, Tensor) else tuple(out_val)
            try:
                return self.flops(OpCall("", op, args, kwargs, outputs))
            except RuleError:
                return 0  # the analysis says what does not fit, and where

        formula.contraction = self  # type: ignore[attr-defined]
        flop_registry[packet] = formula

    def _fitted(self, call: OpCall) -> tuple[list[tuple[str, Tensor | None]], list[str], str]:
        operands = operands_of(call, self.of)
        while len(operands) < len(self.equation.terms) and self.equation.added[len(operands)]:
            operands.append(("an absent bias", None))
        for (name, tensor), added in zip(operands, self.equation.added, strict=False):
            if tensor is None and not added:
                raise RuleError(f"{name} of {call.name} is None, but {self.equation.text!r} multiplies by it")
        return operands, *self.equation.fitted(call, operands)

    def _activated(self, layer: Layer) -> Layer:
        if self.activation is None:
            return layer
        removed = torch.where(layer.removed.isnan(), UNKNOWN, self.activation(torch.nan_to_num(layer.removed)))
        return Layer(layer.labels, removed)

    def __repr__(self) -> str:
        given = [repr(self.equation.text)] + ([f"of={self.of}"] if self.of else [])
        if self.activation is not None:
            given.append(f"activation={getattr(self.activation, '__name__', self.activation)}")
        return f"contraction({', '.join(given)})"
