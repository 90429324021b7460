"""From an eager model to a GraphModule that behaves like it in both training modes, and the tape of its ATen calls."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from fx_oto.capture.arguments import Arguments
from fx_oto.capture.check import check_capture
from fx_oto.capture.memory import Memory
from fx_oto.capture.names import AnyNames
from fx_oto.capture.rebuilt import Rebuilt
from fx_oto.capture.refusals import NotCapturedError, NotHashedError, RandomError
from fx_oto.capture.run import CaptureRun
from fx_oto.capture.sizes import Comparison, Difference, Group, groups_of, names_of, resized
from fx_oto.capture.statements import statement_at
from fx_oto.capture.subject import Subject
from fx_oto.capture.whole import GradientHook, LeafTracer
from fx_oto.capture.writer import Options, holder_of
from fx_oto.dice import Dice
from fx_oto.errors import InputError, TraceError
from fx_oto.framework.context import Capture, Context, ExampleInputs, InputSize
from fx_oto.framework.records import PassRecord
from fx_oto.graph import graph_copy, one_at_a_time, quiet_fakes, raised_at, tensor_leaves, tensor_names, with_modes_of
from fx_oto.groups.explanations import Untraced
from fx_oto.keeping import unchanged, uncollected, uncompiled, unwritten
from fx_oto.masks import MASKS, drop_masks
from fx_oto.modes import FLAG, TrainingFlag, merge_modes
from fx_oto.provenance.misfits import misfit
from fx_oto.provenance.tape import Recording, Tape, fake_run, record_tape
from fx_oto.warn import warn

__all__ = ["LeafTracer", "analysed_tape", "trace"]


def trace(model: nn.Module, example_inputs: Any) -> GraphModule:
    """Capture a model as a GraphModule that shares its parameters, buffers and leaf modules.

    The model is run once, on fake tensors and on numbers that remember where they come from, and what it calls is
    written down: torch's layers as modules, torch's functions as they are called. Where the model's code asks for
    ``self.training`` it is run in both modes, and the graph asks again each time it runs. Where code is given sizes
    it is run at others, too: where that makes no difference the graph takes them, and where it does the graph checks
    that they are what they were. What cannot be captured, the smallest submodules and methods that stand in the way, is
    called as a whole, and what touches that is kept whole. ``Context.of(gm).capture`` says all that.

    Args:
        model: any module; a GraphModule from ``torch.fx.symbolic_trace`` or ``torch.export`` is taken as it is, one
            of fx_oto's with the record of its passes; of a data-parallel wrapper and of ``torch.compile``'s the module
            inside.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or
            ``(args, kwargs)``. Only their shapes, types and structure matter here; sizes of 1 are captured larger where
            the model allows.

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
    model = _unwrapped(model)
    _check(model)
    records: tuple[PassRecord, ...] = ()
    if isinstance(model, GraphModule):
        gm = _without_masks(graph_copy(model))
        earlier = Context.of(model) if "fx_oto" in model.meta else Context(inputs, Capture("GraphModule"))
        capture, records, tape = earlier.capture, earlier.records, analysed_tape(gm, inputs)
    else:
        with one_at_a_time, quiet_fakes(), uncollected(), uncompiled():
            gm, capture, tape = _capture(model, inputs.copied())  # its code may write into them
    context = Context(inputs, capture, records=records).provide(tape).provide(Untraced.of(model, gm))
    return context.attach(gm)


def analysed_tape(gm: GraphModule, inputs: ExampleInputs) -> Tape:
    """Record a graph's tape, with sizes of 1 in the example inputs replaced by larger ones where the graph allows.

    A size of 1 hides what it is combined with. Multiply-adds are counted on the example inputs themselves.

    Raises:
        InputError: the example inputs do not fit the model; the text names node and source line.
    """
    tape = record_tape(gm, inputs)
    larger: dict[Group, int] = {}
    for group in groups_of(inputs):
        if group.size == 1:
            with suppress(InputError):
                size = group.others()[0]
                fake_run(gm, resized(inputs, {group: size}), nullcontext())
                larger[group] = size
    if larger:
        with suppress(InputError):
            return record_tape(gm, resized(inputs, larger)).counted_as(tape)
        return record_tape(gm, inputs)
    return tape


