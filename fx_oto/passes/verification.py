"""Verification: the compact model returns what the user's model returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fx_oto.analysis.dependencies import Dependencies
from fx_oto.analysis.recording import record_tape
from fx_oto.core.context import Context, ExampleInputs
from fx_oto.core.differences import lowest_tolerance, relative_error, tensors_in, worst_of
from fx_oto.core.errors import VerificationError
from fx_oto.core.fx_utils import described, graph_copy
from fx_oto.core.gradients import ReadGradient, Unlike, how_unlike, perturbed, read_gradients, same_sizes, sample_of
from fx_oto.core.original import Original
from fx_oto.core.preserve import Dice, unwritten, without_backward_hooks, without_fast_paths
from fx_oto.core.warn import warn
from fx_oto.framework.node_values import at_random, values_of
from fx_oto.framework.stages import Analysis
from fx_oto.ops.custom.registration import taught
from fx_oto.passes.drop_branches import DropBranches
from fx_oto.passes.physical_slicing import PhysicalSlicing, SlicingPlan

__all__ = ["Verification", "VerificationReport"]

# Of gradients. A branch that is cut off makes a difference of 1; in float32, batch norms over few values make one of
# several hundredths of rounding alone. In half precision too little is left to compare.
_OF_GRADIENTS = {torch.float64: 1e-6, torch.float32: 0.1}
_MOST = max(_OF_GRADIENTS.values())
_LARGEST = 1 << 24  # elements of a parameter; the gradients of larger ones would need as much memory as they do


@dataclass(frozen=True)
class VerificationReport:
    """How much the compact model's outputs differ from the group-sparse one's, and how much they may.

    Attributes:
        error: the largest absolute difference in any output tensor, relative to the largest value expected in it.
        tolerance: what was allowed: 1e-10 in float64, 1e-5 in float32, 1e-2 in float16, 5e-2 in bfloat16; of a model
            that computes in several, that of the lowest.
        gradients: of how many parameters the gradients were compared as well.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_(0.5)
        >>> found = fx_oto.Context.of(fx_oto.compress(gm)).get(fx_oto.VerificationReport)
        >>> found.error <= found.tolerance == 1e-5, found.gradients
        (True, 4)
    """

    provided_by: ClassVar[str] = "verification"

    error: float
    tolerance: float
    gradients: int = 0


@dataclass(frozen=True)
class _Reading:
    """The parameters whose gradients are read, what reads them, and whether that is vain."""

    names: Iterable[str]
    read: ReadGradient
    is_vain: Callable[[], bool] = lambda: False

    def of(self, model: nn.Module, outputs: list[Tensor]) -> None:
        if not self.is_vain():
            held = dict(model.named_parameters(remove_duplicate=False))
            read_gradients(outputs, {name: held[name] for name in self.names if name in held}, self.read)


@dataclass(frozen=True)
class Verification(Analysis):
    """Run the compact model and the model that was given to ``prepare``, in eval mode, and compare.

    The example inputs are compared, with the type and on the device that the weights have now, and twice that batch
    where the graph takes any. The model is run as it was captured, without autocast, hooks and ``forward`` methods that
    others have put on it since; where its hooks make a difference, a warning tells. Where there is no such
    model any more, or ``reference`` is a copy with parameters of its own, the group-sparse GraphModule takes its place.
    Provides ``VerificationReport``.

    Gradients of the parameters that are left, for a random loss on the example inputs, are compared as well, in
    training mode, or in evaluation where training is random or cannot be run; in float32 and float64, and of
    parameters of up to 16 million elements.

    Attributes:
        reference: the group-sparse GraphModule that the compact one was made from.

    Raises:
        VerificationError: when it runs: the outputs differ; names the first node that does. Or gradients do; names
            their parameters. Or a buffer holds NaN, and so do all outputs.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_(0.5)
        >>> stages = fx_oto.Pipeline((fx_oto.PhysicalSlicing(), fx_oto.Verification(gm)))
        >>> [record.name for record in fx_oto.report(stages.run(gm)).records[3:]]
        ['physical-slicing', 'verification']
    """

    name: ClassVar[str] = "verification"
    requires: ClassVar[tuple[type, ...]] = (SlicingPlan,)
    provides: ClassVar[tuple[type, ...]] = (VerificationReport,)
    trusted: ClassVar[bool] = True

    reference: GraphModule = field(repr=False)

    def analyse(self, gm: GraphModule, context: Context) -> VerificationReport:
        """Compare every output tensor, and unless a pass changed the graph after slicing the gradients of parameters.

        Raises:
            VerificationError: the outputs differ; names the first node that does, or the one that draws random numbers.
                Or gradients differ.
        """
        dice = Dice(of=self.reference)
        try:
            report = self._compared(gm, context, dice)
            self._tell_of_hooks(gm, context)
            dice.put_back()
            if _is_rewritten(context):  # parameters may be others, as of folded norms
                return report
            return replace(report, gradients=self._compared_gradients(gm, context, dice))
        finally:
            dice.put_back()

    def _compared(self, gm: GraphModule, context: Context, dice: Dice) -> VerificationReport:
        referee, plan, worst = self._referee, context.get(SlicingPlan), (0.0, 0.0)
        least = lowest_tolerance(gm, self._captured_in)
        for inputs, is_given in self._inputs(context):
            try:
                expected = self._outputs(referee, inputs, of=plan)
            except Exception:
                if is_given:
                    raise
                break  # the model itself takes no other batch
            if is_given:
                self._check_finite(expected)
            dice.put_back()  # a model that draws numbers of a shape that is left as it was draws the same
            error, tolerance = worst_of(expected, self._of_compact(gm, inputs, is_given), least)
            if not error <= tolerance:
                again, allowed = worst_of(expected, self._outputs(referee, inputs, of=plan), least)
                if not again <= allowed:
                    raise VerificationError(at_random(self.reference, context.inputs, again))
                raise VerificationError(self._difference(gm, context, expected, inputs, (error, tolerance)))
            worst = max(worst, (error, tolerance))
            dice.put_back()
        return VerificationReport(*worst)

    def _of_compact(self, gm: GraphModule, inputs: ExampleInputs, is_given: bool) -> list[Tensor]:
        try:
            return self._outputs(gm, inputs)
        except AssertionError as error:
            if not is_given or self._original is None:
                raise
            how = f"its graph, which decides as it did then, refuses the example inputs ({error})"
            raise VerificationError(self._original.no_longer(self.reference, how)) from error

    def _tell_of_hooks(self, gm: GraphModule, context: Context) -> None:
        """Warn where the compact model is not what the model is with the hooks that were put on it since."""
        hooks = [] if self._original is None else self._original.hooks_since()
        if not hooks:
            return
        try:
            expected = self._outputs(self._referee, context.inputs, of=context.get(SlicingPlan), hooked=True)
            least = lowest_tolerance(gm, self._captured_in)
            error, tolerance = worst_of(expected, self._outputs(gm, context.inputs, hooked=True), least)
        except Exception:  # hooks may want what only the user's own calls give
            return
        if not error <= tolerance:
            warn(
                f"with hooks that were put on after prepare, the model returns something else than the compact one, by "
                f"{error:.1e} of the output: on {', '.join(hooks[:3])}{' …' if len(hooks) > 3 else ''}. Graphs have "
                "those of layers alone, and what can go was found without them: prepare the model as it is now, with "
                "its hooks and its zeros, and compress that"
            )

    def _check_finite(self, outputs: list[Tensor]) -> None:
        """Where a buffer holds NaN, some number must be there to compare; else that is what the model returns.

        Raises:
            VerificationError: all are NaN or infinite.
        """
        floats = [one for one in outputs if one.numel() and (one.is_floating_point() or one.is_complex())]
        if not floats or any(bool(one.isfinite().any()) for one in floats):
            return
        buffers = (pair for pair in self.reference.named_buffers() if pair[1].is_floating_point())
        if name := next((name for name, one in buffers if one.isnan().any()), ""):
            raise VerificationError(
                "every number that the full model returns on the example inputs is NaN or infinite, so nothing could "
                f"be compared: {name!r} holds NaN. Restore a checkpoint"
            )

    def _compared_gradients(self, gm: GraphModule, context: Context, dice: Dice) -> int:
        """Compare those in training mode; in evaluation as well where training is random, fails, or is all rounding."""
        compared = 0
        for training in (True, False):
            try:
                found = self._gradients(gm, context, training, dice)
            except VerificationError:
                raise
            except Exception:  # of any kind: a batch norm over one value, a kernel without derivative, want of memory
                found = None
            finally:
                dice.put_back()
            if found is not None:
                compared = max(compared, len(found.differences))
                if self._are_clear(gm, context, found, training):
                    break
        return compared

    def _gradients(self, gm: GraphModule, context: Context, training: bool, dice: Dice) -> Unlike | None:
        """The model's gradients beside the compact one's; None where the mode cannot be compared."""
        # As a function of what is left, with the rest at zero, the compact model is the full one: so their derivatives
        # are equal. That holds for each parameter, for slicing changes no number of those that it keeps: what channels
        # that were removed contributed is added by nodes of the graph, and a norm's factor is in its forward.
        mine: dict[str, Tensor] = {}
        whole = dict(self.reference.named_parameters(remove_duplicate=False))
        names = [name for name, left in gm.named_parameters() if whole.get(name, left).numel() <= _LARGEST]

        def is_random() -> bool:
            return training and dice.rolled()  # in evaluation what is drawn is not used: outputs were equal

        def keep(name: str, gradient: Tensor) -> None:
            mine[name] = sample_of(gradient)

        outputs = self._outputs(gm, context.inputs, training, _Reading(names, keep, is_random))
        if is_random() or not outputs or outputs[0].dtype not in _OF_GRADIENTS:
            return None
        plan = context.get(SlicingPlan)
        found = Unlike(mine, plan.left_of)
        expected = self._outputs(self._referee, context.inputs, training, _Reading(names, found.read, is_random), plan)
        if not is_random():
            same_sizes(expected, outputs, "training" if training else "evaluation")
        error, tolerance = worst_of(expected, outputs, lowest_tolerance(gm, self._captured_in))
        found.missing()
        return None if is_random() or error > 100 * tolerance else found

    def _are_clear(self, gm: GraphModule, context: Context, found: Unlike, training: bool) -> bool:
        """Whether all gradients agree; False where they differ by no more than rounding may, which is much.

        Raises:
            VerificationError: some differ by more.
        """
        tolerance = _OF_GRADIENTS[next(iter(found.expected.values())).dtype] if found.expected else 0.0
        tolerance = max(tolerance, min(100 * lowest_tolerance(gm, self._captured_in), _MOST))
        unlike = {name: apart for name, apart in found.relative().items() if not apart <= tolerance}
        if not unlike:
            return True
        rounding = Unlike(found.expected)
        self._outputs(perturbed(gm), context.inputs, training, _Reading(found.expected, rounding.read))
        noise = rounding.relative()
        wrong = {name: apart for name, apart in unlike.items() if not apart <= 10 * noise.get(name, 0.0)}
        if wrong:
            raise VerificationError(how_unlike(wrong, tolerance, "training" if training else "evaluation"))
        return False

    @property
    def _original(self) -> Original | None:
        return Context.of(self.reference).original

    @property
    def _captured_in(self) -> torch.dtype | None:
        """The type that the weights had then."""
        placed = None if self._original is None else self._original.placed
        return None if placed is None else placed[0]

    @property
    def _referee(self) -> nn.Module:
        model = None if self._original is None else self._original.model
        return self.reference if model is None else model

    def _inputs(self, context: Context) -> Iterator[tuple[ExampleInputs, bool]]:
        """What is compared, and whether it is what the user gave."""
        yield context.inputs, True
        if context.capture.takes_any_batch:
            yield context.inputs.doubled(), False

    def _outputs(
        self,
        model: nn.Module,
        inputs: ExampleInputs,
        training: bool = False,
        reading: _Reading | None = None,
        of: SlicingPlan | None = None,
        hooked: bool = False,
    ) -> list[Tensor]:
        """Copies of a model's outputs, ``of`` a full model's what is left; where asked, its gradients are read."""
        if of is not None:
            inputs = of.as_in_full(self.reference, inputs)
        inputs = inputs.copied()
        as_captured = nullcontext() if self._original is None else self._original.as_captured(model, hooks=hooked)
        with (
            as_captured,
            unwritten(model, training),
            torch.set_grad_enabled(reading is not None),
            without_fast_paths(),
        ):
            with nullcontext() if reading is None else without_backward_hooks(model.modules()):
                returned = model(*inputs.args, **inputs.kwargs)
                outputs = tensors_in(returned if of is None else of.left_of_outputs(self.reference, returned))
                if reading is not None:
                    reading.of(model, outputs)
            return [tensor.detach().clone() for tensor in outputs]

    def _difference(
        self,
        gm: GraphModule,
        context: Context,
        expected: list[Tensor],
        inputs: ExampleInputs,
        found: tuple[float, float],
    ) -> str:
        """What an error says: that the model has changed since, or where the compact one is wrong."""
        error, tolerance = found
        if self._referee is not self.reference and self._original is not None:
            least, plan = lowest_tolerance(gm, self._captured_in), context.get(SlicingPlan)
            of_graph, allowed = worst_of(expected, self._outputs(self.reference, inputs, of=plan), least)
            if not of_graph <= allowed:
                differ = f"its outputs differ from those of the graph by {of_graph:.1e}"
                return self._original.no_longer(self.reference, differ)
        where = _first_difference(self.reference, gm, context, tolerance)
        return (
            f"the compact model differs from the group-sparse one by {error:.1e} of the output (allowed: "
            f"{tolerance:.0e}){f', first at {described(where)}' if where else ''}. Nothing was changed: "
            f"{_remedy(self.reference, context, where)}"
        )


def _is_rewritten(context: Context) -> bool:
    """Whether a pass has changed what parameters mean since the graph was sliced."""
    names = [record.name for record in context.records if record.modified]
    return next(name for name in reversed(names) if name != DropBranches.name) != PhysicalSlicing.name


def _first_difference(reference: GraphModule, compact: GraphModule, context: Context, tolerance: float) -> Node | None:
    plan = context.get(SlicingPlan)
    cuts = plan.cuts
    expected = values_of(reference, plan.as_in_full(reference, context.inputs))
    found = values_of(compact, context.inputs)
    node: Node
    for node in compact.graph.nodes:
        if node.name in expected and node.name in found and node.op != "get_attr":
            left = cuts.apply(expected[node.name], cuts.of_tensor(node.name))
            if relative_error(left, found[node.name]) > tolerance:
                return node
    return None


def _remedy(reference: GraphModule, context: Context, where: Node | None) -> str:
    """What to do: mend the rule of the user's that is nearest, at the first node that differs or before it."""
    now, contents = dict(reference.named_buffers()), Context.of(reference).get(Dependencies).contents
    changed = [name for name, content in contents.items() if name not in now or not torch.equal(now[name], content)]
    if changed:
        return (
            f"the content of the buffer {changed[0]} has changed since the model was prepared, and what can be removed "
            "was found by it. Prepare the model again, and train on with a new optimizer"
        )
    steps = record_tape(graph_copy(reference), context.inputs).steps
    names = [name for name, _, _ in steps]
    end = names.index(where.name) + 1 if where is not None and where.name in names else len(names)
    for name, calls, _ in reversed(steps[:end]):
        for rule in filter(None, map(taught, reversed(calls))):
            node = next(node for node in reference.graph.nodes if node.name == name)
            return f"{rule}, which is yours, is the one to suspect, at {described(node)}: mend the rule"
    return "please report this model"
