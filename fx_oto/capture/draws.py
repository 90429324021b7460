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
    before, states = sys.getprofile(), list[Any]()

    def watch(frame: FrameType, event: Any, arg: Any) -> None:
        if before is not None:
            before(frame, event, arg)
        if not event.startswith("c_") or not frame.f_code.co_filename.startswith(_BEARTYPE):
            return
        if getattr(arg, "__self__", None) is random.getrandbits.__self__:  # type: ignore[attr-defined]
            if event == "c_call":
                states.append(random.getstate())
            elif states:
                random.setstate(states.pop())

    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)
