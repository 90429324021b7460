"""What docstrings in Google's style say, so that tests can hold them to the code."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator

from fx_oto.core.errors import FxOtoError

_SECTION = re.compile(r"^(\w+):$")
_ENTRY = re.compile(r"^    (\w+): ?(.*)$")


def entries(docstring: str | None, *sections: str) -> dict[str, str]:
    """What the sections of these names, such as ``Args``, say of each name."""
    found: dict[str, str] = {}
    section = name = ""
    for line in inspect.cleandoc(docstring or "").splitlines():
        if line and not line.startswith(" "):
            heading = _SECTION.match(line)
            section = heading[1] if heading else ""
        elif section in sections:
            entry = _ENTRY.match(line)
            if entry:
                name = entry[1]
            found[name] = f"{found.get(name, '')} {entry[2] if entry else line.strip()}".strip()
    return found


def has_example(docstring: str | None) -> bool:
    """Whether there is a section with an example that doctest runs."""
    return bool(re.search(r"^\s*Example:\n(\s+\S.*\n)*?\s+>>> ", f"{docstring}\n", re.MULTILINE))


def parameters(function: Callable[..., object]) -> list[str]:
    """Names, without ``self`` and ``cls``."""
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def errors_raised(function: Callable[..., object]) -> set[str]:
    """The errors of fx_oto that the text of a function raises itself, by name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    module = sys.modules[function.__module__]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            kind = getattr(module, node.exc.func.id, None)
            if isinstance(kind, type) and issubclass(kind, FxOtoError):
                found.add(node.exc.func.id)
    return found


def public_methods(kind: type, packages: tuple[str, ...]) -> Iterator[tuple[str, Callable[..., object], bool]]:
    """Methods and properties that a class defines itself: name, function, and whether it is called with arguments."""
    for name, member in vars(kind).items():
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        function = inspect.unwrap(function) if callable(function) else function
        own = inspect.isfunction(function) and function.__module__.partition(".")[0] in packages
        if own and not name.startswith("_"):
            yield name, function, not isinstance(member, property)
