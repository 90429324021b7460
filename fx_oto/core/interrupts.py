"""Ctrl-C while the process is in a state that must be left in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interrupts_held"]


class _Hold:
    """A handler that remembers the first Ctrl-C, and hands the second to the handler before."""

    def __init__(self, before: Callable[[int, FrameType | None], object]) -> None:
        self.before = before
        self.pressed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            self.before(number, frame)
        self.pressed = True


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Answer Ctrl-C at the end of the block, not within it; a second one at once.

    A handler runs between any two instructions of Python: also in the ``__exit__`` of a dispatch mode, which then stays
    for the whole process, and in a callback of C++ that ends the process where Python raises. Only the main thread is
    interrupted by signals; elsewhere this does nothing.
    """
    before = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if not callable(before) or isinstance(before, _Hold):
        yield
        return
    hold = _Hold(before)
    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if hold.pressed:
            before(signal.SIGINT, None)
