"""Containers that a model is given: what its code puts into them, or takes out, no graph does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fx_oto.analysis.disguises import is_fake
from fx_oto.capture.arguments import content_of
from fx_oto.capture.recorder import Recorder
from fx_oto.core.fx_utils import source_line

__all__ = ["announce_changes"]

_PLAIN = (bool, int, float, str, type(None))


def announce_changes(run: Recorder, given: Iterable[tuple[str, Any, Any]]) -> None:
    """Tell the user of a run which of its containers were changed.

    Args:
        run: the run.
        given: of each container the name of the argument that it is in, itself, as code got it, and what was in it.
    """
    for name, container, before in given:
        now = content_of(container)
        if now.keys() == before.keys() and all(_same(now[key], before[key]) for key in now):
            continue
        new = [value for key, value in now.items() if not any(value is other for other in before.values())]
        where = next((line for value in new if (line := _line(run, value))), "")
        note = (
            f"the model changes what is in {name}, which is given to it{where and f' ({where})'}; its graph does not, "
            "and what it was given stays as it is: let forward return what the caller needs"
        )
        if note not in run.notes:
            run.notes.append(note)


def _same(value: Any, other: Any) -> bool:
    return value is other or (type(value) is type(other) and isinstance(value, _PLAIN) and bool(value == other))


def _line(run: Recorder, value: Any) -> str:
    """Where a value was computed."""
    return source_line(run.node_of_tensor(value)) if is_fake(value) else ""
