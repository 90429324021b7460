"""The second front end: ``torch.export``, once in each training mode."""

from __future__ import annotations

import copy
import inspect
import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.graph_module import _assign_attr
from torch.utils._pytree import tree_map

from fx_oto.dice import Dice
from fx_oto.errors import TraceError
from fx_oto.framework.context import ExampleInputs
from fx_oto.graph import graph_copy, with_modes_of
from fx_oto.keeping import evaluating, without_caches
from fx_oto.modes import FLAG, TrainingFlag, merge_modes
from fx_oto.tracing.memory import Memory

__all__ = ["export"]


def export(model: nn.Module, inputs: ExampleInputs) -> tuple[GraphModule, bool]:
    """Capture a model by ``torch.export``, dynamic in every dimension of the inputs, or in the first, as far as it is.

    Returns:
        The graph, and whether it has both training modes: if only evaluation can be captured, it stays in that.

    Raises:
        TraceError: ``torch.export`` refuses the model in evaluation mode.
    """
    try:
        evaluation = _export_in(False, model, inputs)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TraceError(f"torch.export refuses it: {reason}") from error
    try:
        return _merge(_export_in(True, model, inputs), evaluation, model, inputs), True
    except Exception:  # whatever it is that training does
        return graph_copy(evaluation), False


def _export_in(training: bool, model: nn.Module, inputs: ExampleInputs) -> GraphModule:
    given = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs).arguments

    def dynamic(leaf: Any, first_only: bool) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        dims = range(min(leaf.ndim, 1) if first_only else leaf.ndim)
        return {dim: torch.export.Dim.AUTO for dim in dims if leaf.size(dim) > 1}

    def attempt(first_only: bool) -> GraphModule:
        shapes = tree_map(lambda leaf: dynamic(leaf, first_only), dict(given))
        dice = Dice()
        try:
            with _quietly(), without_caches(model), evaluating(model, training), torch.no_grad():
                exported = torch.export.export(model, inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=False)
            if dice.rolled():
                raise TraceError("it draws random numbers that would stay the same for ever")
        finally:
            dice.put_back()
        return exported.module()

    try:
        return attempt(first_only=False)
    except Exception:  # sizes that only hold for this example
        return attempt(first_only=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep torch from printing whole graphs about refusals that will be explained."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stderr(StringIO()), warnings.catch_warnings():
            # recurrent modules keep a list of their parameters, of which export warns though nothing depends on it
            warnings.filterwarnings("ignore", "The tensor attributes? self.*assigned during export")
            yield
    finally:
        logging.disable(before)


def _merge(train: GraphModule, evaluation: GraphModule, model: nn.Module, inputs: ExampleInputs) -> GraphModule:
    if train._out_spec != evaluation._out_spec:
        raise TraceError("training and evaluation return values of different structure")
    _name_alike(train, evaluation)
    graph = merge_modes(train.graph, evaluation.graph, evaluation, Memory(evaluation, inputs).reaches)
    setattr(evaluation, FLAG, TrainingFlag())
    if graph is train.graph:
        graph = evaluation.graph
    graph.set_codegen(copy.copy(evaluation.graph._codegen))
    return with_modes_of(GraphModule(evaluation, graph, type(model).__name__), model)


def _name_alike(train: GraphModule, evaluation: GraphModule) -> None:
    """Let the evaluation module hold what the training graph refers to, under another name where that is taken."""
    for node in train.graph.nodes:
        if node.op != "get_attr":
            continue
        name = str(node.target)
        mine, other = _held(train, name), _held(evaluation, name)
        if not isinstance(mine, Tensor):
            raise TraceError(f"in training it refers to {name}, which is no tensor")
        if other is mine or (isinstance(other, Tensor) and other.dtype == mine.dtype and torch.equal(other, mine)):
            continue
        if other is not None:
            node.target = f"in_training_{name}".replace(".", "_")
        _assign_attr(mine, evaluation, str(node.target))


def _held(gm: GraphModule, name: str) -> Any:
    try:
        return operator.attrgetter(name)(gm)
    except AttributeError:
        return None
