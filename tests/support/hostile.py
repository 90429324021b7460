"""Files that somebody has changed, and a watch over what reading them does."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file


def opened(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plan and the tensors of a file."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["fx_oto"]), {name: file.get_tensor(name) for name in list(file.keys())}


def rewritten(path: Path, plan: Any, tensors: dict[str, Any], target: Path) -> Path:
    """A file with another plan, of which the checksum is right."""
    text = plan if isinstance(plan, str) else json.dumps(plan)
    save_file(tensors, target, {"fx_oto": text, "fx_oto_sha256": hashlib.sha256(text.encode()).hexdigest()})
    return target


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A file beside it, whose plan was changed in place."""
    plan, tensors = opened(path)
    plan = copy.deepcopy(plan)
    change(plan)
    return rewritten(path, plan, tensors, path.with_name("changed.safetensors"))


_WATCHED = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
_WATCHED += ("os.remove", "os.rename", "shutil.rmtree", "os.mkdir", "os.chmod", "ctypes.dlopen", "code.__new__")
_seen: list[tuple[str, Any]] | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if event in _WATCHED or writes:
        _seen.append((event, args))


@contextlib.contextmanager
def watched() -> Iterator[list[tuple[str, Any]]]:
    """What is done meanwhile that reading a file never does: processes, connections, files that are written."""
    global _seen  # noqa: PLW0603 - audit hooks stay for good
    if not hasattr(sys, "_fx_oto_hook"):
        sys.addaudithook(_hook)
        sys._fx_oto_hook = True
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in a plan."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from places(one, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """The value at a path."""
    for key in path:
        value = value[key]
    return value
