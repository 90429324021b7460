"""The first front end: torch.fx's symbolic tracing, in both modes, with values where the code asks for them."""

from __future__ import annotations

import inspect
import logging
import operator
import os
import sys
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Proxy, Tracer

from fx_oto.dice import Dice
from fx_oto.errors import TraceError
from fx_oto.framework.context import ExampleInputs
from fx_oto.graph import raised_at, unfused_attention, with_modes_of
from fx_oto.keeping import evaluating, unchanged, without_caches
from fx_oto.modes import FLAG, TrainingFlag, merge_modes
from fx_oto.modules import holds_layers, is_torchs
from fx_oto.provenance.leaves import leaf_of
from fx_oto.provenance.misfits import misfit
from fx_oto.tracing.assigned import Assigned
from fx_oto.tracing.memory import Memory
from fx_oto.tracing.opaque import METHOD, MethodCall, Part, parts_in
from fx_oto.tracing.patches import IsInstance, functions_on_proxies, watching_mode
from fx_oto.tracing.values import KnownProxy, Values

__all__ = ["LeafTracer", "NotSymbolicError", "symbolic_trace"]

_log = logging.getLogger(__name__)
_PLAIN = (bool, int, float, str, type(None))
_STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
_NOT_USERS = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))


class NotSymbolicError(TraceError):
    """The model's Python code does something with a value that symbolic tracing has no answer to.

    Attributes:
        parts: the methods of the model's modules in which that happened, outermost first.
    """

    def __init__(self, message: str, parts: Iterable[Part] = ()) -> None:
        super().__init__(message)
        self.parts = tuple(parts)


def symbolic_trace(
    model: nn.Module, inputs: ExampleInputs, opaque: Collection[Part] | None = None, both_modes: bool = True
) -> GraphModule:
    """Capture a model.

    Args:
        model: any module.
        inputs: example inputs; their shapes answer what the code asks for.
        opaque: what is called as a whole, whatever it does inside; if None, nothing is, and only the values that the
            code asks for are computed.
        both_modes: whether training mode is captured, or only evaluation.

    Raises:
        NotSymbolicError: the code asks for something that a trace cannot know.
        TraceError: the two modes cannot be joined, or the inputs do not match ``forward``.
        InputError: the graph of one mode does not run on the inputs.
    """
    arguments = _Arguments.of(model, inputs)
    with without_caches(model):
        tracer = _SourceTracer(model, arguments, opaque)
        graph = tracer.trace_in(both_modes)
        if both_modes and tracer.asked_for_mode:
            evaluation = _SourceTracer(model, arguments, opaque, tracer.constants).trace_in(False)
            graph = merge_modes(graph, evaluation, model, Memory(model, inputs).reaches)
            setattr(model, FLAG, TrainingFlag())
        gm = GraphModule(model, graph, type(model).__name__)
    return with_modes_of(gm, model)


@dataclass(frozen=True)
class _Arguments:
    """The arguments of ``forward`` by name: those that the example inputs give, and those that are taken as they are.

    The latter are defaults of arguments that are not given, strings and None, of which code asks what no proxy answers.
    """

    given: dict[str, Any]
    fixed: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, inputs: ExampleInputs) -> _Arguments:
        signature = inspect.signature(model.forward)
        try:
            given = signature.bind_partial(*inputs.args, **inputs.kwargs).arguments
        except TypeError as error:
            if inputs.numbers:
                raise misfit(error, "", model, inputs) from error
            raise TraceError(
                f"the example inputs do not match {type(model).__name__}.forward{signature}: {error}"
            ) from error
        absent = {name: p.default for name, p in signature.parameters.items() if name not in given}
        fixed = {name: default for name, default in absent.items() if default is not inspect.Parameter.empty}
        fixed |= {name: value for name, value in given.items() if value is None or isinstance(value, str)}
        return cls(given, fixed)


