"""Traces a frozen value back to the refusal that caused it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from fx_oto.analysis.dependencies import Reason
from fx_oto.analysis.tape import OpCall

__all__ = ["Origins"]


class Origins:
    """For each value without any layer, the refusal upstream that left it without.

    Args:
        layers: finds the layers of a value.
    """

    def __init__(self, layers: Callable[[Any], Sequence[Any]]) -> None:
        self._layers = layers
        self._of: dict[int, Reason] = {}

    def begin(self, values: Iterable[Tensor], reason: Reason) -> None:
        """These values are without layers from the start."""
        self._of.update((id(value), reason) for value in values)

    def behind(self, call: OpCall | None) -> Reason | None:
        """Why an operand of a call is without layers; None if all have some, or none is known to have lost them."""
        operands = call.inputs if call is not None else ()
        return next((self._of[id(one)] for one in operands if id(one) in self._of and not self._layers(one)), None)

    def pass_on(self, call: OpCall, refused: Sequence[Reason]) -> None:
        """After a call: what it returns without layers owes that to what it refused, or to its operands."""
        lost = [out for out in call.outputs if not self._layers(out)]
        if not lost:
            return
        origin = next((reason.origin for reason in refused), None) or self.behind(call)
        if origin is not None:
            self.begin(lost, origin)
