"""Users' ``torch.autograd.Function`` classes: a graph calls them as they are, so that they keep their backward.

Where slicing may have to rewrite what is inside, and autograd computes the same gradient, it becomes part of the graph.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.autograd import Function

from fx_oto.capture.calls import without_memory
from fx_oto.capture.derivatives import Applied
from fx_oto.capture.recorder import Recorder
from fx_oto.nn.modules import is_torchs

__all__ = ["as_function", "custom_functions"]

_APPLY = Function.apply.__func__.__code__  # type: ignore[attr-defined]
_CHECKPOINT = "torch.utils.checkpoint"


@functools.cache
def as_function(custom: type) -> Callable[..., Any]:
    """What calls a ``torch.autograd.Function``."""

    def apply(*args: Any) -> Any:
        return custom.apply(*args)  # type: ignore[attr-defined]

    apply.__name__, apply.__module__ = custom.__name__, custom.__module__
    apply.applies = custom, as_function  # type: ignore[attr-defined]  # what pickle finds it by
    return apply


def _subclasses(kind: Any) -> Iterator[type]:
    for one in kind.__subclasses__():
        yield one
        yield from _subclasses(one)


@contextmanager
def custom_functions(run: Recorder) -> Iterator[None]:
    """Let a run see the functions that this thread applies: each class's ``forward`` tells it, whatever the alias."""
    mine = threading.get_ident()
    before: list[tuple[type, Any]] = []
    for kind in list(_subclasses(Function)):
        checkpoint = kind.__module__ == _CHECKPOINT
        if "forward" in vars(kind) and (checkpoint or not is_torchs(kind)):
            before.append((kind, vars(kind)["forward"]))
    try:
        for kind, forward in before:
            seen = _checkpointed if kind.__module__ == _CHECKPOINT else _seen
            kind.forward = staticmethod(seen(run, mine, kind, forward.__get__(None, kind)))  # type: ignore[attr-defined]
        yield
    finally:
        for kind, forward in before:
            kind.forward = forward  # type: ignore[attr-defined]


def _seen(run: Recorder, thread: int, kind: type, forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def tell(*given: Any) -> Any:
        if threading.get_ident() != thread or run.depth or run.is_over:
            return forward(*given)
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code is not _APPLY:
            frame = frame.f_back
        applied: Any = kind if frame is None else frame.f_locals["cls"]
        lead = given[: int(applied.setup_context is Function.setup_context)]  # the context, or nothing
        args = given[len(lead) :]
        if _may_be_seen(run, Applied(without_memory(run.fakes.faked(args)), applied, forward, run.gets_gradient)):
            return run.learning(lambda: forward(*given))
        return run.call_custom(as_function(applied), args, lambda args, _: forward(*lead, *args))

    return tell


def _may_be_seen(run: Recorder, application: Applied) -> bool:
    """The answer of ``Applied.may_be_seen``, found once for all runs of a model."""
    known = run.subject.seen_inside
    with run.unseen():
        form = application.form
        if form not in known:
            known[form] = application.may_be_seen()
    return known[form]


def _checkpointed(run: Recorder, thread: int, kind: type, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Reentrant checkpointing: what is inside becomes part of the graph, which keeps its activations."""

    @functools.wraps(forward)
    def inside(ctx: Any, function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        if threading.get_ident() != thread or run.depth or run.is_over:
            return forward(ctx, function, preserve, *args)
        note = "torch.utils.checkpoint is left out of the graph, which keeps all activations: train the model itself"
        if note not in run.notes:
            run.notes.append(note)
        return run.learning(lambda: function(*args))

    return inside
