"""Whether a model that was written back computes what the compact graph does, and which module does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fx_oto.core.context import Context, ExampleInputs
from fx_oto.core.differences import lowest_tolerance, relative_error, tensors_in, tolerance_of, worst_of
from fx_oto.core.fx_utils import is_random, raised_at
from fx_oto.core.preserve import Dice, evaluating, unwritten
from fx_oto.core.tables import counted
from fx_oto.core.unused import may_read, names_of
from fx_oto.core.warn import warn
from fx_oto.deploy.calls import Call, Made, Value
from fx_oto.passes.physical_slicing import SlicingPlan

__all__ = [
    "Difference",
    "check_around",
    "compared",
    "first_difference",
    "lowest_tolerance",
    "other_weights",
    "outputs",
    "warn_of_unused",
]

_TENSORS = "tensor", "tensors"
_ROUGH = 1e-3  # less than any size makes that code computes with, and more than rounding does to a whole model


@dataclass(frozen=True)
class Difference:
    """How a model differs from the compact graph.

    Attributes:
        error: the largest difference, relative to the largest value.
        text: what differs, in words; empty if nothing does.
        modes: in which it was compared.
    """

    error: float
    text: str = ""
    modes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it computes the same."""
        return not self.text


def compared(model: nn.Module, small: GraphModule, inputs: ExampleInputs, any_batch: bool) -> Difference:
    """Compare in evaluation and in training, on the example inputs and on twice their batch.

    Training is left out where the compact graph does not return the same twice from the same random numbers, or does
    not run; where both draw random numbers, they draw the same.
    """
    worst, modes = 0.0, []
    for training in (False, True):
        for given in (inputs, inputs.doubled()) if any_batch else (inputs,):
            found = _compared(model, small, given, training, may_fail=training or given is not inputs)
            if found is None:
                continue
            if found.text:
                return found
            worst = max(worst, found.error)
            modes.append("training" if training else "evaluation")
    return Difference(worst, "", tuple(dict.fromkeys(modes)))


def _compared(
    model: nn.Module, small: GraphModule, inputs: ExampleInputs, training: bool, may_fail: bool
) -> Difference | None:
    mode = "training" if training else "evaluation"
    try:
        expected = outputs(small, inputs, training)
    except Exception:  # such as a norm over one value, in training, or a batch that the code spells out
        if may_fail:
            return None
        raise
    try:
        found = outputs(model, inputs, training)
    except Exception as error:
        at = raised_at(error)
        return Difference(float("inf"), f"in {mode} it fails{f' at {at}' if at else ''}: {error}")
    lowest = lowest_tolerance(small)
    if len(expected) != len(found):
        return Difference(
            float("inf"), f"in {mode} it returns {counted(len(found), *_TENSORS)} in the place of {len(expected)}"
        )
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        difference, allowed = relative_error(one, other), max(tolerance_of(one), lowest)
        if not difference <= allowed:
            if training and any(map(is_random, small.graph.nodes)):
                return None
            text = f"in {mode} its output differs by {difference:.1e} (allowed: {allowed:.0e})"
            return Difference(difference, text)
        worst = max(worst, difference)
    return Difference(worst)


def check_around(model: nn.Module, new: nn.Module, small: GraphModule) -> None:
    """Warn if a whole model returns something else once its parts are smaller.

    What parts hand to each other nothing else reads, but code may ask for sizes of it: those of images, which stay, or
    how many channels there are. Training mode is left out where the parts draw random numbers, of which fewer are left.
    """
    plan = Context.of(small).parts
    if plan is None or not plan.hands_over:
        return
    for training in (False, True) if not any(map(is_random, small.graph.nodes)) else (False,):
        try:
            expected = outputs(model, plan.example, training)
        except Exception:  # such as for want of targets, in training
            continue
        if found := _unlike(expected, new, plan.example, training):
            warn(
                f"with smaller parts, the whole model {found} in {'training' if training else 'evaluation'}. Its own "
                "code may ask for sizes of what parts in a tuple hand to each other, such as x.shape[1]: name these "
                "parts one by one. Where it chooses by thresholds, rounding may have chosen otherwise"
            )


