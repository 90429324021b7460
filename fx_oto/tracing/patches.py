"""What is put in the place of Python's and torch's own functions while a model is traced, and taken back after."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx._symbolic_trace import _find_proxy

from fx_oto.tracing.values import KnownProxy, isinstance_of_value

__all__ = ["IsInstance", "functions_on_proxies", "watching_mode"]

# Functions without a tensor to dispatch on, which take sizes or types that may be proxies.
_FACTORIES: tuple[str, ...] = ("arange", "as_tensor", "empty", "eye", "finfo", "full", "iinfo", "linspace", "logspace")
_FACTORIES += ("ones", "tensor", "tril_indices", "triu_indices", "zeros")
_RANDOM = ("rand", "randint", "randn", "randperm")


@contextmanager
def watching_mode(note: Callable[[], None]) -> Iterator[None]:
    """Tell when a module's ``training`` is read, as Python code that depends on the mode must do."""

    def read(module: nn.Module) -> bool:
        note()
        mode: bool = module.__dict__["training"]
        return mode

    def write(module: nn.Module, mode: bool) -> None:
        module.__dict__["training"] = mode

    before = nn.Module.__dict__.get("training")
    nn.Module.training = property(read, write)  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del nn.Module.training
        else:
            nn.Module.training = before


class IsInstance:
    """Lets code ask for the type of a proxy's value, until the end of the context."""

    def __init__(self) -> None:
        self._patched: list[dict[str, Any]] = []

    def teach(self, names: dict[str, Any]) -> None:
        """Do so for code with these global names."""
        if "isinstance" not in names:
            names["isinstance"] = isinstance_of_value
            self._patched.append(names)

    def __enter__(self) -> None:
        """Nothing is taught yet."""

    def __exit__(self, *_: object) -> None:
        for names in self._patched:
            names.pop("isinstance", None)


def _tracer_of(arguments: Any) -> Any:
    """The tracer whose proxies are among the arguments of a call; None if it does not need to know of the call."""
    proxy = _find_proxy(arguments)
    return proxy.tracer if isinstance(proxy, KnownProxy) and not proxy.tracer.values.running else None  # type: ignore[attr-defined]


def _on_proxies(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tracer = _tracer_of((args, kwargs))
        return function(*args, **kwargs) if tracer is None else tracer.call_wrapped(function, args, kwargs)

    return call


def _drawn_in_graph(function: Callable[..., Any], tracer: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Any:
        if tracer.values.running:
            return function(*args, **kwargs)
        return tracer.create_proxy("call_function", function, args, kwargs)

    return draw


@functools.cache
def _as_function(custom: type) -> Callable[..., Any]:
    """What calls a ``torch.autograd.Function``: as a node of the graph it keeps its own backward."""

    def apply(*args: Any) -> Any:
        return custom.apply(*args)  # type: ignore[attr-defined]

    apply.__name__, apply.__module__ = custom.__name__, custom.__module__
    return apply


def _apply_on_proxies(original: Any) -> Any:
    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        tracer = _tracer_of(args)
        if tracer is None:
            return original.__func__(cls, *args, **kwargs)
        return tracer.create_proxy("call_function", _as_function(cls), args, kwargs)

    return classmethod(apply)


@contextmanager
def functions_on_proxies(tracer: Any) -> Iterator[None]:
    """Let functions that torch.fx cannot patch take proxies while a model is traced.

    These are ``torch.zeros`` and its like, ``torch.autograd.Function.apply``, and the functions marked with
    ``torch.fx.wrap``, of which the tracer is asked what becomes of them. Random numbers are drawn by the graph.
    """
    patches: dict[tuple[Any, str], Any] = {(torch, name): _on_proxies(getattr(torch, name)) for name in _FACTORIES}
    patches |= {(torch, name): _drawn_in_graph(getattr(torch, name), tracer) for name in _RANDOM}
    patches[torch, "is_tensor"] = lambda thing: isinstance_of_value(thing, Tensor)
    patches[torch.fx._symbolic_trace, "_create_wrapped_func"] = _on_proxies
    custom = torch.autograd.Function
    patches[custom, "apply"] = _apply_on_proxies(custom.__dict__["apply"])
    before = {(owner, name): owner.__dict__[name] for owner, name in patches}
    try:
        for (owner, name), patched in patches.items():
            setattr(owner, name, patched)
        yield
    finally:
        for (owner, name), original in before.items():
            setattr(owner, name, original)
