"""What is called as a whole for a capture cannot look into it: methods, statements, functions of the model's code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

from torch import nn

from fx_oto.capture.recorder import Recorder
from fx_oto.capture.statements import StatementCall, forward_without
from fx_oto.capture.whole import MethodCall, Part, WrappedFunction
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import last_node

__all__ = ["opaque_calls"]


@contextmanager
def opaque_calls(run: Recorder) -> Iterator[None]:
    """Let what is called as a whole become nodes; what is set on modules for that, ``Subject.put_back`` takes back."""
    methods = [part for part in run.options.opaque if isinstance(part, Part) and not part.is_forward]
    functions = [part for part in run.options.opaque if isinstance(part, WrappedFunction)]
    whole = {id(one) for part in run.options.opaque if isinstance(part, Part) for one in part.inside()}
    for path, module in run.modules.items():
        if id(module) in whole:
            continue
        if lines := tuple(line for kind, line in run.options.statements if kind is type(module)):
            forward = forward_without(type(module), lines, partial(_call_statement, run, path, module))
            module.__dict__["forward"] = MethodType(forward, module)
    for part in methods:
        part.owner.__dict__[part.method] = partial(_call_method, run, part)
    try:
        for one in functions:
            one.names[one.name] = one.seen_by(run, partial(_call_wrapped, run), threading.get_ident())
        yield
    finally:
        for one in functions:
            one.names[one.name] = one.function


def _call_wrapped(run: Recorder, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A function is called as a whole."""
    with run.unseen():
        last = last_node(run.graph)
        run.is_plain = False
        node = run.create("call_function", function, run.nodes(tuple(args)), run.nodes(dict(kwargs)))
        node.meta["is_wrapped"] = True
        return run.compute_node(node, args, kwargs, _without_parameters(run, function), last, anything=True)


def _call_method(run: Recorder, part: Part, *args: Any, **kwargs: Any) -> Any:
    method = getattr(type(part.owner), part.method)
    if run.depth or run.is_over:
        return method(part.owner, *args, **kwargs)
    module = run.held.setdefault(part.target_in(run.model), MethodCall(part))
    return _call_opaque(run, part.target_in(run.model), module, args, kwargs)


def _call_statement(run: Recorder, path: str, owner: nn.Module, line: int, values: dict[str, Any]) -> Any:
    """A statement of the ``forward`` of the model, or of one of its modules, is called as a whole."""
    others = {name: value for name, value in values.items() if isinstance(value, nn.Module) or callable(value)}
    given = {name: value for name, value in values.items() if name not in others}
    name = "_".join(filter(None, (*path.split("."), f"forward_line_{line}")))
    module = StatementCall(type(owner), line, tuple(given), others)
    if run.depth or run.is_over:
        return module.forward(*given.values())
    if not run.held.setdefault(name, module).is_like(module):
        raise TraceError("a statement that would be called as a whole calls one module after the other")
    return _call_opaque(run, name, run.held[name], tuple(given.values()), {})


def _call_opaque(run: Recorder, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    last = last_node(run.graph)
    node = run.create("call_module", name, run.nodes(args), run.nodes(kwargs))

    run.is_plain = False
    with run.unseen():
        return run.compute_node(
            node, args, kwargs, _without_parameters(run, module.forward), last, module, anything=True
        )


def _without_parameters(run: Recorder, call: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def compute(args: Any, kwargs: Any) -> Any:
        value = call(*args, **kwargs)
        held = {id(tensor) for tensor in run.fakes.named.values()}
        if any(id(tensor) in held for call in run.fakes.calls for tensor in call.inputs):
            raise TraceError("what would be called as a whole uses parameters of the model")
        return value

    return compute
