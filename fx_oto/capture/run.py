"""One run of a model, recorded on two levels: torch functions become the FX graph, ATen calls the tape.

The model's own code runs, on fake tensors and on numbers that remember where they come from, so whatever it asks of its
tensors is answered as ever. Modules that slicing knows are called as a whole; what torch does below the functions that
it lets be seen, such as in scripted code, is recorded as the ATen calls that it makes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.fx import GraphModule

from fx_oto.analysis.disguises import undisguise
from fx_oto.analysis.fakes import asks_values
from fx_oto.analysis.recording import one_by_one, tape_of_steps
from fx_oto.analysis.tape import Tape
from fx_oto.capture import caches
from fx_oto.capture.answers import ANSWERS, property_of_tensor
from fx_oto.capture.arguments import Arguments
from fx_oto.capture.assigned import Assigned, tensors_kept
from fx_oto.capture.calls import (
    INLINED,
    PLAIN,
    code_of,
    is_wrapped_by_functorch,
    name_of,
    without_memory,
)
from fx_oto.capture.circumstances import questions_seen
from fx_oto.capture.containers import announce_changes
from fx_oto.capture.custom import custom_functions
from fx_oto.capture.draws import without_checkers_draws
from fx_oto.capture.modes import active, without_modes
from fx_oto.capture.names import AnyNames
from fx_oto.capture.numbers import Flag, Origin
from fx_oto.capture.opaque import opaque_calls
from fx_oto.capture.raising import raising_line
from fx_oto.capture.recorder import Recorder
from fx_oto.capture.refusals import (
    DRAWS,
    ON_VALUES,
    Decision,
    NotCapturedError,
    NotHashedError,
    RandomError,
    Way,
    told_of,
)
from fx_oto.capture.scripted import own_code_of_scripted_functions
from fx_oto.capture.subject import depends_on_mode, held_by
from fx_oto.capture.whole import (
    LeafTracer,
    Part,
    parts_in,
)
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import last_node, raised_at
from fx_oto.core.preserve import Dice, evaluating, forget_parameters, without_backward_hooks
from fx_oto.nn.checks import name_of_error
from fx_oto.nn.leaves import LeafOp, leaf_of
from fx_oto.nn.modules import is_torchs

__all__ = ["CaptureRun", "seeing_module_calls"]

_call_of_torchs = nn.Module.__call__
# What code makes of numbers is new in each call of the model; the graph holds it, and must not write into it.
_COPYING = {torch.ops.aten.lift_fresh.default: torch.ops.aten.lift_fresh_copy.default}


@contextmanager
def seeing_module_calls() -> Iterator[None]:
    """Let the runs of this thread see each call of a module.

    Once for all runs: whenever something is set on ``nn.Module``, Python forgets what it knows of all its subclasses.
    """

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run: CaptureRun | None = getattr(active, "run", None)
        if run is None or run.depth:
            return _call_of_torchs(self, *args, **kwargs)
        return run.call_module(self, args, kwargs)

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = _call_of_torchs  # type: ignore[method-assign]


@contextmanager
def _said_to_compile() -> Iterator[None]:
    """Tell this thread's code that it is compiled, where it asks."""
    mine, ask = threading.get_ident(), torch.compiler.is_compiling
    torch.compiler.is_compiling = lambda: threading.get_ident() == mine or ask()
    try:
        yield
    finally:
        torch.compiler.is_compiling = ask


class _Unchecked:
    """Whether a distribution checks the numbers that it is given: not in the thread that made this."""

    def __init__(self, default: bool) -> None:
        self._default, self._mine = default, threading.get_ident()

    def __get__(self, instance: Any, owner: Any = None) -> bool:
        if threading.get_ident() == self._mine:
            return False
        return bool(self._default if instance is None else vars(instance).get("_validate_args", self._default))

    def __set__(self, instance: Any, value: bool) -> None:
        vars(instance)["_validate_args"] = value


@contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """Let ``torch.distributions`` take any numbers, as no numbers are there."""
    before = Distribution._validate_args
    Distribution._validate_args = _Unchecked(before)  # type: ignore[assignment]
    try:
        yield
    finally:
        Distribution._validate_args = before