def _has_users_hooks(module: nn.Module) -> bool:
    """Whether a user's code runs before or after a module's; torch's own hooks compute weights."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(not is_torchs(hook if hasattr(hook, "__code__") else type(hook)) for hook in hooks)


class LeafTracer(Tracer):
    """torch.fx's tracer, but it enters modules with sizes, which slicing rewrites, other layers, or users' hooks."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called as a whole."""
        if leaf_of(m) is not None and not _has_users_hooks(m):
            return True
        inside = isinstance(m, nn.Unflatten) or holds_layers(m) or _has_users_hooks(m)
        return super().is_leaf_module(m, module_qualified_name) and not inside


class _SourceTracer(LeafTracer):
    """A tracer that also knows values, source lines, and the constants of an earlier trace.

    Functions marked with ``torch.fx.wrap`` are traced through where that is possible, for sizes may hide inside; else
    they are called as a whole.
    """

    proxy_buffer_attributes = True  # what the code does to a buffer belongs into the graph

    def __init__(
        self,
        model: nn.Module,
        arguments: _Arguments,
        opaque: Collection[Part] | None,
        earlier: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.values = Values(model, arguments.given)
        self._modules = set(model.modules())
        self.constants: dict[str, Tensor] = {}
        self.asked_for_mode = False
        self._given, self._fixed = arguments.given, arguments.fixed
        self._opaque = opaque or ()
        self._eager = opaque is not None  # so that what fails is known to be the code that runs
        self._earlier = earlier or {}
        self._isinstance = IsInstance()
        self._gradients, self._autocast = True, (False, False)

    def trace_in(self, training: bool) -> Graph:
        """Trace in one mode; notes whether the code asked for it, and the tensors that it made."""
        dice, self._gradients, self._autocast = Dice(), torch.is_grad_enabled(), _autocast()
        try:
            with (
                evaluating(self.model, training),
                unfused_attention(),
                functions_on_proxies(self),
                watching_mode(self._note_mode),
                self._isinstance,
                unchanged(self.model, but=(METHOD, "_tensor_constant")),
                self._whole_methods(),
            ):
                assigned = Assigned(self.model)
                graph = self.trace(self.model)
                assigned.write(graph, self.values)
        except Exception as error:
            raise _explain(error, self.model) from error
        finally:
            rolled = dice.rolled()
            dice.put_back()
        if rolled:
            raise NotSymbolicError(
                f"{type(self.model).__name__}.forward draws random numbers that a trace cannot see: "
                "they would stay the same for ever"
            )
        graph._tracer_cls = LeafTracer  # pickle makes one without arguments
        return graph

    def _note_mode(self) -> None:
        self.asked_for_mode |= not self.values.running

    @contextmanager
    def _whole_methods(self) -> Iterator[None]:
        """Let the methods that are called as a whole become nodes."""
        methods = [part for part in self._opaque if part.method != "forward"]
        try:
            for part in methods:
                part.owner.__dict__[part.method] = partial(self._call_method, part)
            yield
        finally:
            for part in methods:
                del part.owner.__dict__[part.method]

    def _call_method(self, part: Part, *args: Any, **kwargs: Any) -> Any:
        if self.values.running:
            return getattr(type(part.owner), part.method)(part.owner, *args, **kwargs)
        name = part.target_in(self.model)
        self.model.add_module(name, MethodCall(part))
        return self.create_proxy("call_module", name, args, kwargs)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """A placeholder for each argument that was given or has a default; then the model's own code begins."""
        packages = {type(module).__module__.split(".")[0] for module in self._modules} - {"torch"}
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in packages:
                self._isinstance.teach(vars(module))
        signature, given = inspect.signature(self.model.forward), self._given
        proxies = {}
        for name, parameter in signature.parameters.items():
            stars = _STARS.get(parameter.kind, "")
            if name in self._fixed:
                proxies[name] = self._fixed_argument(parameter, self._fixed[name])
            elif name in given:
                proxies[name] = self._proxy_placeholder(stars + name, concrete_args, signature, root_fn)
        self.values.start(self.graph)
        handed = OrderedDict((name, proxies[name]) for name in proxies if name in given)
        bound = inspect.BoundArguments(signature, handed)

        def forward(root: nn.Module, *_: Any) -> Any:
            return (root if _has_users_hooks(root) else partial(root_fn, root))(*bound.args, **bound.kwargs)

        forward.__annotations__ = {}  # would become types in the graph's code
        return forward, [self.root, *proxies.values()]

    def _fixed_argument(self, parameter: inspect.Parameter, value: Any) -> Any:
        """The value itself; where it can be compared the graph takes the argument too, and checks it."""
        if isinstance(value, _PLAIN):
            default = () if parameter.default is inspect.Parameter.empty else (parameter.default,)
            given = self.create_proxy("placeholder", parameter.name, default, {})
            same = self.create_proxy("call_function", operator.eq, (given, value), {})
            torch._assert(same, f"the graph was captured where {parameter.name} was {value!r}; trace it on such inputs")
        return value

    def proxy(self, node: Node) -> Proxy:
        """A proxy that knows its value."""
        return KnownProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Also what is asked to be."""
        return Part(m, "forward") in self._opaque or (
            m is not self.model and super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """torch.fx's, unless a value is being computed, or the module was made in ``forward``."""
        if self.values.running or m not in self._modules:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """torch.fx's, unless a value is being computed."""
        return attr_val if self.values.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """torch.fx's; its value is computed at once if asked to. Under ``torch.no_grad`` it is without gradient."""
        proxy = super().create_proxy(*args, **kwargs)
        if self._gradients and not torch.is_grad_enabled() and self.values.started and not self.values.running:
            value = self.values.of(proxy.node)
            if isinstance(value, Tensor) and value.is_floating_point():
                return super().create_proxy("call_method", "detach", (proxy,), {})
        if self._eager and self.values.started:
            self.values.of(proxy.node)
        return proxy

    def call_wrapped(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Trace through a function that is marked with ``torch.fx.wrap``; else call it as a whole."""
        known = is_torchs(function)
        if not known:
            last, dice = next(reversed(self.graph.nodes)), Dice()
            self._isinstance.teach(getattr(inspect.unwrap(function), "__globals__", {}))
            try:
                result = function(*args, **kwargs)
                if not dice.rolled():
                    return result
            except Exception as error:
                _log.debug("%s is called as a whole: %s", function, error)
            dice.put_back()
            self.values.forget_after(last)
        proxy = self.create_proxy("call_function", function, args, kwargs)
        proxy.node.meta["is_wrapped"] = not known
        return proxy

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        """torch.fx's, with the line in the user's code."""
        if any(now > before for now, before in zip(_autocast(), self._autocast, strict=True)):
            raise TraceError("torch.autocast begins inside of it, which a graph does not keep")
        node = super().create_node(*args, **kwargs)
        if frame := _user_frame(sys._getframe(1)):
            code = frame.f_code
            node.stack_trace = f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n'
        return node

    def create_arg(self, a: Any) -> Any:
        """torch.fx's; other kinds of dict stay such, and a tensor that an earlier trace made keeps its name."""
        if isinstance(a, dict) and type(a) is not dict and all(isinstance(key, str) for key in a):
            return self.create_node("call_function", type(a), (), {key: self.create_arg(a[key]) for key in a})
        arg = super().create_arg(a)
        if isinstance(arg, Node) and str(arg.target).startswith(("_torchbind_obj", "_opaque_obj")):
            raise TraceError(f"a graph cannot hold an object of class {type(a).__name__}")
        if isinstance(a, Tensor) and isinstance(arg, Node) and str(arg.target).startswith("_tensor_constant"):
            self.constants[str(arg.target)] = a
            for name, tensor in self._earlier.items():
                if tensor.dtype == a.dtype and torch.equal(tensor, a):
                    arg.target = name
        return arg


def _autocast() -> tuple[bool, bool]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def _user_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the user's forward; None if there is none, as at the output, or in torch's containers."""
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_USERS):
        frame = None if frame.f_code is _SourceTracer.trace_in.__code__ else frame.f_back
    return frame


def _explain(error: Exception, model: nn.Module) -> NotSymbolicError:
    where = f" at {found}" if (found := raised_at(error)) else ""
    message = f"{type(model).__name__} cannot be traced symbolically{where}: {error}"
    return NotSymbolicError(message, parts_in(error.__traceback__, model))
