"""From an eager model to a GraphModule that behaves like it in both training modes, and the tape of its ATen calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from fx_oto.analysis.misfits import misfit
from fx_oto.analysis.recording import fake_run
from fx_oto.analysis.tape import Tape
from fx_oto.capture.arguments import Arguments
from fx_oto.capture.attempt import Attempt, Captured, FixedByValuesError, analysed_tape
from fx_oto.capture.elsewhere import check_memory, forget_sizes
from fx_oto.capture.parts import Parts, parts_of
from fx_oto.capture.refusals import AskedError, NotCapturedError, NotHashedError, RandomError
from fx_oto.capture.run import seeing_module_calls
from fx_oto.capture.sheet import Options
from fx_oto.capture.statements import failed_line, statement_at
from fx_oto.capture.subject import Subject
from fx_oto.capture.whole import LeafTracer, Part, WrappedFunction
from fx_oto.core.context import Capture, Context, ExampleInputs, Untraced
from fx_oto.core.errors import InputError, SettingsError, TraceError
from fx_oto.core.fx_utils import (
    check_whole,
    graph_copy,
    one_at_a_time,
    quiet_fakes,
    raised_at,
    tensor_leaves,
    tensor_names,
)
from fx_oto.core.interrupts import interrupts_held
from fx_oto.core.masks import MASKS, drop_masks
from fx_oto.core.original import Original
from fx_oto.core.parts import plan_of, settled
from fx_oto.core.preserve import Dice, unchanged, uncollected, uncompiled, unwritten, without_autocast
from fx_oto.core.records import PassRecord
from fx_oto.core.warn import warn
from fx_oto.nn.modules import is_torchs

__all__ = ["LeafTracer", "Parts", "analysed_tape", "trace", "unwrapped"]


def trace(model: nn.Module, example_inputs: Any, *, parts: Parts = ()) -> GraphModule:
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
        parts: names of submodules to capture in the place of the whole model: see ``prepare``.

    Returns:
        A GraphModule with each node's fake value in ``node.meta["val"]``.

    Raises:
        TraceError: the model's Python code cannot be captured; names the source line.
        InputError: the model does not run on the example inputs.
        SettingsError: there is no part of a given name.

    Example:
        >>> import torch, fx_oto
        >>> gm = fx_oto.trace(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()), torch.randn(2, 4))
        >>> [node.op for node in gm.graph.nodes]
        ['placeholder', 'call_module', 'call_module', 'output']
    """
    inputs = ExampleInputs.of(example_inputs)
    model = unwrapped(model)
    _check(model)
    if parts:
        if isinstance(model, GraphModule):
            raise SettingsError("parts are those of a model with code of its own: a GraphModule is captured already")
        model, inputs = parts_of(model, inputs, parts)
    records: tuple[PassRecord, ...] = ()
    if isinstance(model, GraphModule):
        gm = _without_masks(graph_copy(model))
        earlier = Context.of(model) if "fx_oto" in model.meta else Context(inputs, Capture("GraphModule"))
        capture, records, tape = earlier.capture, earlier.records, analysed_tape(gm, inputs)
    else:
        with (
            one_at_a_time,
            interrupts_held(),
            quiet_fakes(),
            uncollected(),
            uncompiled(),
            without_autocast(),
            settled(model),
            seeing_module_calls(),
        ):
            gm, capture, tape = _capture(model, inputs.copied())  # its code may write into them
    kept = Context.of(model).kept if "fx_oto" in getattr(model, "meta", {}) else {}
    plan = Context.of(model).parts if "fx_oto" in getattr(model, "meta", {}) else plan_of(model)
    context = Context(inputs, capture, records=records, original=Original.of(model), kept=kept, parts=plan)
    context = context.provide(tape).provide(Untraced.of(model, gm))
    return context.attach(gm)


