"""The classes of outputs in files: named tuples and dataclasses, by name, and what is made where they are not known."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from fx_oto.capture.names import is_plain
from fx_oto.core.errors import FileError
from fx_oto.deploy.values import Reader, a_list, a_text, given_names
from fx_oto.nn.outputs import class_of_named, named_tuple

__all__ = ["is_record", "made_record", "written_record"]


def is_record(kind: Any) -> bool:
    """Whether a class is a dataclass or named tuple, of which code makes outputs."""
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or _is_named(kind))


def _is_named(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def written_record(make: Any, first: tuple[Any, ...]) -> dict[str, Any] | None:
    """What a file says of a class of outputs; None of what is none, or has no name that it could be found by.

    Args:
        make: what is called.
        first: what with.
    """
    if make is named_tuple:
        return {"output": first[0], "fields": list(first[1])}
    if not is_record(make):
        return None
    names = given_names(make)
    if _is_named(make):
        return {"output": names or make.__name__, "fields": list(make._fields)}
    return None if names is None else {"output": names}


def made_record(entry: dict[str, Any], reader: Reader, model: nn.Module | None) -> tuple[Any, tuple[Any, ...]]:
    """What is called to make an output, and its first arguments.

    Args:
        entry: what ``written_record`` has returned.
        reader: knows what the user hands over.
        model: of the user's own class; classes of its outputs are found by its code.

    Raises:
        FileError: it has no name of a class, or the class has other fields.
    """
    names = a_text(entry["output"])
    found = reader.given.get(names) or _known(names, model)
    if "fields" not in entry:
        return (dict if found is None else found), ()  # its fields, in a plain dictionary
    fields = tuple(map(a_text, a_list(entry["fields"])))
    if found is None:
        _check_names(names, fields)
        return named_tuple, (names, fields)
    if getattr(found, "_fields", None) != fields:
        raise FileError(
            f"the output {names!r} was a named tuple of the fields {', '.join(fields)}; the one that was given has "
            f"{', '.join(getattr(found, '_fields', ())) or 'none'}"
        )
    return found, ()


def _check_names(names: str, fields: tuple[str, ...]) -> None:
    odd = next((name for name in (names.rpartition(".")[2], *fields) if not is_plain(name)), None)
    if odd is not None:
        raise FileError(f"{names!r:.60} is no named tuple: code cannot say {odd!r:.60}")
    try:
        class_of_named(names, fields)
    except ValueError as error:
        raise FileError(f"{names!r:.60} is no named tuple: {error}") from error


def _known(names: str, model: nn.Module | None) -> Any:
    """The dataclass or named tuple of that name, if the code of the user's model knows it."""
    homes = [] if model is None else sorted({type(one).__module__ for one in model.modules()} & sys.modules.keys())
    known = (value for home in homes for value in (*list(vars(sys.modules[home]).values()), *_inside(home, names)))
    return next((value for value in known if is_record(value) and given_names(value) == names), None)


def _inside(home: str, names: str) -> Iterator[Any]:
    """What is in a class of a module."""
    if names.startswith(f"{home}."):
        found: Any = sys.modules[home]
        for part in names.removeprefix(f"{home}.").split("."):
            found = vars(found).get(part) if hasattr(found, "__dict__") else None
        yield found
