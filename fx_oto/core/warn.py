"""Warnings that name the line of the user's code that led to them."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import FrameType

from fx_oto.core.errors import FxOtoWarning

__all__ = ["warn"]


def _folder(package: str) -> str:
    spec = find_spec(package)
    return f"{Path(spec.origin).parent}{os.sep}" if spec is not None and spec.origin else ""


_NOT_USERS = tuple(filter(None, map(_folder, ("fx_oto", "torch"))))


def warn(message: object) -> None:
    """Issue a ``FxOtoWarning`` as if from the innermost line outside of this library and of torch."""
    frame: FrameType | None = sys._getframe(1)
    for level in count(2):
        if frame is None or not frame.f_code.co_filename.startswith(_NOT_USERS):
            warnings.warn(str(message), FxOtoWarning, stacklevel=level)
            return
        frame = frame.f_back
