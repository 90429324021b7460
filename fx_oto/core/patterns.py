"""Glob patterns of parameter and module names, as options take them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from fx_oto.core.errors import SettingsError

__all__ = ["check_matched", "matches", "patterns_in"]

_AXIS = re.compile(r"(?<=\w)\[(\d+)\]$")


def patterns_in(given: str | Iterable[str]) -> tuple[str, ...]:
    """Glob patterns as a user gives them: a string is one of them, not its letters.

    Raises:
        SettingsError: they are no strings.
    """
    patterns: tuple[Any, ...] = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise SettingsError(f"patterns of names must be strings such as 'layers.*.weight', found {pattern!r}")
    return patterns


def matches(name: str, patterns: Sequence[str], dim: int | None = None) -> bool:
    """Return whether a parameter, or a module that holds it, matches one of the patterns; True without patterns.

    Args:
        name: of the parameter.
        patterns: such as ``"layers.*.weight"``; ``"embed.weight[0]"`` is for one axis of a parameter.
        dim: the axis that is asked for, if it is one.
    """
    parts = name.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    if dim is not None:
        names.append(f"{name}[{dim}]")
    globs = [_AXIS.sub(r"[[]\1]", pattern) for pattern in patterns]
    return not patterns or any(fnmatchcase(one, glob) for one in names for glob in globs)


def check_matched(patterns: Iterable[str], names: Iterable[str], kind: str, option: str = "") -> None:
    """Refuse a pattern that matches nothing: it is a typing error.

    Args:
        patterns: those that were given.
        names: all that can be matched; a pattern may also match a module that holds one of them.
        kind: what has these names, such as ``"parameter or module"``.
        option: the option that has these patterns; empty for positional arguments.

    Raises:
        SettingsError: a pattern matches nothing; the text gives three of the names.
    """
    names = list(names)
    for pattern in patterns:
        if not any(matches(name, (_AXIS.sub("", pattern),)) for name in names):
            where = f" in {option}" if option else ""
            known = ", ".join(map(repr, list(dict.fromkeys(names))[:3])) or "nothing: there is none"
            raise SettingsError(f"the pattern {pattern!r}{where} matches no {kind}; names look like {known}")