def unwrapped(model: Any) -> Any:
    """The module inside of a data-parallel wrapper, and of ``torch.compile``'s."""
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
        raise TraceError(f"expected a torch.nn.Module, found {_found(model)}: pass the model itself")
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("a scripted or jit-traced module cannot be captured: pass the module that it was made from")
    check_whole(model, "prepare", "call it first, then fully_shard, then make the optimizer")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InputError(f"{name} is not initialised yet: run the model once on example inputs, then prepare it")
    for path, module in model.named_modules():
        for name in (*module._modules.keys(), *module._parameters.keys(), *module._buffers.keys()):
            if isinstance(getattr(module, name, None), MethodType):
                raise TraceError(
                    f"{name!r} of {path or 'the model'} ({type(module).__name__}) is registered under the name of a "
                    "method, which is found in its place: give it another name"
                )


def _found(given: Any) -> str:
    return f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__


def _capture(model: nn.Module, inputs: ExampleInputs) -> tuple[GraphModule, Capture, Tape]:
    """In both modes, with the submodules and methods that refuse called as a whole, the innermost first."""
    _check_layouts(model, inputs)
    Arguments.of(model, inputs)
    _check_devices(model, inputs)
    with unchanged(model) as put_back:
        found = _captured(Subject(model, put_back), inputs)
        if any(found.num_bound) and forget_sizes(model, inputs):
            found = _captured_after(model, inputs, put_back, found)
    for note in found.notes:
        warn(note)
    return found.gm, found.how, found.tape


def _captured_after(
    model: nn.Module, inputs: ExampleInputs, put_back: Callable[[], None], before: Captured
) -> Captured:
    """A model that has forgotten sizes, if fewer of them are fixed then, and its graph does what the model does."""
    try:
        with unchanged(model) as here:
            found = _captured(Subject(model, here), inputs)
        put_back()
        check_memory(found.gm, model, inputs)
    except (TraceError, InputError):
        return before
    if found.both_modes != before.both_modes or found.num_bound >= before.num_bound:
        return before
    # That it sets what it has forgotten is no news: as it is, the model sets nothing on these sizes.
    return replace(found, notes=[note for note in found.notes if note in before.notes])


# Both modes rather than evaluation alone; single functions as a whole, larger pieces in which sizes may stay free where
# they do not, and then single functions all the same.
_PIECES = [(modes, *how) for modes in (True, False) for how in ((True, False), (False, True), (True, True))]


def _captured(subject: Subject, inputs: ExampleInputs) -> Captured:
    model = subject.model
    first: NotCapturedError | None = None
    options = Options()
    was_fixed = False
    for both_modes, op_level, may_fix in _PIECES:
        if op_level and may_fix and not was_fixed:
            continue
        following: Options | None = replace(
            options, op_level=op_level, may_fix=may_fix, opaque=(), statements=(), watchful=False, selects=op_level
        )
        while following is not None:
            options = following
            try:
                found = Attempt(subject, inputs, options, both_modes).result()
            except NotHashedError as error:
                following = replace(options, hashable=options.hashable | {error.site})
            except AskedError as error:
                following = replace(options, untold=options.untold | error.asked)
            except FixedByValuesError:
                was_fixed = True
                break
            except NotCapturedError as error:
                first = first or _cause(error, options, model, inputs)
                following = _after(error, options, type(model))
            else:
                if not both_modes:
                    found.notes.append(
                        f"{first}. It was captured in evaluation mode, in which this graph stays: train the model "
                        "itself, whose parameters the graph shares, or prepare its parts, prepare(…, parts=[…])"
                    )
                return found
    by_values = first is not None and first.by_values
    instead = "replace it by torch operations such as torch.where, or " if by_values else ""
    raise TraceError(
        f"{first}. What to do: {instead}move this code into a submodule, which is called as a whole; or name "
        "submodules to capture in the place of the model: fx_oto.prepare(model, inputs, parts=[…])"
    ) from first