def _unwrapped(model: Any) -> Any:
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif type(model).__name__ == "OptimizedModule" and isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


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
    """In both modes, with the submodules and methods that refuse called as a whole, the innermost first."""
    Arguments.of(model, inputs)
    _check_devices(model, inputs)
    with unchanged(model) as put_back:
        return _captured(Subject(model, put_back), inputs)


def _captured(subject: Subject, inputs: ExampleInputs) -> tuple[GraphModule, Capture, Tape]:
    model = subject.model
    first: NotCapturedError | None = None
    options = Options()
    for both_modes, op_level in ((True, True), (True, False), (False, True), (False, False)):
        following: Options | None = replace(options, op_level=op_level, opaque=(), statements=(), watchful=False)
        while following is not None:
            options = following
            try:
                found = _Attempt(subject, inputs, options, both_modes).result()
            except NotHashedError as error:
                following = replace(options, hashable=options.hashable | {error.site})
            except _FixedByValuesError:  # in larger pieces, the sizes may stay free
                break
            except NotCapturedError as error:
                if first is None:
                    _check_inputs(model, inputs, error.where)
                    first = error
                following = _after(error, options, type(model))
            else:
                if not both_modes:
                    warn(
                        f"{first}. It was captured in evaluation mode, in which this graph stays: train the model "
                        "itself, whose parameters the graph shares"
                    )
                return found
    raise TraceError(
        f"{first}. What to do: as control flow that depends on tensor values cannot be captured, replace it by torch "
        "operations such as torch.where, or move it into a submodule, which is called as a whole"
    ) from first


def _after(error: NotCapturedError, options: Options, kind: type) -> Options | None:
    """How to go on after code that could not be captured; None to try it in another way."""
    if isinstance(error, RandomError):
        return None if options.watchful else replace(options, watchful=True)
    if error.by_values and not options.compiling:
        return replace(options, compiling=True)
    left = [part for part in error.parts if part not in options.opaque]
    if error.in_training or options.op_level:  # if in training, evaluation alone can be captured
        return None
    if left:
        return replace(options, opaque=(*options.opaque, left[-1]))
    line = None if error.line is None else statement_at(kind, error.line)
    if line is None or line in options.statements:
        return None
    return replace(options, statements=(*options.statements, line))


def _check_devices(model: nn.Module, inputs: ExampleInputs) -> None:
    """Fake tensors could be anywhere.

    Raises:
        InputError: no tensor of the model is where the inputs are.
    """
    mine = {tensor.device for tensor in tensor_names(model).values()}
    given = [tensor for tensor in tensor_leaves((inputs.args, inputs.kwargs)) if tensor.ndim]
    if mine and given and mine.isdisjoint(tensor.device for tensor in given):
        raise misfit(RuntimeError("expected all tensors on one device"), "", model, inputs)


def _check_inputs(model: nn.Module, inputs: ExampleInputs, where: str) -> None:
    """Tell inputs on which the model itself does not run from code that cannot be captured.

    Raises:
        InputError: the model does not run on them.
    """
    given = (*tensor_names(model).values(), *tensor_leaves((inputs.args, inputs.kwargs)))
    dice = Dice()
    try:
        if any(tensor.is_meta for tensor in given):  # it cannot really run
            fake_run(model, inputs, nullcontext())
        else:  # not on fake tensors, which caches of the user's would keep
            _really_run(model, inputs.copied(), where)
    finally:
        dice.put_back()


def _really_run(model: nn.Module, inputs: ExampleInputs, where: str) -> None:
    try:
        with unwritten(model):
            model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        at = f" at {found}" if (found := raised_at(error)) else where
        raise misfit(error, at, model, inputs) from error


class _FixedByValuesError(Exception):
    """Sizes are fixed where single functions are called as a whole, for their results depend on numbers."""


