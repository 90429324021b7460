"""Places to write to, checked before long work whose result goes there."""

from __future__ import annotations

import os
from pathlib import Path

from fx_oto.core.errors import InputError

__all__ = ["check_file", "check_folder"]


def check_file(path: Path, option: str) -> None:
    """Check that a file can be written there.

    Args:
        path: of the file, which may exist.
        option: by which it was given, as errors say it.

    Raises:
        InputError: it cannot.
    """
    if path.is_dir():
        raise InputError(f"{option} {path}: this is a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"{option} {path}: no folder {path.parent} exists")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{option} {path}: nothing can be written there: permission is denied")


def check_folder(path: Path, option: str) -> None:
    """Check that a folder can be made there, with those above it, or is there already, to write files into.

    Args:
        path: of the folder.
        option: by which it was given, as errors say it.

    Raises:
        InputError: it cannot.
    """
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not there.is_dir():
        raise InputError(f"{option} {path}: expected a folder, but {there} is a file")
    if not os.access(there, os.W_OK):
        raise InputError(f"{option} {path}: nothing can be written into {there}: permission is denied")