def warn_of_unused(model: nn.Module, small: GraphModule) -> None:
    """Warn if a model holds parameters that its ``forward`` did not use, as what they are given may be smaller now."""
    context = Context.of(small)
    plan = context.get(SlicingPlan)
    if context.parts is not None or not plan.kept:
        return
    known = {axis.tensor for axis in plan.cuts.found.axes}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    used = {id(one) for name, one in parameters.items() if name in known}
    sizes = {axis.size for axis in plan.cuts.found.axes if (axis.tensor, axis.dim) in plan.kept}
    if found := may_read({name: one for name, one in parameters.items() if id(one) not in used}, sizes):
        warn(
            f"forward did not use these parameters on the example inputs: {names_of(found)}. They are as large as they "
            "were. What forward returns has kept its channels; code that combines them with what forward computes in "
            "between, such as a branch behind an optional argument, or a loss that calls a head, fails where that has "
            "fewer now. If there is such code, prepare a module whose forward runs it, or keep whole what it reads: "
            "prepare(…, unprunable=…)"
        )


def other_weights(gm: nn.Module, model: nn.Module) -> str:
    """The name of a parameter that holds other numbers in a model than in the GraphModule; empty if there is none."""
    mine = dict(gm.named_parameters(remove_duplicate=False))
    for name, other in model.named_parameters(remove_duplicate=False):
        one = mine.get(name, other)
        has_numbers = one is not other and one.shape == other.shape and not one.is_meta and not other.is_meta
        if has_numbers and not torch.equal(one, other.to(one.device, one.dtype)):
            return name
    return ""


def _unlike(expected: list[Tensor], new: nn.Module, inputs: ExampleInputs, training: bool) -> str:
    try:
        found = outputs(new, inputs, training)
    except Exception as failure:
        return f"fails ({failure})"
    if len(found) != len(expected):
        return f"returns {counted(len(found), *_TENSORS)} in the place of {len(expected)}"
    error, allowed = worst_of(expected, found, _ROUGH)
    return "" if error <= allowed else f"returns something else, by {error:.1e} (allowed: {allowed:.0e}),"


@torch.no_grad()
def outputs(model: nn.Module, inputs: ExampleInputs, training: bool) -> list[Tensor]:
    """The tensors that a model returns on example inputs, in one mode, of the same random numbers."""
    dice = Dice()
    try:
        with torch.inference_mode(False), unwritten(model, training), evaluating(model, training):
            given = inputs.copied()
            # Not as a GraphModule, which prints where it fails: to take no twice as large batch is no fault.
            returned = nn.Module.__call__(model, *given.args, **given.kwargs)
            return [tensor.detach().clone() for tensor in tensors_in(returned)]
    finally:
        dice.put_back()


@torch.no_grad()
def first_difference(
    model: nn.Module,
    calls: dict[tuple[str, int], Call],
    expected: dict[str, Any],
    inputs: ExampleInputs,
    graphs: Collection[str],
) -> Call | None:
    """The first call of a module, the innermost first, that fails or returns something else in evaluation.

    Args:
        model: the model.
        calls: those of the graph of the user's code.
        expected: what the compact graph computes, by node.
        inputs: the example inputs.
        graphs: modules that compute what the compact graph says already.
    """
    counts: Counter[str] = Counter()
    open_calls: list[tuple[str, int]] = []
    found: list[Call] = []
    handles = []
    for path, module in model.named_modules():

        def enter(module: nn.Module, args: Any, path: str = path) -> None:
            open_calls.append((path, counts[path]))
            counts[path] += 1

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            call = calls.get(open_calls.pop())
            if call is not None and call.path not in graphs and not found and _differs(call.returned, result, expected):
                found.append(call)

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, prepend=True)]
    given, dice = inputs.copied(), Dice()
    try:
        with unwritten(model), evaluating(model):
            model(*given.args, **given.kwargs)
    except Exception:
        found.extend(calls[key] for key in reversed(open_calls) if key in calls and key[0] not in graphs)
    finally:
        dice.put_back()
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _differs(wanted: Any, found: Any, expected: dict[str, Any]) -> bool:
    return any(
        one.shape != other.shape or not relative_error(one, other) <= tolerance_of(one)
        for one, other in _pairs(wanted, found, expected)
    )


def _pairs(wanted: Any, found: Any, expected: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(wanted, Value):
        value = expected.get(wanted.node)
        try:
            value = value if wanted.key is None else value[wanted.key]  # type: ignore[index]
        except (TypeError, LookupError):
            return
        if isinstance(value, Tensor) and isinstance(found, Tensor):
            yield value, found
    elif isinstance(wanted, tuple | list) and isinstance(found, tuple | list):
        for one, other in zip(wanted, found, strict=False):
            yield from _pairs(one, other, expected)
    elif isinstance(wanted, Made):
        yield from _pairs(wanted.parts, found, expected)
    elif isinstance(wanted, dict) and isinstance(found, dict):
        for key in wanted.keys() & found.keys():
            yield from _pairs(wanted[key], found[key], expected)
