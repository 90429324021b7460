"""Random numbers that a type checker draws, which change nothing that a model computes."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["without_checkers_draws"]

_BEARTYPE = "<@beartype("  # what it calls the files of the code that it writes around functions


@contextmanager
def without_checkers_draws() -> Iterator[None]:
    """Take back what beartype draws from Python's generator, as it looks at one item of a list, which it draws."""
    before, states, draw = sys.getprofile(), list[Any](), random.getrandbits

    def watch(frame: FrameType, event: Any, arg: Any) -> None:
        # At first what is quick: a capture calls, and returns, some millions of times.
        if arg is not draw or not frame.f_code.co_filename.startswith(_BEARTYPE):
            return
        if event == "c_call":
            states.append(random.getstate())
        elif event != "return" and states:
            random.setstate(states.pop())

    def watch_too(frame: FrameType, event: Any, arg: Any) -> None:
        if before is not None:
            before(frame, event, arg)
        watch(frame, event, arg)

    sys.setprofile(watch if before is None else watch_too)
    try:
        yield
    finally:
        sys.setprofile(before)
