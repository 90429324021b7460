"""Whether a graph does what the model does: both are run once on the example inputs, in both training modes."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fx_oto.analysis.fakes import asks_values
from fx_oto.analysis.recording import misfit
from fx_oto.core.context import ExampleInputs
from fx_oto.core.differences import largest_gap, largest_value
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import raised_at, tensor_leaves, tensor_names
from fx_oto.core.preserve import Dice, evaluating, unwritten, without_fast_paths
from fx_oto.core.warn import warn

__all__ = ["check_capture"]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def check_capture(gm: GraphModule, model: nn.Module, inputs: ExampleInputs, both_modes: bool) -> None:
    """Compare a graph with the model that it was captured of, on real numbers; not on the meta device.

    A model that does not return the same twice, from the same state of the generators, is left unchecked.

    Raises:
        InputError: the model does not run in evaluation, as of tokens that are not in its vocabulary.
        TraceError: the graph fails where the model does not, or returns something else.
    """
    given = (*tensor_names(model).values(), *tensor_leaves((inputs.args, inputs.kwargs)))
    if any(tensor.is_meta for tensor in given):
        return
    for training in (False, True) if both_modes else (False,):
        _check_in(training, gm, model, inputs)


def _check_in(training: bool, gm: GraphModule, model: nn.Module, inputs: ExampleInputs) -> None:
    mode = "training" if training else "evaluation"
    try:
        expected = _run(model, model, inputs, training)
    except Exception as error:  # such as a norm over one value, in training
        if training or _cannot_be_computed(error):
            return
        at = raised_at(error)
        raise misfit(error, f" at {at}" if at else "", model, inputs) from error
    try:
        found = _run(gm, model, inputs, training)
    except Exception as error:
        raise TraceError(
            f"in {mode}, the graph of {type(model).__name__} fails where the model runs ({type(error).__name__}: "
            f"{error}); please report this model"
        ) from error
    if not _equal(expected, found) and _equal(expected, _run(model, model, inputs, training)):
        raise TraceError(
            f"in {mode}, the graph of {type(model).__name__} does not return what the model returns, on the example "
            "inputs; please report this model. Parts that were captured wrongly can be marked with "
            "fx_oto.register_leaf, or the model can be given as torch.export.export(…).module()"
        )
    if not training:
        _note_fast_path(model, inputs, expected)


def _cannot_be_computed(error: Exception) -> bool:
    """Whether it is no fault of the inputs: there is no kernel for the type, no memory, or no numbers."""
    known = isinstance(error, NotImplementedError | MemoryError | torch.OutOfMemoryError) or asks_values(error)
    return known or "not implemented for" in str(error)


def _note_fast_path(model: nn.Module, inputs: ExampleInputs, spelled_out: list[Tensor]) -> None:
    if not any(isinstance(module, nn.TransformerEncoder) for module in model.modules()):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of nested tensors
        same = _equal(spelled_out, _run(model, model, inputs, training=False, fast=True))
    if not same:
        warn(
            "in evaluation without gradients, nn.TransformerEncoder returns zeros where an example is padded; the "
            "graph computes these positions, as the model does with gradients, or compiled. Use no output of them, or "
            "give nn.TransformerEncoder enable_nested_tensor=False"
        )


def _run(
    module: nn.Module, model: nn.Module, inputs: ExampleInputs, training: bool, fast: bool = False
) -> list[Tensor]:
    dice = Dice()
    try:
        with (
            torch.inference_mode(False),
            unwritten(model, training),
            evaluating(module, training),
            nullcontext() if fast else without_fast_paths(),
        ):
            copied = inputs.copied()
            return [tensor.detach().clone() for tensor in tensor_leaves(module(*copied.args, **copied.kwargs))]
    finally:
        dice.put_back()


def _equal(expected: list[Tensor], found: list[Tensor]) -> bool:
    return len(expected) == len(found) and all(map(_close, expected, found))


def _close(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not expected.is_floating_point() or not expected.numel():
        return torch.equal(expected, found)
    return largest_gap(expected, found) <= _TOLERANCE.get(expected.dtype, 2e-2) * max(largest_value(expected), 1e-30)