def _cause(
    error: NotCapturedError, options: Options, model: nn.Module, inputs: ExampleInputs
) -> NotCapturedError | None:
    """The error to be told if the model cannot be captured; None of one that the answers to its code may have caused.

    Raises:
        InputError: the model does not run on the inputs.
    """
    _check_inputs(model, inputs, error.where)
    return error if error.by_values or not (options.selects or _tells_apart(error, options)) else None


def _tells_apart(error: NotCapturedError, options: Options) -> bool:
    """Whether it is torch itself that cannot go on with tensors of another class, as in ``nn.Parameter(x)``."""
    return options.disguised and "dispatch_on_subclass" in str(error)


def _after(error: NotCapturedError, options: Options, kind: type) -> Options | None:
    """How to go on after code that could not be captured; None to try it in another way."""
    if isinstance(error, RandomError):
        return None if options.watchful else replace(options, watchful=True)
    if (answered := _answered(error, options)) is not None:
        return answered
    left = [part for part in error.parts if part not in options.opaque]
    if options.op_level:  # of larger pieces, only functions
        left = [part for part in left if isinstance(part, WrappedFunction)]
    if error.in_training:  # evaluation alone can be captured
        return None
    part = left[-1] if left else None
    # A statement is less than all of a forward. Where one of a class could not go, its modules are called as a whole.
    inside = kind if part is None else part.kind if isinstance(part, Part) and part.holds_layers else None
    tried = options.op_level or any(isinstance(one, Part) and one.kind is inside for one in options.opaque)
    statement = None if tried else _statement(error, inside)
    if statement is not None and statement not in options.statements:
        return replace(options, statements=(*options.statements, statement))
    if part is None:
        return None
    statements = tuple(one for one in options.statements if one[0] is not inside)
    return replace(options, opaque=(*options.opaque, part), statements=statements)


def _answered(error: NotCapturedError, options: Options) -> Options | None:
    """Another answer to code that asks for numbers, or classes; None if there is none."""
    if _tells_apart(error, options):
        return replace(options, disguised=False)
    if error.by_values and options.compiling is False:
        return replace(options, compiling=True)
    if options.compiling and not error.by_values:  # code may have gone where it was never compiled
        return replace(options, compiling=None)
    return replace(options, selects=False) if options.selects and (error.selects or not error.by_values) else None


def _statement(error: NotCapturedError, kind: type | None) -> tuple[type, int] | None:
    """The statement of a ``forward`` in which code could not be captured, if it can be called as a whole."""
    line = failed_line(error.trace, kind) if kind is not None and not is_torchs(kind) else None
    begin = None if kind is None or line is None else statement_at(kind, line)
    return None if kind is None or begin is None else (kind, begin)


def _check_layouts(model: nn.Module, inputs: ExampleInputs) -> None:
    """Nothing stands in for nested tensors, nor for those of oneDNN.

    Raises:
        InputError: there is one.
    """
    for tensor in (*tensor_names(model).values(), *tensor_leaves((inputs.args, inputs.kwargs))):
        if tensor.is_nested or tensor.is_mkldnn:
            kind = "a nested tensor" if tensor.is_nested else "a tensor in oneDNN's layout"
            remedy = "torch.nested.to_padded_tensor(tensor, 0.0)" if tensor.is_nested else "tensor.to_dense()"
            raise InputError(f"expected dense or sparse tensors, found {kind}, which cannot be captured; give {remedy}")


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
            fake_run(model, inputs)
        else:  # not on fake tensors, which caches of the user's would keep
            _really_run(model, inputs.copied(), where)
    finally:
        dice.put_back()


def _really_run(model: nn.Module, inputs: ExampleInputs, where: str) -> None:
    try:
        with unwritten(model), torch.enable_grad():  # code may compute derivatives
            model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        at = f" at {found}" if (found := raised_at(error)) else where
        raise misfit(error, at, model, inputs) from error
