"""Reasons that fit into a table, and read the same on every machine."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import fx_oto

__all__ = ["explained", "portable"]

ROOT = Path(__file__).parents[2]


def explained(error: BaseException) -> str:
    """One line: kind and text of the error that all came from, and the line of ours that raised it."""
    while isinstance(error, fx_oto.PassError) and error.__cause__ is not None:
        error = error.__cause__
    ours = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(ROOT / "fx_oto"))
    ]
    where = f" [{ours[-1].filename}:{ours[-1].lineno}]" if ours else ""
    return portable(f"{type(error).__name__}: {' '.join(str(error).split())[:420]}{where}")


def portable(text: str) -> str:
    """Without the places where this machine keeps its files."""
    text = text.replace(f"{ROOT}/", "")
    return re.sub(r"/[^\s:\"']*/(?:site-packages|python3\.\d+)/", "", text)
