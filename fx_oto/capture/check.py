"""Whether a graph does what the model does: both are run once on the example inputs, in both training modes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from contextlib import nullcontext
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fx_oto.analysis.fakes import asks_values
from fx_oto.analysis.misfits import misfit
from fx_oto.capture.circumstances import Circumstance, circumstances
from fx_oto.capture.refusals import ON_VALUES, AskedError, NotCapturedError
from fx_oto.capture.run import CaptureRun
from fx_oto.capture.steering import Steered
from fx_oto.core.context import ExampleInputs
from fx_oto.core.differences import largest_gap, largest_value
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import raised_at, source_line, tensor_leaves, tensor_names
from fx_oto.core.interpreter import PlainInterpreter, run_graph
from fx_oto.core.layouts import dense
from fx_oto.core.preserve import Dice, evaluating, unwritten, without_fast_paths, without_zeros
from fx_oto.core.warn import warn

__all__ = ["ROUNDS", "agree", "check_branches", "check_capture", "does_the_same", "modes_of", "not_the_same_without"]

ROUNDS = 16  # of other choices

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def check_capture(
    gm: GraphModule, model: nn.Module, inputs: ExampleInputs, both_modes: bool, asked: Collection[str] = ()
) -> None:
    """Compare a graph with the model that it was captured of, on real numbers; not on the meta device.

    A model that does not return the same twice, from the same state of the generators, is left unchecked.

    Args:
        gm: the graph.
        model: the model.
        inputs: its example inputs.
        both_modes: whether the graph follows the training mode.
        asked: what code has asked of how it is called: see ``circumstances``.

    Raises:
        InputError: the model does not run in evaluation, as of tokens that are not in its vocabulary.
        TraceError: the graph fails where the model does not, or returns something else.
        AskedError: it does so where what code has asked has another answer.
    """
    for training in modes_of(model, inputs, both_modes):
        try:
            _check_in(training, gm, model, inputs)
        except TraceError as error:
            if asked:
                raise AskedError(str(error), asked) from error
            raise
        for one in sorted(asked):
            larger = inputs.copied().mapped(lambda tensor: 1000 * tensor if tensor.is_floating_point() else tensor)
            tried = product(circumstances(one), (inputs, larger))  # numbers may be bounded
            if not all(_is_same_in(how, training, gm, model, given) for how, given in tried):
                raise AskedError(f"it makes a difference {one}", [one])


def _is_same_in(how: Circumstance, training: bool, gm: GraphModule, model: nn.Module, inputs: ExampleInputs) -> bool:
    """Whether a graph returns what its model does where that is called in another way, and does not fail."""

    def called(module: nn.Module) -> list[Tensor]:
        return _run(module, model, inputs, training, within=how.within(), change=how.change)

    try:
        expected = called(model)
    except Exception:
        return True
    try:
        found = called(gm)
    except Exception as error:
        return isinstance(error, AssertionError)  # by which it refuses this
    return agree(expected, found, how.bound) or not agree(expected, called(model), how.bound)


def modes_of(model: nn.Module, inputs: ExampleInputs, both_modes: bool) -> tuple[bool, ...]:
    """Training modes in which a graph can be compared with its model: none without numbers, on the meta device."""
    given = (*tensor_names(model).values(), *tensor_leaves((inputs.args, inputs.kwargs)))
    return () if any(tensor.is_meta for tensor in given) else (False, True)[: 1 + both_modes]


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
        if training and isinstance(error, AssertionError):  # it was captured on a larger batch, and refuses this one
            return
        raise TraceError(
            f"in {mode}, the graph of {type(model).__name__} fails where the model runs ({type(error).__name__}: "
            f"{error}); please report this model"
        ) from error
    if not agree(expected, found) and agree(expected, _run(model, model, inputs, training)):
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
        same = agree(spelled_out, _run(model, model, inputs, training=False, fast=True))
    if not same:
        warn(
            "in evaluation without gradients, nn.TransformerEncoder returns zeros where an example is padded; the "
            "graph computes these positions, as the model does with gradients, or compiled. Use no output of them, or "
            "give nn.TransformerEncoder enable_nested_tensor=False"
        )


def does_the_same(
    call: Callable[..., Any], gm: GraphModule, model: nn.Module, inputs: ExampleInputs, training: bool, steps: int = 0
) -> bool:
    """Whether a graph returns, and writes into buffers, what its model does.

    Args:
        call: runs the graph.
        gm: the graph.
        model: the model; where it fails in training, as batch norm does over one row, it says nothing.
        inputs: what both are given.
        training: the mode.
        steps: how many steps of rounding, of the largest number, they may differ by.
    """
    try:
        expected = _run(model, model, inputs, training, within=nullcontext())
    except Exception:
        return training
    try:
        found = _run(gm, model, inputs, training, within=nullcontext(), call=call)
    except Exception:
        return False

    def is_close(one: Tensor, other: Tensor) -> bool:
        if torch.equal(one, other) or one.shape != other.shape or not one.is_floating_point():
            return torch.equal(one, other)
        return largest_gap(one, other) <= steps * torch.finfo(one.dtype).eps * largest_value(one)

    return len(expected) == len(found) and all(map(is_close, expected, found))


def check_branches(run: CaptureRun, training: bool) -> None:
    """Compare a model with the graph that goes one way where its code decides by numbers, until it went the other.

    What is chosen among many, such as experts, is steered in both, so that some are chosen by none. Where the model
    itself fails, as batch norm does in training over one row, it says nothing.

    Raises:
        NotCapturedError: the graph does something else, or the code never went the other way.
    """
    model, inputs, gm = run.model, run.inputs, run.module()
    watch = _Watching(gm, dict(run.branches))
    with without_zeros(model):
        for number in range(ROUNDS):
            try:
                expected = _run(model, model, inputs, training, within=Steered(number))
            except Exception:
                continue
            try:
                found = _run(gm, model, inputs, training, within=Steered(number), call=watch.call)
            except Exception as error:
                raise not_the_same_without(run) from error
            if not agree(expected, found):
                break
            if watch.has_seen_all:
                return
    raise not_the_same_without(run)


def not_the_same_without(run: CaptureRun) -> NotCapturedError:
    """Code does not do the same where nothing was selected, or another number of rows."""
    where = next((line for node, _ in run.branches if (line := source_line(node))), "")
    refusal = NotCapturedError(
        f"{type(run.model).__name__} cannot be captured{where and f' at {where}'}: {ON_VALUES}", by_values=True
    )
    refusal.selects = True
    return refusal


class _Watching(PlainInterpreter):
    """Runs a graph, and notes where code would have gone another way."""

    def __init__(self, gm: GraphModule, branches: dict[Node, bool]) -> None:
        super().__init__(gm)
        self._answers = branches
        self._always: dict[Node, Tensor] = {}

    @property
    def has_seen_all(self) -> bool:
        """Whether code would have gone the other way at each place, and by each element of a mask."""
        return len(self._always) == len(self._answers) and not any(map(torch.any, self._always.values()))

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Run it on what the model takes."""
        return run_graph(self, args, kwargs)

    def run_node(self, n: Node) -> Any:
        """See the base class."""
        value = super().run_node(n)
        if n in self._answers:
            as_captured = torch.as_tensor(value).bool() == self._answers[n]
            self._always[n] = as_captured & self._always.get(n, torch.tensor(True))
        return value


