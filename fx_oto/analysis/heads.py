"""Which values go into products of activations in batches, as the heads of attention do, before anything mixes them."""

from __future__ import annotations

from collections.abc import Callable

from fx_oto.analysis.result_forms import is_pointwise
from fx_oto.analysis.tape import OpCall, Tape

__all__ = ["before_products"]

_PRODUCTS = {"bmm", "baddbmm"}
_STATISTICS = {"native_layer_norm", "mean", "sum", "linalg_vector_norm"}


def before_products(tape: Tape, moves: Callable[[OpCall], bool]) -> set[int]:
    """By ``id``, the values from which a product of activations is reached by movement, elementwise ops and norms.

    Args:
        tape: the recorded calls.
        moves: whether a call does nothing but move data; one that ATen calls a view does.
    """

    def moved(call: OpCall) -> bool:
        return bool(getattr(call.func, "is_view", False)) or moves(call)

    weights = {id(tensor) for tensor in tape.tensors.values()}
    for call in tape.calls:
        if moved(call) and all(id(tensor) in weights for tensor in call.inputs):
            weights.update(map(id, call.outputs))
    found: set[int] = set()
    for call in reversed(tape.calls):
        if call.name in _PRODUCTS:
            operands = [id(tensor) for tensor in call.inputs[-2:]]
            found.update(operands if weights.isdisjoint(operands) else ())
        elif (moved(call) or _keeps_apart(call)) and any(id(out) in found for out in call.outputs):
            found.update(map(id, call.inputs))
    return found


def _keeps_apart(call: OpCall) -> bool:
    return is_pointwise(call.func) or call.name in _STATISTICS
