"""Places to write to, checked before long work whose result goes there; files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from fx_oto.core.errors import InputError

__all__ = ["because", "check_file", "check_folder", "free_path", "replaced"]


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


def free_path(path: Path) -> Path:
    """``path``, or if there is something already, the first of ``name-2.end``, ``name-3.end`` … where nothing is."""
    others = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return path if not path.exists() else next(other for other in others if not other.exists())


def because(error: BaseException) -> str:
    """Why a file could not be written, without the name of the one that was to take its place.

    The writers of torch make errors of many types of an ``OSError``.
    """
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    return getattr(cause, "strerror", None) or str(cause)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a new file beside ``path`` that takes its place once it is written and on the disk.

    If that fails, or the process is killed, what was there before is as it was.
    """
    path = Path(os.path.realpath(path))
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = beside.stat().st_mode
        yield beside
        beside.chmod(mode)  # safetensors may have put a file in its place that only its owner reads
        _to_disk(beside)
        os.replace(beside, path)
        _to_disk(path.parent)
    finally:
        with suppress(OSError):
            beside.unlink()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
