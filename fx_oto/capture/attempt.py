"""One try to capture a model: its runs, the one graph of both modes, and the tape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fx_oto.analysis.recording import Recording, fake_run, record_tape
from fx_oto.analysis.tape import Tape
from fx_oto.capture.check import check_branches, check_capture, not_the_same_without
from fx_oto.capture.comparison import Comparison
from fx_oto.capture.forms import Forms
from fx_oto.capture.groups import Group, groups_of, resized
from fx_oto.capture.memory import Memory
from fx_oto.capture.names import AnyNames
from fx_oto.capture.other_numbers import followed, reads_plain
from fx_oto.capture.other_sizes import OtherSizes
from fx_oto.capture.precision import Precision
from fx_oto.capture.raising import is_same_otherwise, way_after
from fx_oto.capture.rebuilt import Rebuilt
from fx_oto.capture.refusals import ON_VALUES, NotCapturedError, NotHashedError
from fx_oto.capture.run import CaptureRun
from fx_oto.capture.sheet import Options
from fx_oto.capture.sizes import Sizes, names_of
from fx_oto.capture.small import keep_small_out, let_ones_in
from fx_oto.capture.states import note_of_state
from fx_oto.capture.subject import Subject
from fx_oto.capture.whole import GradientHook, LeafTracer, Part
from fx_oto.capture.writer import holder_of
from fx_oto.core.context import Capture, ExampleInputs
from fx_oto.core.errors import InputError, TraceError
from fx_oto.core.fx_utils import tensor_leaves, with_modes_of
from fx_oto.core.handed import HandedGraph
from fx_oto.core.preserve import unchanged
from fx_oto.nn.leaves import LeafOp, OpaqueOp
from fx_oto.nn.modes import FLAG, TrainingFlag, merge_modes

__all__ = ["Attempt", "Captured", "FixedByValuesError", "analysed_tape"]


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
                fake_run(gm, resized(inputs, {group: size}))
                larger[group] = size
    if larger:
        with suppress(InputError):
            return record_tape(gm, resized(inputs, larger)).counted_as(tape)
        return record_tape(gm, inputs)
    return tape


def _not_both(error: Exception) -> NotCapturedError:
    refusal = NotCapturedError(f"the graph of both modes does not run: {error}")
    refusal.in_training = True
    return refusal


# How many rows may have been selected.
_LENGTHS = (1, 2, 3, 1009)


class FixedByValuesError(Exception):
    """Sizes are fixed where single functions are called as a whole, for their results depend on numbers."""


@dataclass(frozen=True)
class Captured:
    """A model that was captured.

    Attributes:
        gm: its graph.
        how: how it was captured.
        tape: its ATen calls.
        both_modes: whether its graph follows the training mode, or stays in evaluation.
        notes: what its user should know.
    """

    gm: GraphModule
    how: Capture
    tape: Tape
    both_modes: bool
    notes: list[str]

    @property
    def num_bound(self) -> tuple[int, int]:
        """How many sizes are fixed, and of how many others code asks something that the graph checks."""
        sizes = self.how.sizes
        return sum(bool(size.fixed) for size in sizes), sum(bool(size.decided) for size in sizes)


@dataclass
class Attempt:
    """One try to capture a model.

    Attributes:
        subject: the model.
        inputs: its example inputs.
        options: how code is met that a capture has no other answer to.
        both_modes: whether training is captured, or evaluation alone.
        constants: tensors that are no module's, and what makes objects again, by their name in the graph.
        types: those of the inputs that were given, where these are of others.
    """

    subject: Subject
    inputs: ExampleInputs
    options: Options
    both_modes: bool
    constants: dict[str, Tensor | Rebuilt] = field(default_factory=dict)
    types: tuple[torch.dtype, ...] = ()
    _fakes: Recording | None = None
    _comparisons: dict[CaptureRun, Comparison] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.subject.model

    def result(self) -> Captured:
        """The graph, how it was captured, and its tape.

        Raises:
            NotCapturedError: the model's code does something that cannot be captured.
            NotHashedError: it uses sizes as keys at a place where that is not allowed yet.
            FixedByValuesError: its sizes are fixed, and may not be.
            TraceError: the graph does not do what the model does.
        """
        try:
            return self._on_these_inputs()
        except TraceError as error:  # over one row batch norms fail in training, or code leaves them in evaluation
            in_training = not isinstance(error, NotCapturedError) or error.in_training
            if in_training and (found := self._captured_on(self._larger_batch())) is not None:
                return found
            raise

    def _on_these_inputs(self) -> Captured:
        runs = self._runs(self.inputs)
        self._check_branches(runs)
        handed = any(run.handed for run in runs)
        # Before anything is rewritten: captures are compared.
        types = tuple(tensor.dtype for tensor in self._given_tensors())
        forms = Forms.of(runs, self.inputs, self._runs, self._runs_with_number, self.types or types)
        found = None if self.types else self._captured_on(forms.of_other_types(self.inputs), types)
        if found is not None:
            return found
        precision = Precision(self.model, self.inputs, runs, self._runs_of)
        comparisons = {run: self._comparisons.get(run) or Comparison(run) for run in runs}
        sizes = Sizes(self.model, self.inputs, self._runs_like, self._run_seen_as, comparisons)
        by_values = not self.options.may_fix and any(run.calls_functions_whole for run in runs)
        if by_values and sizes.fixes_what_was_tried:
            raise FixedByValuesError
        if sizes.ones and (found := self._captured_on([resized(self.inputs, sizes.ones)])) is not None:
            return found
        is_cast = precision.rewrite()
        for run in runs:
            forms.fix(run)
        gm, merged = self._joined(runs)
        with_modes_of(gm, self.model)
        both = self.both_modes and (merged or not all(run.is_plain for run in runs))
        not_checked = let_ones_in(gm, self.model, self.inputs, sizes.decided, both)
        sizes.forget(not_checked)
        too_small = keep_small_out(gm, self.model, self.inputs, sizes.doubts, both, runs[-1].name_of_input)
        sizes.doubt(too_small)
        try:
            as_run = not (not_checked or too_small) and (handed or not merged)
            tape = self._tape(gm, runs[0], sizes, is_cast) if as_run else analysed_tape(gm, self.inputs)
        except (InputError, RuntimeError) as error:
            if not merged:
                raise
            raise _not_both(error) from error
        check_capture(gm, self.model, self.inputs, both, set[str]().union(*(run.asked_for for run in runs)))
        capture = Capture("fx_oto", tuple(self._called_whole(gm, tape)), sizes.found)
        kept = list(dict.fromkeys(name for run in runs for name in run.keeps))
        written = set[Any]().union(*(run.written_in_model for run in runs))
        decisions = [note for run in runs for note in run.decisions_by(written)]
        told = [*(note for run in runs for note in run.notes), *decisions, *(note for _, note in sizes.notes)]
        notes = list(dict.fromkeys([*told, *note_of_state(kept, self.model, self.inputs, self.both_modes)]))
        return Captured(gm, capture, tape, self.both_modes, notes)

    def _given_tensors(self) -> list[Tensor]:
        return tensor_leaves((self.inputs.args, self.inputs.kwargs))

    def _check_branches(self, runs: list[CaptureRun]) -> None:
        for run in runs:
            modes = (False, True) if len(runs) == 1 and self.both_modes else (run.training,)
            for training in modes if run.branches else ():
                check_branches(run, training)

    def _larger_batch(self) -> list[ExampleInputs]:
        """The inputs with another batch in the place of one of 1, if that is theirs."""
        ones = {one: one.others()[0] for one in groups_of(self.inputs) if one.is_batch and one.size == 1}
        return [resized(self.inputs, ones)] if ones else []

    def _captured_on(self, others: Iterable[ExampleInputs], types: tuple[torch.dtype, ...] = ()) -> Captured | None:
        """A capture on the first of other inputs of which the graph takes those that were given, too."""
        found = (self._captured_on_one(inputs, types or self.types) for inputs in others)
        return next((one for one in found if one is not None), None)

    def _captured_on_one(self, inputs: ExampleInputs, types: tuple[torch.dtype, ...]) -> Captured | None:
        options = replace(self.options, in_own_mode=frozenset())
        try:
            found = Attempt(self.subject, inputs, options, self.both_modes, self.constants, types).result()
            check_capture(found.gm, self.model, self.inputs, self.both_modes)
            tape = analysed_tape(found.gm, self.inputs)
        except (NotCapturedError, NotHashedError, FixedByValuesError, TraceError, InputError):
            return None
        given = dict(zip(names_of(self.model, self.inputs), self._given_tensors(), strict=True))
        sizes = [
            # Those that code decides by are like the larger one.
            one if one.decided else replace(one, size=given[one.dims[0][0]].size(one.dims[0][1]))
            for one in found.how.sizes
        ]
        return replace(found, how=replace(found.how, sizes=tuple(sizes)), tape=tape)

    def _called_whole(self, gm: GraphModule, tape: Tape) -> Iterator[str]:
        """The names of what the graph calls as a whole."""
        called = {node.target for node in gm.graph.nodes if node.op in ("call_module", "call_function")}
        opaque = {part.target_in(self.model): part.name_in(self.model) for part in self.options.opaque}
        yield from (name for target, name in opaque.items() if target in called)
        for kind, line in self.options.statements:
            yield f"line {line} of {'' if kind is type(self.model) else f'{kind.__name__}.'}forward"
        asking = {node.name: str(node.target) for node in gm.graph.nodes if node.meta.get("asks_values")}
        for name, target in asking.items():
            whole = any(isinstance(call.func, OpaqueOp | LeafOp) for call in tape.made_at(name))
            if whole and target in self.subject.modules and target not in opaque:
                yield target

    def _runs(self, inputs: ExampleInputs) -> list[CaptureRun]:
        """Evaluation, and training where the code asks for the mode.

        Raises:
            NotCapturedError: the model's code does something that cannot be captured, or does not take the inputs.
        """
        evaluation = self._run(inputs, training=False)
        again = self.both_modes and (evaluation.asked or self.subject.reads_mode)
        if not again:
            return [evaluation]
        try:
            training = self._run(inputs, training=True)
        except NotCapturedError as error:
            error.in_training = not self.options.opaque
            raise
        moved = evaluation.in_own_mode | training.in_own_mode
        if inputs is self.inputs and not moved <= self.options.in_own_mode:  # each mode alone sees half of them
            self.options = replace(self.options, in_own_mode=self.options.in_own_mode | moved)
            return self._runs(inputs)
        return [evaluation, training]

    def _runs_like(self, inputs: ExampleInputs, runs: list[CaptureRun]) -> list[CaptureRun]:
        """The model on other inputs, in the modes of some runs."""
        return [self._run(inputs, run.training) for run in runs]

    def _runs_of(self, model: nn.Module, inputs: ExampleInputs, runs: list[CaptureRun]) -> list[CaptureRun]:
        """The model on other inputs, or a copy of it, captured in the same way."""
        if model is self.model:
            return self._runs_like(inputs, runs)
        if self.options.opaque:  # parts of the model itself
            raise NotCapturedError("what is called as a whole is no part of a copy")
        with unchanged(model) as put_back:
            return Attempt(Subject(model, put_back), inputs, self.options, self.both_modes)._runs_like(inputs, runs)

    def _runs_with_number(self, given: tuple[int, float]) -> list[CaptureRun]:
        return replace(self, options=replace(self.options, given=given))._runs(self.inputs)

    def _run_seen_as(self, other: OtherSizes, run: CaptureRun) -> CaptureRun:
        """A run again, where code that does not let sizes remember sees other numbers in their place."""
        options = replace(run.options, other_size=other, hands_others=other.are_handed)
        return self._run_with(options, self.inputs, run.training)

    def _run(self, inputs: ExampleInputs, training: bool) -> CaptureRun:
        run = self._run_without_errors(inputs, training)
        if not is_same_otherwise(run, partial(self._run_with, inputs=inputs, training=training)):
            raise self._refusal(run)
        if run.numbers_read and inputs is self.inputs:
            if (comparison := self._followed(run)) is not None:
                self._comparisons[run] = comparison
            elif self.options.reads_plain and reads_plain(run):  # or what asks for them is called as a whole
                self.options = replace(self.options, reads_plain=False)
                return self._run(inputs, training)
            else:
                raise self._refusal(run)
        counts = run.counts_rows and inputs is self.inputs
        if counts and not all(self._is_same_with(run, length) for length in _LENGTHS):
            raise not_the_same_without(run)
        return run

    def _followed(self, run: CaptureRun) -> Comparison | None:
        """What the graph makes of the numbers that are read; None also if nobody knew of the same graph before."""
        same = replace(run.options, compiling=False), run.training, str(run.graph)
        found = None
        if same not in self.subject.not_followed:
            found = followed(run, partial(self._run_with, training=run.training))
        if found is None:
            self.subject.not_followed.append(same)
        return found

    def _run_without_errors(self, inputs: ExampleInputs, training: bool) -> CaptureRun:
        """A run in which code that decides by numbers goes where it raises no error, or either way."""
        options = self.options
        while True:
            try:
                return self._run_with(options, inputs, training)
            except NotCapturedError as error:
                way = way_after(error, options, partial(self._run_with, inputs=inputs, training=training))
                if way is None:
                    raise
                options = replace(options, ways={**options.ways, way[0]: way[1]})
                if inputs is self.inputs:  # of others code may raise an error that these never lead to
                    self.options = options

    def _is_same_with(self, run: CaptureRun, length: int) -> bool:
        """Whether the graph is the same where code is given another number of rows that were selected."""
        try:
            other = self._run_with(replace(self.options, length=length), self.inputs, run.training)
        except NotCapturedError:
            return False
        return str(other.graph) == str(run.graph)

    def _refusal(self, run: CaptureRun) -> NotCapturedError:
        """Of numbers that are read from tensors; modules whose statements read them can be called as a whole."""
        where = next((line for _, line in run.numbers_read if line), "")
        kinds = {kind for kind, _ in self.options.statements} - {type(self.model)}
        parts = [Part(module, "forward") for module in self.subject.modules.values() if type(module) in kinds]
        text = f"{type(self.model).__name__} cannot be captured{where and f' at {where}'}: {ON_VALUES}"
        return NotCapturedError(text, parts, by_values=True)

    def _run_with(self, options: Options, inputs: ExampleInputs, training: bool) -> CaptureRun:
        run = CaptureRun(training, self.subject, inputs, options, self.constants, self._fakes)
        self._fakes = run.fakes
        return run.run()

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
            raise _not_both(error) from error
        if graph is training.graph:
            return evaluation.module(), False
        graph._tracer_cls = LeafTracer
        graph.set_codegen(AnyNames())
        return HandedGraph(holder, graph, type(self.model).__name__), True

    def _tape(self, gm: GraphModule, run: CaptureRun, sizes: Sizes, is_cast: bool) -> Tape:
        larger = resized(self.inputs, sizes.larger) if sizes.larger else None
        rewritten = sizes.rewritten or run.rewritten
        if run.graph is not gm.graph:  # of both modes
            tape = record_tape(gm, self.inputs)
            return tape if larger is None else record_tape(gm, larger).counted_as(tape)
        if not rewritten and larger is None:
            return run.tape(gm)
        tape = record_tape(gm, self.inputs) if rewritten else run.tape(gm)
        if larger is None:
            return tape
        other = sizes.run_on_larger()
        if other is None or rewritten or is_cast:
            return record_tape(gm, larger).counted_as(tape)
        return other.tape(gm).counted_as(tape)
