"""Rounding as quantized numbers would be: what is zero stays zero, and scales go with their channels."""

from __future__ import annotations

from torch import Tensor

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import zero_stays
from fx_oto.analysis.tape import OpCall
from fx_oto.ops.pointwise import Operand, combine
from fx_oto.ops.refusals import KeepWhole

__all__ = ["OBSERVED", "fake_quantize"]

# The range of what training has seen is a running mean, in which the zeros that go have a part.
OBSERVED = KeepWhole("its range is observed for quantization: compress first, then prepare for quantization")


def fake_quantize(call: OpCall, p: Propagation) -> None:
    """``fake_quantize_per_tensor_affine`` and its like."""
    source = call.args[0]
    axis = call.given.get("axis")
    operands = [Operand.of(p, source)]
    for tensor in call.inputs[1:]:  # scales and zero points, of each channel or of all
        dim = source.ndim - 1 if axis is None or not tensor.ndim else axis % source.ndim
        operands.append(_laid_along(p, tensor, dim, source.ndim))
    layers = combine(p, operands, source.ndim, lambda values: zero_stays(values[0]))
    for out in call.outputs:
        p.put(out, layers)


def _laid_along(p: Propagation, tensor: Tensor, dim: int, ndim: int) -> Operand:
    view = [-1 if d == dim else 1 for d in range(ndim)]
    layers = [layer.map(lambda t: t.reshape(view)) for layer in p.layers(tensor)]
    for layer in layers:
        p.consume(layer.labels)  # a scale must not be zero, and need not
    return Operand(tensor.reshape(view).shape, layers)
