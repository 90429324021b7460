"""What code may ask of how it is called, which is in no input: gradients, autocast, how tensors lie in memory.

A graph goes the way that was captured. That the model returns the same where it goes another is found by running both:
see ``check.check_capture``. Where it does not, code may not ask, and the smallest piece that does is called as a whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fx_oto.capture.refusals import AUTOCAST, GRADIENTS, LAYOUT
from fx_oto.capture.sheet import Sheet
from fx_oto.core.layouts import is_sparse

__all__ = ["Circumstance", "circumstances", "questions_seen"]

_QUESTIONS: dict[Callable[..., Any], str] = {
    torch.is_grad_enabled: GRADIENTS,
    torch.is_inference_mode_enabled: GRADIENTS,
    torch.is_autocast_enabled: AUTOCAST,
    torch.is_autocast_cpu_enabled: AUTOCAST,
}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Circumstance:
    """Another way to call a model.

    Attributes:
        within: what it is called in.
        change: makes each tensor among its inputs another one.
        bound: how much outputs may differ, if it is computed in less than their own precision.
    """

    within: Callable[[], AbstractContextManager[Any]]
    change: Callable[[Tensor], Tensor] = lambda tensor: tensor
    bound: float = 0.0


def circumstances(asked: str) -> Iterator[Circumstance]:
    """The ways to call a model that may make a difference to code that asks."""
    if asked == GRADIENTS:
        yield Circumstance(torch.enable_grad, _learning)
        yield Circumstance(torch.inference_mode)
    elif asked == AUTOCAST:
        yield Circumstance(_autocast, bound=2e-2)
    elif asked == LAYOUT:
        yield from (Circumstance(torch.no_grad, change) for change in (_contiguous, _turned, _with_channels_last))


@contextmanager
def _autocast() -> Iterator[None]:
    """Autocast on all devices, for code may ask of another than it runs on."""
    before = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}
    try:
        for kind in before:
            torch.set_autocast_enabled(kind, True)
        yield
    finally:
        for kind, enabled in before.items():
            torch.set_autocast_enabled(kind, enabled)
        torch.clear_autocast_cache()


def _learning(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_() if tensor.is_floating_point() or tensor.is_complex() else tensor


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor if is_sparse(tensor) else tensor.contiguous()


def _turned(tensor: Tensor) -> Tensor:
    return tensor if is_sparse(tensor) or tensor.ndim < 2 else tensor.mT.contiguous().mT


def _with_channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=_CHANNELS_LAST[tensor.ndim]) if tensor.ndim in _CHANNELS_LAST else tensor


@contextmanager
def questions_seen(run: Sheet) -> Iterator[None]:
    """Let a run see what this thread's code asks of torch itself, by whatever name."""
    mine = threading.get_ident()

    def ask(question: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == mine and not run.depth and not run.is_over:
            run.asks(_QUESTIONS[question])
        return question(*args, **kwargs)

    known = {id(question): question for question in _QUESTIONS}
    places = [(vars(torch), question.__name__, question) for question in _QUESTIONS]
    for names in run.subject.namespaces:
        places += [(names, name, known[id(value)]) for name, value in names.items() if id(value) in known]
    try:
        for names, name, question in places:
            names[name] = partial(ask, question)
        yield
    finally:
        for names, name, question in places:
            names[name] = question
