"""From an eager model to a GraphModule that behaves like it in both training modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx import GraphModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from fx_oto.dice import Dice
from fx_oto.errors import InputError, TraceError
from fx_oto.framework.context import Capture, Context, ExampleInputs
from fx_oto.framework.records import PassRecord
from fx_oto.graph import graph_copy, one_at_a_time, quiet_fakes, raised_at, tensor_names
from fx_oto.groups.explanations import Untraced
from fx_oto.keeping import unwritten
from fx_oto.masks import MASKS, drop_masks
from fx_oto.provenance.misfits import misfit
from fx_oto.provenance.tape import Tape, fake_run, record_tape
from fx_oto.tracing.exported import export
from fx_oto.tracing.opaque import Part
from fx_oto.tracing.symbolic import NotSymbolicError, symbolic_trace
from fx_oto.warn import warn

__all__ = ["trace"]


def trace(model: nn.Module, example_inputs: Any) -> GraphModule:
    """Capture a model as a GraphModule that shares its parameters, buffers and leaf modules.

    The graph keeps both training modes: where the model's Python code asks for ``self.training``, the graph
    asks again each time it runs; what only one mode computes is computed in both, and dropped in the other. Sizes
    that the code reads from its inputs stay dynamic.

    torch.fx's symbolic tracing is tried first, with values: where the code asks for a size, the answer of the example
    inputs is taken, and checked whenever the graph runs. What it cannot capture, ``torch.export`` is asked for. What
    neither takes, the smallest submodules that stand in the way are called as a whole, and what touches them is kept
    whole. ``Context.of(gm).capture`` says which way was taken.

    Args:
        model: any module; a GraphModule from ``torch.fx.symbolic_trace`` or ``torch.export`` is taken as it is, one
            of fx_oto's with the record of its passes; of a data-parallel wrapper the module inside.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or
            ``(args, kwargs)``. Only their shapes, types and structure matter here.

    Returns:
        A GraphModule with each node's fake value in ``node.meta["val"]``.

    Raises:
        TraceError: the model's Python code cannot be captured; names the source line.
        InputError: the model does not run on the example inputs.

    Example:
        >>> import torch, fx_oto
        >>> gm = fx_oto.trace(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()), torch.randn(2, 4))
        >>> [node.op for node in gm.graph.nodes]
        ['placeholder', 'call_module', 'call_module', 'output']
    """
    inputs = ExampleInputs.of(example_inputs)
    while isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module
    _check(model)
    records: tuple[PassRecord, ...] = ()
    if isinstance(model, GraphModule):
        gm = _without_masks(graph_copy(model))
        earlier = Context.of(model) if "fx_oto" in model.meta else Context(inputs, Capture("GraphModule"))
        capture, records, tape = earlier.capture, earlier.records, record_tape(gm, inputs)
    else:
        with one_at_a_time, quiet_fakes():
            gm, capture, tape = _capture(model, inputs.copied())  # its code may write into them
    context = Context(inputs, capture, records=records).provide(tape).provide(Untraced.of(model, gm))
    return context.attach(gm)


def _without_masks(gm: GraphModule) -> GraphModule:
    """A module that was prepared before gets its masks anew."""
    if hasattr(gm, MASKS):
        drop_masks(gm.graph)
        gm._modules.pop(MASKS)
        gm.recompile()
    return gm


def _check(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TraceError(f"expected a torch.nn.Module, found {type(model).__name__}: pass the model itself")
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("a scripted or jit-traced module cannot be captured: pass the module that it was made from")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InputError(f"{name} is not initialised yet: run the model once on example inputs, then prepare it")


def _capture(model: nn.Module, inputs: ExampleInputs) -> tuple[GraphModule, Capture, Tape]:
    try:
        with _running(model, inputs):
            gm = symbolic_trace(model, inputs)
            return gm, Capture("torch.fx"), record_tape(gm, inputs)
    except NotSymbolicError as error:
        symbolic = error
    _check_inputs(model, inputs)
    try:
        with _running(model, inputs):
            gm, both_modes = export(model, inputs)
            tape = record_tape(gm, inputs)
    except TraceError as error:
        return _around_opaque(model, inputs, symbolic, error)
    if not both_modes:
        _warn_of_evaluation_only(symbolic, "by torch.export instead, ")
    return gm, Capture("torch.export", str(symbolic)), tape


@contextmanager
def _running(model: nn.Module, inputs: ExampleInputs) -> Iterator[None]:
    """Tell inputs that do not fit the model from a graph that is not what the model does."""
    try:
        yield
    except InputError as error:
        if isinstance(error.__cause__, DynamicOutputShapeException | DataDependentOutputException):
            raise NotSymbolicError(f"a size depends on the values in a tensor: {error}") from error
        with suppress(InputError):
            fake_run(model, inputs, nullcontext())
            raise NotSymbolicError(f"the model runs on the example inputs, but its graph does not: {error}") from error
        raise


def _check_inputs(model: nn.Module, inputs: ExampleInputs) -> None:
    """Tell inputs on which the model itself does not run from code that cannot be captured.

    Raises:
        InputError: the model does not run on them, neither on fake tensors nor really.
    """
    dice = Dice()
    try:
        fake_run(model, inputs, nullcontext())
    except InputError:
        if not any(tensor.is_meta for tensor in tensor_names(model).values()):  # else it cannot really run
            _really_run(model, inputs.copied())
    finally:
        dice.put_back()


def _really_run(model: nn.Module, inputs: ExampleInputs) -> None:
    try:
        with unwritten(model):
            model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        at = f" at {found}" if (found := raised_at(error)) else ""
        raise misfit(error, at, model, inputs) from error


def _warn_of_evaluation_only(symbolic: TraceError, how: str) -> None:
    warn(
        f"{symbolic}. It was captured {how}in evaluation mode, in which this graph stays: train the model itself, "
        "whose parameters the graph shares"
    )


def _around_opaque(
    model: nn.Module, inputs: ExampleInputs, symbolic: NotSymbolicError, exported: TraceError
) -> tuple[GraphModule, Capture, Tape]:
    """Symbolically, with the submodules and methods that refuse called as a whole, the innermost first."""
    for both_modes in (True, False):
        opaque: list[Part] = []
        while True:
            try:
                with _running(model, inputs):
                    gm = symbolic_trace(model, inputs, opaque, both_modes)
                    tape = record_tape(gm, inputs)
            except NotSymbolicError as error:
                left = [part for part in error.parts if part not in opaque]
                if not left:
                    break
                opaque.append(left[-1])
            else:
                if not both_modes:
                    _warn_of_evaluation_only(symbolic, "")
                called = {node.target for node in gm.graph.nodes if node.op == "call_module"}
                names = tuple(part.name_in(model) for part in opaque if part.target_in(model) in called)
                return gm, Capture("torch.fx", str(symbolic), names), tape
    raise TraceError(
        f"{symbolic}; and {exported}. What to do: as control flow that depends on tensor values cannot be captured, "
        "replace it by torch operations such as torch.where, or move it into a submodule or a function marked with "
        "torch.fx.wrap, which are called as a whole"
    ) from symbolic