def _run(
    module: nn.Module,
    model: nn.Module,
    inputs: ExampleInputs,
    training: bool,
    fast: bool = False,
    within: Any = None,
    call: Callable[..., Any] | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    dice = Dice()
    try:
        with (
            torch.inference_mode(False),
            unwritten(model, training),
            evaluating(module, training),
            nullcontext() if fast else without_fast_paths(),
            within or nullcontext(),
        ):
            copied = inputs.copied() if change is None else inputs.copied().mapped(change)
            found = tensor_leaves((call or module)(*copied.args, **copied.kwargs))
            written = model.buffers() if training and within is not None else ()
            return [dense(tensor.detach()).clone() for tensor in (*found, *written)]
    finally:
        dice.put_back()


def agree(expected: list[Tensor], found: list[Tensor], bound: float = 0.0) -> bool:
    """Whether a model has returned the same, but for rounding, which is at least as large as a bound."""
    return len(expected) == len(found) and all(_close(*pair, bound) for pair in zip(expected, found, strict=True))


def _close(expected: Tensor, found: Tensor, bound: float) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not expected.is_floating_point() or not expected.numel():
        return torch.equal(expected, found)
    bound = max(bound, _TOLERANCE.get(expected.dtype, 2e-2))
    return largest_gap(expected, found) <= bound * max(largest_value(expected), 1e-30)