@dataclass
class _Attempt:
    """One try to capture a model.

    Attributes:
        subject: the model.
        inputs: its example inputs.
        options: how code is met that a capture has no other answer to.
        both_modes: whether training is captured, or evaluation alone.
        constants: tensors that are no module's, and what makes objects again, by their name in the graph.
    """

    subject: Subject
    inputs: ExampleInputs
    options: Options
    both_modes: bool
    constants: dict[str, Tensor | Rebuilt] = field(default_factory=dict)
    _fakes: Recording | None = None

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.subject.model

    def result(self) -> tuple[GraphModule, Capture, Tape]:
        """The graph, how it was captured, and its tape.

        Raises:
            NotCapturedError: the model's code does something that cannot be captured.
            NotHashedError: it uses sizes as keys at a place where that is not allowed yet.
            TraceError: the graph does not do what the model does.
        """
        runs = self._runs(self.inputs)
        handed = any(run.handed for run in runs)
        sizes = _Sizes(self, runs, handed)
        if (
            self.options.op_level
            and any(run.calls_functions_whole for run in runs)
            and any(one.fixed for one in sizes.found)
        ):
            raise _FixedByValuesError
        gm, merged = self._joined(runs)
        with_modes_of(gm, self.model)
        tape = self._tape(gm, runs[0], sizes) if handed or not merged else analysed_tape(gm, self.inputs)
        check_capture(gm, self.model, self.inputs, self.both_modes and not (len(runs) == 1 and runs[0].is_plain))
        for note in dict.fromkeys(note for run in runs for note in run.notes):
            warn(note)
        called = {node.target for node in gm.graph.nodes if node.op in ("call_module", "call_function")}
        names = [part.name_in(self.model) for part in self.options.opaque if part.target_in(self.model) in called]
        names += [f"line {line} of forward" for line in self.options.statements]
        names += [node.name for node in gm.graph.nodes if node.meta.get("asks_values") and node.target not in called]
        return gm, Capture("fx_oto", tuple(names), sizes.found), tape

    def _runs(self, inputs: ExampleInputs) -> list[CaptureRun]:
        """Evaluation, and training where the code asks for the mode."""
        evaluation = self._run(inputs, training=False)
        again = self.both_modes and evaluation.asked
        if not again:
            return [evaluation]
        try:
            return [evaluation, self._run(inputs, training=True)]
        except NotCapturedError as error:
            error.in_training = not self.options.opaque
            raise

    def _run(self, inputs: ExampleInputs, training: bool) -> CaptureRun:
        run = CaptureRun(training, self.subject, inputs, self.options, self.constants, self._fakes)
        self._fakes = run.fakes
        return run.run()

    def others(self, inputs: ExampleInputs) -> list[CaptureRun]:
        """The same on other inputs.

        Raises:
            NotCapturedError: the model does not take them.
        """
        return self._runs(inputs)

    def _joined(self, runs: list[CaptureRun]) -> tuple[GraphModule, bool]:
        """One graph of both modes, and whether they differ."""
        if len(runs) == 1:
            return runs[0].module(), False
        evaluation, training = runs
        for run in runs:
            for hook in run.held.values():
                if isinstance(hook, GradientHook):
                    hook.only = run.training
        held = {**evaluation.held, **training.held, FLAG: TrainingFlag()}
        holder = holder_of(held)
        train = GraphModule(holder, training.graph)
        GraphModule(holder, evaluation.graph)
        try:
            graph = merge_modes(train.graph, evaluation.graph, holder, Memory(holder, self.inputs).reaches)
        except InputError as error:
            raise NotCapturedError(f"the graph of one mode does not run: {error}") from error
        if graph is training.graph:
            return evaluation.module(), False
        graph._tracer_cls = LeafTracer
        graph.set_codegen(AnyNames())
        return GraphModule(holder, graph, type(self.model).__name__), True

    def _tape(self, gm: GraphModule, run: CaptureRun, sizes: _Sizes) -> Tape:
        larger = resized(self.inputs, sizes.larger) if sizes.larger else None
        if run.graph is not gm.graph:  # of both modes
            tape = record_tape(gm, self.inputs)
            return tape if larger is None else record_tape(gm, larger).counted_as(tape)
        if not sizes.rewritten and larger is None:
            return run.tape(gm)
        tape = record_tape(gm, self.inputs) if sizes.rewritten else run.tape(gm)
        if larger is None:
            return tape
        other = sizes.run_on_larger()
        if other is None or sizes.rewritten:
            return record_tape(gm, larger).counted_as(tape)
        return other.tape(gm).counted_as(tape)


