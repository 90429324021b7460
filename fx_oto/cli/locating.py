"""``MODULE:NAME`` as the command line takes it: an importable module or a ``.py`` file, and what is in it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from fx_oto.core.errors import FxOtoError, InputError

__all__ = ["did_you_mean", "failed", "locate"]


def locate(target: str, what: str) -> Any:
    """Load the object that ``MODULE:NAME`` names; modules are looked for in the working directory first.

    Args:
        target: ``"package.module:name"``, ``"path/file.py:name"``; ``name`` may be dotted.
        what: what it is needed for, as errors say it: ``"the model"``.

    Raises:
        InputError: it is not of this form, or there is no such module or name.

    Example:
        >>> locate("torch.nn:functional.relu", "the activation").__name__
        'relu'
    """
    module_name, _, path = target.rpartition(":")
    if not module_name or not path:
        raise InputError(
            f"{what} must be given as MODULE:NAME, such as package.module:factory or net.py:build; found {target!r}"
        )
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = _load(module_name)
    for i, name in enumerate(path.split(".")):
        if not hasattr(found, name):
            owner = ".".join((module_name, *path.split(".")[:i]))
            raise InputError(f"{owner} has no {name!r}{did_you_mean(name, dir(found))}")
        found = getattr(found, name)
    return found


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the end of an error: names that look alike, ``""`` where there are none.

    Example:
        >>> did_you_mean("relo", ["relu", "tanh"])
        "; did you mean 'relu'?"
    """
    close = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def failed(what: str, error: BaseException, advice: str = "") -> InputError:
    """The error for the user's code having raised: what it is, what it raised, what to do."""
    text = " ".join(str(error).split()) or "no message"
    advice = f"; {advice}" if advice else ""
    return InputError(f"{what} failed with {type(error).__name__}: {text}{advice} (--traceback shows where)")


def _load(name: str) -> ModuleType:
    is_file = name.endswith(".py")
    try:
        return _load_file(Path(name)) if is_file else importlib.import_module(name)
    except FxOtoError:
        raise
    except ModuleNotFoundError as error:
        if not is_file and error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise _not_found(name, error.name) from error
        raise failed(
            f"importing {name}", error, f"install {error.name!r}, or start where it can be imported"
        ) from error
    except (Exception, SystemExit) as error:
        advice = "keep what a script does under if __name__ == '__main__':" if isinstance(error, SystemExit) else ""
        raise failed(f"importing {name}", error, advice) from error


def _not_found(name: str, missing: str) -> InputError:
    parent, _, last = missing.rpartition(".")
    beside = pkgutil.iter_modules(getattr(sys.modules.get(parent), "__path__", ()) if parent else None)
    hint = did_you_mean(last, [module.name for module in beside])
    if Path(f"{name}.py").is_file():
        hint = f"; for the file, write {name}.py:NAME"
    return InputError(f"no module is called {missing!r}, neither in the working directory nor installed{hint}")


def _load_file(path: Path) -> ModuleType:
    """Import a file, once, under its own name, or another where a module has that."""
    if not path.is_file():
        known = [str(file) for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise InputError(f"no file {path} exists{did_you_mean(str(path), known)}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # for what it imports from beside it
    name = path.stem
    while name in sys.modules or name in sys.stdlib_module_names:
        if getattr(sys.modules.get(name), "__file__", None) == str(path.resolve()):
            return sys.modules[name]
        name += "_"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
