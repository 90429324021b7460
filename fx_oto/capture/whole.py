"""What is called as a whole: torch's own layers, and parts of a model that cannot be captured."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from types import CellType, CodeType, FrameType, FunctionType, TracebackType
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Tracer
from torch.fx._symbolic_trace import _wrapped_fns_to_patch
from torch.jit import ScriptModule
from torch.nn.utils.parametrize import ParametrizationList

from fx_oto.capture.names import AnyNames
from fx_oto.nn.leaves import leaf_of
from fx_oto.nn.modules import holds_layers, is_torchs

__all__ = [
    "METHOD",
    "GradientHook",
    "LeafTracer",
    "MethodCall",
    "Part",
    "WrappedFunction",
    "bound_in",
    "is_leaf",
    "parts_in",
]

METHOD = "_method_"
_TORCHS = ("torch.nn", "torch.ao.nn")


def _has_users_hooks(module: nn.Module) -> bool:
    """Whether a user's code runs before or after a module's; torch's own hooks compute weights."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(not is_torchs(hook if hasattr(hook, "__code__") else type(hook)) for hook in hooks)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is called as a whole.

    Entered are those with sizes, which slicing rewrites, with layers, and with a user's hooks or ``forward`` instead of
    their own.
    """
    if isinstance(module, ScriptModule):
        return not _has_users_hooks(module)
    own = module.__dict__.get("forward")
    if _has_users_hooks(module) or not (own is None or getattr(own, "__self__", None) is module):
        return False
    if leaf_of(module) is not None:
        return True
    inside = isinstance(module, nn.Sequential | nn.Unflatten | ParametrizationList) or holds_layers(module)
    return type(module).__module__.startswith(_TORCHS) and not inside


class LeafTracer(Tracer):
    """What the code of a captured graph is traced with, where torch does so, as ``torch.package`` does."""

    def trace(self, *args: Any, **kwargs: Any) -> Graph:
        """The graph, which any names may be in."""
        graph = super().trace(*args, **kwargs)
        graph.set_codegen(AnyNames())
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called as a whole."""
        return is_leaf(m)


@dataclass(frozen=True)
class Part:
    """A method of a module: ``forward``, or another one."""

    owner: nn.Module
    method: str

    @property
    def is_forward(self) -> bool:
        """Whether it is the module as a whole."""
        return self.method == "forward"

    @property
    def kind(self) -> type:
        """The module's class."""
        return type(self.owner)

    @property
    def holds_layers(self) -> bool:
        """Whether it is a module with parameters."""
        return self.is_forward and next(self.owner.parameters(), None) is not None

    def inside(self) -> Iterator[nn.Module]:
        """The modules that are called in it alone."""
        return self.owner.modules() if self.is_forward else iter(())

    def name_in(self, model: nn.Module) -> str:
        """``"head"`` for a submodule, ``"head.decode"`` for another method of one."""
        path = next(name for name, module in model.named_modules() if module is self.owner)
        return ".".join(filter(None, (path, "" if self.is_forward else self.method)))

    def target_in(self, model: nn.Module) -> str:
        """What the nodes that call it have as their target."""
        name = self.name_in(model)
        return name if self.is_forward else METHOD + name.replace(".", "_")


@dataclass(frozen=True, eq=False)
class WrappedFunction:
    """A function that its author has marked with ``torch.fx.wrap``, or one that cannot be captured.

    Attributes:
        names: the global names that it is one of.
        name: its own.
        function: the function.
    """

    names: dict[str, Any]
    name: str
    function: Callable[..., Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WrappedFunction) and other.function is self.function

    def __hash__(self) -> int:
        return hash(self.function)

    def name_in(self, model: nn.Module) -> str:
        """Its name."""
        return self.name

    def target_in(self, model: nn.Module) -> Any:
        """What the nodes that call it have as their target."""
        return self.function

    def seen_by(self, run: Any, call: Callable[..., Any], thread: int) -> Callable[..., Any]:
        """The function, for the while of a run in a thread, where ``call(function, args, kwargs)`` takes its place."""

        @functools.wraps(self.function)
        def tell(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread or run.depth or run.is_over:
                return self.function(*args, **kwargs)
            return call(self.function, args, kwargs)

        return tell


def _wrapped_functions() -> dict[Any, WrappedFunction]:
    """Every function marked with ``torch.fx.wrap``, by its code."""
    found = {}
    for (_, name), names in _wrapped_fns_to_patch.items():
        function = names.get(name)
        if function is not None and hasattr(function, "__code__"):
            found[function.__code__] = WrappedFunction(names, name, function)
    return found


def parts_in(
    trace: TracebackType | None, modules: Collection[int], call_module: CodeType
) -> Iterator[Part | WrappedFunction]:
    """The methods and functions in which an error came up, outermost first, but for the model's ``forward``.

    Args:
        trace: of the error.
        modules: those of the model, by ``id``.
        call_module: the code by which its modules are called, which knows the module whatever ``forward`` calls it.
    """
    functions = _wrapped_functions()
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        if (function := _function_of(frame) or functions.get(frame.f_code)) is not None:
            yield function
        name, first = frame.f_code.co_name, frame.f_code.co_varnames[:1]
        if frame.f_code is call_module:
            yield Part(frame.f_locals["module"], "forward")
        owner = frame.f_locals.get(first[0]) if first else None
        if id(owner) in modules and name != "forward":
            method = getattr(type(owner), name, None)
            if getattr(method, "__code__", None) is frame.f_code and not is_torchs(method):
                yield Part(owner, name)  # type: ignore[arg-type]


def _function_of(frame: FrameType) -> WrappedFunction | None:
    """The function of the user's that a frame runs, if its caller, or its own module, knows it by a name."""
    for names in (frame.f_back.f_globals if frame.f_back is not None else {}, frame.f_globals):
        if names.get("__name__", "").split(".")[0] == "torch":
            continue
        for name, value in names.items():
            if isinstance(value, FunctionType) and value.__code__ is frame.f_code and not is_torchs(value):
                return None if value.__module__.split(".")[0] == "fx_oto" else WrappedFunction(names, name, value)
    return None


class MethodCall(nn.Module):
    """Calls a method of a module that does not become part of the graph's modules: it must not use parameters."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self._part = (part.owner, part.method)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the method returns."""
        owner, method = self._part
        return getattr(type(owner), method)(owner, *args, **kwargs)


class GradientHook(nn.Module):
    """Lets a function see, and change, the gradient of a value, as ``Tensor.register_hook`` does.

    Attributes:
        only: the one training mode in which it does; None for both.
    """

    def __init__(self, hook: Any) -> None:
        super().__init__()
        self._hook = (hook,)
        self.only: bool | None = None

    def forward(self, value: Tensor) -> None:
        """Register the hook, where there will be a gradient."""
        if value.requires_grad and self.only in (None, self.training):
            value.register_hook(self._hook[0])


def bound_in(function: Any) -> Iterator[Any]:
    """The values that a function has closed over, has as defaults, or is applied to in part."""
    if isinstance(function, functools.partial):
        yield from (*function.args, *function.keywords.values())
        yield from bound_in(function.func)
    cells = getattr(function, "__closure__", None) or ()
    inside = [cell.cell_contents for cell in cells if cell != _EMPTY]
    for value in (*inside, *(getattr(function, "__defaults__", None) or ())):
        yield value
        if callable(value) and value is not function:
            yield from bound_in(value)


_EMPTY = CellType()