class _Sizes:
    """Which sizes of its inputs the graphs of an attempt take.

    Attributes:
        found: of each size.
        larger: those of 1 that were captured larger.
        rewritten: whether numbers in the graph have become computations.
    """

    def __init__(self, attempt: _Attempt, runs: list[CaptureRun], handed: bool) -> None:
        self._attempt, self._runs = attempt, runs
        self._names = names_of(attempt.model, attempt.inputs)
        self._others: dict[Group, list[CaptureRun]] = {}
        self._comparisons = [Comparison(run) for run in runs]
        self._fixed: list[tuple[Group, Difference]] = []
        self.larger: dict[Group, int] = {}
        found: list[InputSize] = []
        for group in groups_of(attempt.inputs):
            found += self._try(group) if handed or (group.size == 1 and len(runs) == 1) else [self._told(group)]
        self.found = tuple(found)
        self._on_larger = self._run_on_larger()
        rewritten = [comparison.rewrite() for comparison in self._comparisons]
        self.rewritten = any(rewritten) or bool(self._fixed)
        for group, difference in self._fixed:  # not before: captures are compared node by node
            for run in runs:
                run.fix(group.dims, group.size, difference)

    def _told(self, group: Group, fixed: str = "", decided: str = "") -> InputSize:
        return InputSize(tuple((self._names[number], dim) for number, dim in group.dims), group.size, fixed, decided)

    def _try(self, group: Group) -> list[InputSize]:
        difference: Difference | None = None
        taken: int | None = None
        others_differ = False
        for size in group.others():
            try:
                others = self._attempt.others(resized(self._attempt.inputs, {group: size}))
            except (NotCapturedError, InputError):  # the model does not take it
                continue
            if (found := self._compare(others, group, size)) is None:
                self._others[group] = others
                guessed, taken = taken is None and any(one.guesses for one in self._comparisons), size
                difference = next(filter(None, (one.decision for one in self._comparisons)), difference)
                if guessed:  # that a number follows the size must be so at another, too
                    continue
                break
            difference, others_differ = difference or found, True
            if not found.check or taken is not None:  # else code decides, and may decide otherwise at another size
                taken = None
                break
        if taken is not None:
            if group.size == 1:
                self.larger[group] = taken
            if others_differ and group.is_batch:
                self._announce("batches that the model's code treats like those", group, difference)
            return [self._told(group, decided=str(difference or ""))]
        if difference is not None:
            return [self._fix(group, difference)]
        return [told for one in group.apart() for told in self._try(one)] or [self._told(group)]

    def _compare(self, others: list[CaptureRun], group: Group, size: int) -> Difference | None:
        for comparison, other in zip(self._comparisons, others, strict=False):
            if (difference := comparison.with_other(other, group, size)) is not None:
                return difference
        return None

    def _fix(self, group: Group, difference: Difference) -> InputSize:
        """Let the graphs check the size."""
        self._fixed.append((group, difference))
        told = self._told(group, str(difference))
        if group.is_batch:
            self._announce("batches", group, difference)
        return told

    def _announce(self, batches: str, group: Group, difference: Difference | None) -> None:
        self._runs[0].notes.append(
            f"the graph takes {batches} of {group.size} only, for code makes Python numbers of the batch size, or "
            f"decides by it: see {difference}. Other batches raise an error; give example inputs of the size that you "
            "train with, or let the code leave sizes to torch, such as -1 in a reshape"
        )

    def run_on_larger(self) -> CaptureRun | None:
        """The evaluation in which all sizes of 1 are larger; None if it is not the same."""
        return self._on_larger

    def _run_on_larger(self) -> CaptureRun | None:
        if len(self.larger) <= 1:
            return self._others[next(iter(self.larger))][0] if self.larger else None
        try:
            others = self._attempt.others(resized(self._attempt.inputs, self.larger))
        except (NotCapturedError, InputError):
            self.larger = {}
            return None
        same = len(others[0].graph.nodes) == len(self._runs[0].graph.nodes)
        return others[0] if same else None
