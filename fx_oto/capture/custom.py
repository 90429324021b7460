"""Users' ``torch.autograd.Function`` classes: a graph calls them as they are, so that they keep their backward.

Where slicing may have to rewrite what is inside, and autograd computes the same gradient, it becomes part of the graph.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.autograd import Function
from torch.utils.checkpoint import CheckpointFunction

from fx_oto.capture.calls import without_memory
from fx_oto.capture.checkpoints import NOTE, checkpointed
from fx_oto.capture.derivatives import Applied
from fx_oto.capture.recorder import Recorder
from fx_oto.nn.modules import is_torchs

__all__ = ["as_function", "custom_functions"]


@functools.cache
def as_function(custom: type) -> Callable[..., Any]:
    """What calls a ``torch.autograd.Function``."""

    def apply(*args: Any) -> Any:
        return custom.apply(*args)  # type: ignore[attr-defined]

    apply.__name__, apply.__module__ = custom.__name__, custom.__module__
    apply.applies = custom, as_function  # type: ignore[attr-defined]  # what pickle finds it by
    return apply


def _subclasses(kind: Any) -> list[Any]:
    found: list[Any] = kind.__subclasses__()
    for one in found:  # which grows
        found += one.__subclasses__()
    return found


@contextmanager
def custom_functions(run: Recorder) -> Iterator[None]:
    """Let a run see the functions that this thread applies: each class's ``forward`` tells it, whatever the alias."""
    mine = threading.get_ident()
    # Each class gets its own while the run lasts, those that inherit it too: torch calls it without saying for which.
    found = [(kind, kind.forward) for kind in _subclasses(Function) if _is_seen(kind)]
    before = [(kind, vars(kind).get("forward")) for kind, _ in found]
    try:
        for kind, forward in found:
            seen = _checkpointed if kind is CheckpointFunction else _seen
            kind.forward = staticmethod(seen(run, mine, kind, forward))
        yield
    finally:
        for kind, own in before:
            if own is None:
                del kind.forward
            else:
                kind.forward = own


def _is_seen(kind: Any) -> bool:
    return kind is CheckpointFunction or (kind.forward is not Function.forward and not is_torchs(kind))


def _seen(run: Recorder, thread: int, kind: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    has_context = kind.setup_context is Function.setup_context

    @functools.wraps(forward)
    def tell(*given: Any) -> Any:
        if threading.get_ident() != thread or run.depth or run.is_over:
            return forward(*given)
        lead = given[: int(has_context)]
        args = given[len(lead) :]
        applied = type(lead[0])._forward_cls if lead else kind
        inherits = any(one is not kind and issubclass(one, kind) for one in run.applying)
        if applied.forward is not tell or (inherits and not lead):  # called by what inherits it, by name
            return forward(*given)
        if (inside := checkpointed(run, applied, args)) is not None:
            _note(run)
            return run.learning(inside, applied)
        if _may_be_seen(run, Applied(without_memory(run.fakes.faked(args)), applied, forward, run.gets_gradient)):
            return run.learning(lambda: forward(*given), applied)
        return run.call_custom(as_function(applied), args, lambda args, _: forward(*lead, *args))

    return tell


def _may_be_seen(run: Recorder, application: Applied) -> bool:
    sizes = tuple(tuple(tensor.shape) for tensor in run.given_tensors())
    with run.unseen():
        return run.subject.seen_inside.answer(application, sizes)


def _checkpointed(run: Recorder, thread: int, kind: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Reentrant checkpointing: what is inside becomes part of the graph, which keeps its activations."""

    @functools.wraps(forward)
    def inside(ctx: Any, function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        if threading.get_ident() != thread or run.depth or run.is_over:
            return forward(ctx, function, preserve, *args)
        _note(run)
        return run.learning(lambda: function(*args), kind)

    return inside


def _note(run: Recorder) -> None:
    if NOTE not in run.notes:
        run.notes.append(NOTE)
