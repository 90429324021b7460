"""From an eager model to a GraphModule that behaves like it in both training modes."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from fx_oto.context import Context, ExampleInputs
from fx_oto.errors import FxOtoWarning, InputError, TraceError
from fx_oto.graph import evaluating, graph_copy, unfused_attention, with_modes_of
from fx_oto.masks import MASKS, drop_masks
from fx_oto.modes import FLAG, TrainingFlag, merge_modes
from fx_oto.modules import holds_layers
from fx_oto.tape import record_tape

__all__ = ["trace"]

_NOT_USERS = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))


def trace(model: nn.Module, example_inputs: Any) -> GraphModule:
    """Capture a model as a GraphModule that shares its parameters, buffers and leaf modules.

    The graph keeps both training modes: where the model's Python code asks for ``self.training``, the graph
    asks again each time it runs; what only one mode computes is computed in both, and dropped in the other. Sizes
    that the code reads from its inputs stay dynamic.

    Args:
        model: any module; a GraphModule from ``torch.fx.symbolic_trace`` or ``torch.export`` is taken as it is.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or
            ``(args, kwargs)``. Only their shapes, types and structure matter here.

    What symbolic tracing cannot capture, ``torch.export`` is asked for, with an ``FxOtoWarning``: that graph stays in
    evaluation mode. The model itself can be trained all the same, for parameters are shared.

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
    _check_initialised(model)
    gm = graph_copy(model) if isinstance(model, GraphModule) else _capture(model, inputs)
    if hasattr(gm, MASKS):  # prepared before: its masks are made anew
        drop_masks(gm.graph)
        gm._modules.pop(MASKS)
        gm.recompile()
    return Context(inputs).provide(record_tape(gm, inputs)).attach(gm)


def _check_initialised(model: Any) -> None:
    for name, parameter in model.named_parameters() if isinstance(model, nn.Module) else ():
        if is_lazy(parameter):
            raise InputError(f"{name} is not initialised yet: run the model once on example inputs, then prepare it")


class _NotSymbolicError(TraceError):
    """The model's Python code does something with a value that symbolic tracing has no answer to."""


def _capture(model: nn.Module, inputs: ExampleInputs) -> GraphModule:
    """By symbolic tracing, or else by ``torch.export``."""
    try:
        return _symbolic_trace(model, inputs)
    except _NotSymbolicError as error:
        gm = _export(model, inputs, error)
        warnings.warn(
            f"{error}. It was captured by torch.export instead, in evaluation mode, in which this graph stays: train "
            "the model itself, whose parameters the graph shares",
            FxOtoWarning,
            stacklevel=4,
        )
        return gm


def _export(model: nn.Module, inputs: ExampleInputs, refused: TraceError) -> GraphModule:
    """The evaluation graph, dynamic in the first dimension of every input as far as the model is."""

    def dynamic(leaf: Any) -> Any:
        return {0: torch.export.Dim.AUTO} if isinstance(leaf, Tensor) and leaf.ndim and leaf.size(0) > 1 else None

    try:
        given = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs).arguments
        with evaluating(model), torch.no_grad():
            exported = torch.export.export(
                model, inputs.args, inputs.kwargs, dynamic_shapes=tree_map(dynamic, dict(given)), strict=False
            )
        return exported.module()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TraceError(
            f"{refused}; and torch.export, tried next, refuses it too: {reason}. What to do: as control flow that "
            "depends on tensor values cannot be captured, replace it by torch operations such as torch.where, or move "
            "it into a function marked with torch.fx.wrap"
        ) from refused


def _symbolic_trace(model: nn.Module, inputs: ExampleInputs) -> GraphModule:
    if not isinstance(model, nn.Module):
        raise TraceError(f"expected a torch.nn.Module, found {type(model).__name__}: pass the model itself")
    defaults = _defaults(model, inputs)
    with _restored_attributes(model):
        tracer = _SourceTracer()
        graph = tracer.trace_in(True, model, defaults)
        if tracer.asked_for_mode:
            graph = merge_modes(graph, _SourceTracer(tracer.constants).trace_in(False, model, defaults), model)
            setattr(model, FLAG, TrainingFlag())
        gm = GraphModule(model, graph, type(model).__name__)
    return with_modes_of(gm, model)