class CaptureRun(Recorder):
    """Runs a model once and records what it does; ``run`` may be called once.

    Args:
        training: the mode.
        *args: see ``Sheet``.

    Attributes:
        keeps: attributes of modules in which tensors were left.
    """

    def __init__(self, training: bool, *args: Any) -> None:
        super().__init__(training, *args)
        self._dice: Dice | None = None
        self._names = {id(module): name for name, module in self.modules.items()}
        self._in_module = ""
        self.keeps: list[str] = []

    def run(self) -> CaptureRun:
        """Run the model.

        Raises:
            NotCapturedError: its code does something that cannot be captured; names the source line.
            NotHashedError: it uses sizes as keys at a place that is not in ``hashable``.
        """
        caches.empty(self._globals.values())
        forget_parameters(self.model, self.modules)
        dice = Dice(torchs=False)  # from torch's, the graph draws
        self._dice = dice if self.options.watchful else None
        try:
            with ExitStack() as stack:
                for context in self._surroundings():
                    stack.enter_context(context)
                self._run_of_users_code()
        except Exception as error:
            raise self._explained(error) from error
        finally:
            self.is_over, self.fakes.above = True, None
            active.run = None
            undisguise(self._alive)
            self.forget_values()
            caches.empty(self._globals.values())
            rolled = dice.rolled()
            dice.put_back()
            self.subject.put_back()
        if rolled:
            raise RandomError(f"{type(self.model).__name__} {DRAWS}")
        return self

    def _surroundings(self) -> Iterator[Any]:
        yield torch.inference_mode(False)
        yield evaluating(self.model, self.training, self.modules.values())
        yield without_backward_hooks(self.modules.values())
        yield torch.enable_grad()
        yield one_by_one()
        yield custom_functions(self)
        yield opaque_calls(self)
        yield questions_seen(self)
        yield own_code_of_scripted_functions()
        yield _unchecked_distributions()
        if self.options.watchful:
            yield without_checkers_draws()
        if self.options.compiling:
            yield _said_to_compile()
        yield self.fakes
        yield self

    def _run_of_users_code(self) -> None:
        for module in self.modules.values():
            is_read = "training" in module.__dict__ and id(module) not in self.subject.leaves
            if is_read and not self.subject.tells_modes_apart:
                flag = Flag(module.__dict__["training"])
                flag.run = self
                module.__dict__["training"] = flag
        assigned = Assigned(self.subject)
        with self.unseen():
            arguments = Arguments.of(self.model, self.inputs)
            args, kwargs = arguments.bind(self)
        active.run, self.fakes.above = self, self._aten
        result = self.model._call_impl(*args, **kwargs)
        if self.raised is not None:  # code has caught it, and would go on otherwise
            raise TraceError(ON_VALUES).with_traceback(self.raised.__traceback__)
        self.depth += 1
        self.is_at_output = True
        output = self.nodes(result)
        self.is_at_output = False
        announce_changes(self, arguments.containers)
        assigned.write(self)
        self.keeps = list(tensors_kept(self.subject))
        self.graph.output(output)
        node = last_node(self.graph)
        node.meta["val"] = torch.fx.node.map_arg(output, lambda one: one.meta["val"])
        self.drop_unread_numbers()
        self.graph._tracer_cls = LeafTracer
        self.graph.set_codegen(AnyNames())

    def _explained(self, error: Exception) -> Exception:
        found: BaseException | None = error
        while found is not None:
            if isinstance(found, NotHashedError):
                return found
            found = found.__cause__ or found.__context__
        where = f" at {line}" if (line := raised_at(error)) else self._in_module
        text = told_of(error)
        message = f"{type(self.model).__name__} cannot be captured{where}: {text}"
        by_values = text == ON_VALUES or asks_values(error)
        parts = parts_in(error.__traceback__, self._names.keys(), CaptureRun.call_module.__code__)
        refusal = NotCapturedError(message, parts, where, by_values)
        refusal.trace = error.__traceback__
        self._tell_answers(refusal, error)
        return refusal

    def _tell_answers(self, refusal: NotCapturedError, error: Exception) -> None:
        """Say where code decided by numbers, and raised an error."""
        line = raising_line(error)
        refusal.raises = bool(line)
        if self.answered is None:
            return
        site, answer = self.answered
        text = f"the model raises {type(error).__name__} at {line}"
        way = Way(not answer, text, name_of_error(error)) if line and answer is not None else None
        refusal.decision = Decision(site, answer is not None, "" if answer is not None else str(self.graph), way)

    def tape(self, gm: GraphModule) -> Tape:
        """The ATen calls, of a module that holds the graph, or of one that is the same; nodes get this run's values."""
        steps = []
        for node, mine in zip(gm.graph.nodes, self.graph.nodes, strict=True):
            node.meta["val"] = mine.meta["val"]
            steps.append((node, self.calls.get(mine, []), mine.meta["val"]))
        return tape_of_steps(gm, self.fakes, steps)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._dice is not None and not self.depth and self._dice.rolled():
            raise TraceError(DRAWS)
        if self.depth or self.is_over:
            return self.called(func, self.fakes.faked(tuple(args)), self.fakes.faked(dict(kwargs)))
        name = name_of(func)
        if func is torch._C._set_grad_enabled:
            self.learns_now = bool(args[0])
        if name in PLAIN or func is torch._C._set_grad_enabled:
            return func(*args, **kwargs)
        if name in INLINED:
            with self:  # torch has put it aside for this call
                return code_of(func)(*args, **kwargs)
        self.depth += 1
        try:
            return self._see(func, name, args, kwargs)
        except TraceError as error:
            self.raised = error
            raise
        finally:
            self.depth -= 1

    def _see(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        special = ANSWERS.get(name)
        if special is None and getattr(func, "__name__", "") == "__get__":
            special = property_of_tensor
        if special is not None:
            answer = special(self, func, args, kwargs)
            if answer is not NotImplemented:
                return answer
        return self.record(func, name, args, kwargs)

    def _aten(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An ATen call; those that no torch function makes that can be seen become nodes."""
        if self.depth or self.is_over:
            self.fakes.note_literal(func, args)
            return self.fakes.call(func, self.fakes.faked(tuple(args)), self.fakes.faked(kwargs))
        with self.unseen():
            self.fakes.note_literal(func, args)
            func = _COPYING.get(func, func)
            if func is torch.ops.aten._local_scalar_dense.default and (known := self._number_known(*args)) is not None:
                return known
            args, kwargs = self.fakes.faked(tuple(args)), self.fakes.faked(dict(kwargs))
            last = last_node(self.graph)
            self.is_plain = False
            node = self.create("call_function", func, self.nodes(args), self.nodes(kwargs))
            return without_memory(self.compute_node(node, args, kwargs, lambda a, k: self.fakes.call(func, a, k), last))

    def _number_known(self, tensor: Tensor) -> Any:
        """A number that scripted code reads from a tensor that depends on no input: the graph checks it."""
        with without_modes():
            real = self.constant(tensor)
            number = None if real is None else real.item()
        if number is not None:
            self.decided(Origin("item", (self.node_of_tensor(tensor),)), number)
        return number

    def call_module(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A module is called: as a whole, or its code is run."""
        if type(module).__name__ == "OptimizedModule":
            module = getattr(module, "_orig_mod", module)
        name = self._names.get(id(module))
        opaque = Part(module, "forward") in self.options.opaque
        if name is None or not (opaque or self._is_leaf(module, (args, kwargs))) or (self.is_cast() and not opaque):
            self.asked |= id(module) in self.subject.leaves  # its code may read the mode
            return module._call_impl(*args, **kwargs)
        self.depth += 1
        try:
            return self._call_whole(module, name, opaque, args, kwargs)
        finally:
            self.depth -= 1

    def _is_leaf(self, module: nn.Module, given: Any) -> bool:
        """Whether a module is called as a whole: not over tensors that others have lent it, nor under ``vmap``.

        Nor where code puts it into a mode of its own, whatever that of the model is.
        """
        own = self.subject.own.get(id(module))
        if own is None or own != held_by(module) or is_wrapped_by_functorch(given):
            return False
        if bool(int(module.training)) != self.training and depends_on_mode(module):  # of a teacher, or a frozen norm
            self.in_own_mode.add(id(module))
        return id(module) not in self.in_own_mode | self.options.in_own_mode

    def _call_whole(self, module: nn.Module, name: str, opaque: bool, args: Any, kwargs: Any) -> Any:
        self.held[name] = module
        self._in_module = f" in the module {name!r} ({type(module).__name__})"

        def compute(given: Any, named: Any) -> Any:
            if leaf_of(module) is None:
                return module._call_impl(*given, **named)
            return self.fakes.leaf(*LeafOp.of(module, given, named), lambda: module._call_impl(*given, **named))

        last = last_node(self.graph)
        node = self.create("call_module", name, self.nodes(tuple(args)), self.nodes(dict(kwargs)))
        if opaque:
            self.is_plain = False
        return self.compute_node(
            node, args, kwargs, compute, last, module, anything=opaque or not is_torchs(type(module))
        )
