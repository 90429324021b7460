"""Tools for the author of a pass to test it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from fx_oto.analysis.recording import record_tape
from fx_oto.capture import trace
from fx_oto.core.context import Context, ExampleInputs
from fx_oto.core.errors import InputError
from fx_oto.framework.stages import Analysis, Stage
from fx_oto.reports.costs import cost

__all__ = ["check_pass", "randomise"]

_TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


def check_pass(
    stage: Stage,
    model: nn.Module,
    example_inputs: Any = None,
    *,
    same_outputs: bool = True,
    modes: Sequence[str] = ("eval", "train"),
) -> GraphModule:
    """Run a pass on a copy of the model in float64 and check what every pass must keep.

    That is: the input is untouched; the result is a sound graph with the same inputs and outputs; ``modified`` is
    honest; it is deterministic; run again on its own result it changes nothing; an analysis changes nothing at all;
    its record counts parameters and multiply-adds as ``fx_oto.cost`` does. Outputs that are compared prove little on
    a model fresh from its constructor, in which many parameters are zero or one: see ``randomise``.

    Args:
        stage: the pass.
        model: a GraphModule with the results that the pass requires, or any model, which is then traced.
        example_inputs: as for ``fx_oto.trace``; those that a GraphModule was traced with if None.
        same_outputs: whether outputs must be the same numbers, to 1e-10, in each of the modes: the same random numbers
            are drawn before each run.
        modes: ``"eval"``, ``"train"`` or both.

    Returns:
        What the pass made of the copy.

    Raises:
        AssertionError: a promise is broken; the text names the pass and the promise, the largest difference where
            numbers were compared, and what to do.

    Example:
        >>> import torch, fx_oto
        >>> from fx_oto.testing import check_pass, randomise
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(randomise(net), torch.randn(3, 4))
        >>> check_pass(fx_oto.DependencyAnalysis(), gm) is not None
        True
    """
    gm, example = _in_double(model, example_inputs)
    twin, before = copy.deepcopy(gm), copy.deepcopy(gm.state_dict())
    text, outputs = _text(gm), {mode: _run(gm, example, mode) for mode in modes if same_outputs}
    result = stage(gm)
    made: GraphModule = result.graph_module
    record = Context.of(made).records[-1]
    promises = _Promises(stage)
    promises.hold(_text(gm) == text, "leaves the graph and the modules that it is given as they were", _COPY)
    promises.same(gm.state_dict(), before, "leaves the tensors that it is given as they were", _COPY)
    promises.hold(
        result.modified == (made is not gm), "says modified if, and only if, it returns another GraphModule", _HONEST
    )
    promises.hold(not (isinstance(stage, Analysis) and result.modified), "that is an analysis changes nothing", _HONEST)
    found, counted = (record.params[1], record.macs[1]), cost(made, example)
    promises.hold(
        found == (counted.params, counted.macs),
        f"has a record that says what the model costs: {counted}",
        f"the record says {found}. Count in Stage.macs, or leave out trusted = True",
    )
    for mode, expected in outputs.items():
        promises.same(_run(made, example, mode), expected, f"keeps the outputs in {mode} mode", _OUTPUTS, **_TOLERANCE)
    again = stage(twin).graph_module
    promises.hold(_text(again) == _text(made), "does the same each time", _CHANCE)
    promises.same(again.state_dict(), made.state_dict(), "does the same each time", _CHANCE)
    if all(kind in Context.of(made).results for kind in stage.requires):
        promises.hold(not stage(made).modified, "changes nothing when it is run again on its own result", _HONEST)
    return made


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0, linear_gain: float = 2.0, constants: bool = False) -> nn.Module:
    """Give every parameter and running statistic random numbers, in place, so that none is trivially zero or one.

    Weights keep the scale of signals, with a variance of gain / fan-in; vectors, such as biases and norms, vary by a
    tenth around 0 or 1; variances stay positive.

    Args:
        model: any module.
        seed: of the random numbers; torch's own generator is left alone.
        linear_gain: the gain of matrices; that of all other weights is 2.
        constants: change buffers that are no running statistics as well, such as additive masks.

    Returns:
        The model itself.

    Example:
        >>> import torch
        >>> from fx_oto.testing import randomise
        >>> bool((randomise(torch.nn.BatchNorm2d(8)).weight == 1).any())
        False
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or not parameter.numel():
            parameter.copy_(noise(parameter) * 0.1 + (0.0 if "bias" in name else 1.0))
        else:
            fan_in = parameter[0].numel() if parameter.shape[0] > 1 else parameter.numel()
            gain = linear_gain if parameter.ndim == 2 else 2.0
            parameter.copy_(noise(parameter) * (gain / fan_in) ** 0.5)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and (constants or "running_" in name):
            buffer.copy_(noise(buffer).abs() * 0.3 + 0.7 if "var" in name else noise(buffer) * 0.1)
    return model


_COPY = (
    "change nothing but the graph and the module tree of the copy that transform is given, and put new modules and "
    "tensors there with gm.set_submodule(name, copy.deepcopy(module))"
)
_HONEST = "let transform return the GraphModule if it has changed it, and None if there was nothing to change"
_OUTPUTS = "mend the pass, or call check_pass with same_outputs=False, or other modes, if it is meant to change them"
_CHANCE = "let nothing depend on random numbers, on the order of a set, or on what an earlier run left behind"


class _Promises:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def hold(self, kept: bool, promise: str, remedy: str, found: str = "") -> None:
        if not kept:
            found = f"; found: {found}" if found else ""
            raise AssertionError(f"the pass {self.stage.name!r} breaks a promise: a pass {promise}{found}; {remedy}")

    def same(self, found: Any, expected: Any, promise: str, remedy: str, rtol: float = 0.0, atol: float = 0.0) -> None:
        """Two structures of tensors must hold the same numbers; the error tells the largest difference."""
        try:
            torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, equal_nan=True)
        except (AssertionError, ValueError, TypeError) as error:
            self.hold(False, promise, remedy, " ".join(str(error).split()))


def _in_double(model: nn.Module, inputs: Any) -> tuple[GraphModule, ExampleInputs]:
    """A copy with its values noted at the nodes, and inputs for it."""
    traced = isinstance(model, GraphModule) and "fx_oto" in model.meta
    if inputs is None and not traced:
        raise InputError("check_pass needs example inputs, such as torch.randn(2, 3, 32, 32), to trace a model")
    given = Context.of(model).inputs if inputs is None else ExampleInputs.of(inputs)
    example = given.mapped(lambda t: t.double() if t.is_floating_point() else t)
    twin = copy.deepcopy(model).double()
    if not traced:
        return trace(twin, example), example
    assert isinstance(twin, GraphModule)
    tape = record_tape(twin, example)
    context = replace(Context.of(twin), inputs=example).provide(tape)
    return context.attach(twin), example


def _text(gm: GraphModule) -> str:
    """The code and the modules of ``gm``, without its class, whose name a copy loses."""
    return "\n".join((gm.code, *map(str, gm.named_children())))


def _run(gm: GraphModule, inputs: ExampleInputs, mode: str) -> list[Any]:
    """Run a copy, so that nothing is written into the original, nor into the inputs."""
    inputs = inputs.copied()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        return tree_leaves(copy.deepcopy(gm).train(mode == "train")(*inputs.args, **inputs.kwargs))
