"""Which nodes share a row: those of one module, one after the other, or those that were not asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from fx_oto.errors import SettingsError

__all__ = ["check_fold", "depth_for", "distinct_depth", "folded", "grouped", "prefix"]


def check_fold(fold: int | None) -> None:
    """Refuse a depth that is none."""
    if fold is not None and fold < 1:
        raise SettingsError(f"fold must be at least 1, the parts of a module's name that are told apart; found {fold}")


def prefix(path: str, depth: int) -> str:
    """The first ``depth`` parts of a dotted name."""
    return ".".join(path.split(".")[:depth])


def folded(paths: Sequence[str], depth: int | None, shown: Sequence[bool] | None = None) -> list[list[int]]:
    """Positions that share a row, in order.

    Only neighbours are joined, so what was in an order of execution still is.

    Args:
        paths: the dotted name of each, ``""`` for what belongs to no module and is never folded.
        depth: the parts of a name that tell rows apart; None folds nothing.
        shown: what was asked for; neighbours that were not share a row whatever their names.
    """
    asked = shown or [True] * len(paths)

    def key(i: int) -> tuple[object, ...]:
        if not asked[i]:
            return ("hidden",)
        if depth is None or paths[i].count(".") < depth:
            return ("alone", i)
        return ("module", prefix(paths[i], depth))

    return [list(group) for _, group in groupby(range(len(paths)), key)]


def depth_for(paths: Sequence[str], limit: int, shown: Sequence[bool] | None = None) -> int | None:
    """The largest depth that leaves at most ``limit`` rows; None if nothing need be folded, 1 if no depth is enough."""
    if len(folded(paths, None, shown)) <= limit:
        return None
    deepest = max(path.count(".") for path in paths)
    return next((d for d in range(deepest, 1, -1) if len(folded(paths, d, shown)) <= limit), 1)


def distinct_depth(names: Sequence[str], limit: int) -> int | None:
    """The same where all of a name share a row, wherever they are."""
    if len(set(names)) <= limit:
        return None
    deepest = max(name.count(".") for name in names)
    return next((d for d in range(deepest, 1, -1) if len({prefix(name, d) for name in names}) <= limit), 1)


def grouped(paths: Sequence[str]) -> list[int]:
    """For each row, the number of the part of the network that it belongs to: by the first depth that tells some apart.

    Parts of a single row, such as a stem's layers, are one part with their neighbours of a single row.
    """
    keys = list(paths)
    for depth in (3, 2, 1):
        keys = [prefix(path, depth) for path in paths] if len({prefix(path, depth) for path in paths}) > 3 else keys
    for i in range(1, len(keys) - 1):  # a node of the model itself amid those of one part
        keys[i] = keys[i - 1] if keys[i - 1] == keys[i + 1] else keys[i]
    runs = [len(list(run)) for _, run in groupby(keys)]
    parts = groupby(range(len(runs)), lambda run: (runs[run] == 1, -1 if runs[run] == 1 else run))
    return [number for number, (_, part) in enumerate(parts) for run in part for _ in range(runs[run])]