@contextmanager
def _watching_mode() -> Iterator[list[nn.Module]]:
    """Collect the modules whose ``training`` is read, as Python code that depends on the mode must do."""
    asked: list[nn.Module] = []

    def read(module: nn.Module) -> bool:
        asked.append(module)
        mode: bool = module.__dict__["training"]
        return mode

    def write(module: nn.Module, mode: bool) -> None:
        module.__dict__["training"] = mode

    before = nn.Module.__dict__.get("training")
    nn.Module.training = property(read, write)  # type: ignore[assignment]
    try:
        yield asked
    finally:
        if before is None:
            del nn.Module.training
        else:
            nn.Module.training = before


@contextmanager
def _restored_attributes(model: nn.Module) -> Iterator[None]:
    """Take back what tracing sets on the model: tensor constants and our flag."""
    before = set(vars(model))
    try:
        yield
    finally:
        for name in set(vars(model)) - before:
            delattr(model, name)
        model._modules.pop(FLAG, None)


def _defaults(model: nn.Module, inputs: ExampleInputs) -> dict[str, Any]:
    """The default of every argument that the example inputs leave out: the graph is specialised to them."""
    signature = inspect.signature(model.forward)
    try:
        given = signature.bind_partial(*inputs.args, **inputs.kwargs).arguments
    except TypeError as error:
        raise TraceError(
            f"the example inputs do not match {type(model).__name__}.forward{signature}: {error}"
        ) from error
    return {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in given and parameter.default is not inspect.Parameter.empty
    }


class _SourceTracer(Tracer):
    """torch.fx's tracer, with each node's line in the user's code and constants shared between two traces."""

    proxy_buffer_attributes = True  # what the code does to a buffer belongs into the graph

    def __init__(self, earlier: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.constants: dict[str, Tensor] = {}
        self.asked_for_mode = False
        self._earlier = earlier or {}

    def trace_in(self, training: bool, model: nn.Module, defaults: dict[str, Any]) -> Graph:
        """Trace in one mode; notes whether the code asked for it, and the tensors that it made."""
        dice = torch.random.get_rng_state()
        try:
            with evaluating(model, training), unfused_attention(), _watching_mode() as asked:
                graph = self.trace(model, concrete_args=defaults or None)
        except Exception as error:
            raise _explain(error, model) from error
        if not torch.equal(dice, torch.random.get_rng_state()):
            torch.random.set_rng_state(dice)
            raise TraceError(
                f"{type(model).__name__}.forward draws random numbers that do not depend on its inputs, such as "
                "torch.rand(1): traced, they would stay the same for ever; draw them from an input, as in "
                "torch.rand_like(x), or inside a function marked with torch.fx.wrap"
            )
        self.asked_for_mode = bool(asked)
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """torch.fx's rule, but for modules that hold sizes, which slicing rewrites in the graph, or other layers."""
        return (
            super().is_leaf_module(m, module_qualified_name) and not isinstance(m, nn.Unflatten) and not holds_layers(m)
        )

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        node = super().create_node(*args, **kwargs)
        if frame := _user_frame(sys._getframe(1)):
            code = frame.f_code
            node.stack_trace = f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n'
        return node

    def create_arg(self, a: Any) -> Any:
        arg = super().create_arg(a)
        if isinstance(a, Tensor) and isinstance(arg, Node) and str(arg.target).startswith("_tensor_constant"):
            self.constants[str(arg.target)] = a
            for name, tensor in self._earlier.items():
                if tensor.dtype == a.dtype and torch.equal(tensor, a):
                    arg.target = name
        return arg


def _user_frame(frame: FrameType | None) -> FrameType | None:
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_USERS):
        frame = frame.f_back
    return frame


def _explain(error: Exception, model: nn.Module) -> TraceError:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_USERS)]
    where = f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
    return _NotSymbolicError(f"{type(model).__name__} cannot be traced symbolically{where}: {error}")
