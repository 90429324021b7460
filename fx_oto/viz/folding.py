"""Folding: nodes of one module, or nodes that were not asked for, share a row if they are neighbours."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

from fx_oto.core.errors import SettingsError

__all__ = ["Folding", "check_fold", "folded", "grouped", "labelled", "prefix", "span"]


@dataclass(frozen=True)
class Folding:
    """The rows of a picture, and which nodes share them.

    Attributes:
        rows: positions, in order.
        depth: the parts of a module's name that tell rows apart; None folds nothing.
        joined: what belongs to no module shares the row of the module that stands before and after it.
        most: neighbours that share a row beyond that, at most.
    """

    rows: list[list[int]]
    depth: int | None = None
    joined: bool = False
    most: int = 1

    @property
    def told(self) -> str:
        """For a subtitle: what was joined."""
        return "; ".join(
            clause
            for clause, holds in (
                (f"modules at depth {self.depth} are one row each", self.depth is not None),
                ("what runs between two calls of one is part of it", self.joined),
                (f"up to {self.most} neighbours share a row", self.most > 1),
            )
            if holds
        )

    @property
    def remedy(self) -> str:
        """The end of the subtitle if the user did not ask for folding."""
        return f" for size: see {'limit' if self.most > 1 else 'fold'}="


def check_fold(fold: int | None, limit: int) -> None:
    """Refuse a depth that is none, and a picture without a row."""
    if fold is not None and fold < 1:
        raise SettingsError(f"fold must be at least 1, the parts of a module's name that are told apart; found {fold}")
    if limit < 1:
        raise SettingsError(f"limit must be at least 1, the rows that a picture may have; found {limit}")


def prefix(path: str, depth: int) -> str:
    """The first ``depth`` parts of a dotted name."""
    return ".".join(path.split(".")[:depth])


def span(first: str, last: str) -> str:
    """A name for a run of neighbours: what the names of its ends share is said once."""
    if first == last:
        return first
    parent, _, end = last.rpartition(".")
    return f"{first}–{end if parent == first.rpartition('.')[0] else last}"


def folded(paths: Sequence[str], fold: int | None, limit: int, kinds: Sequence[Hashable]) -> Folding:
    """Find the positions that share a row: as few as ``limit`` asks for, or those that ``fold`` says.

    Only neighbours are joined, so what was in an order of execution still is. Where the modules' names are not enough,
    what belongs to no module joins the module around it; then neighbours share a row, equally many everywhere.

    Args:
        paths: the dotted name of each, ``""`` for what belongs to no module.
        fold: the parts of a name that tell rows apart.
        limit: the most rows, without ``fold``.
        kinds: None for what was not asked for, neighbours of which share a row whatever their names; others may be
            told apart by what they are, and share a row with another kind only if nothing else is enough.
    """
    if fold is not None:
        return Folding(_runs(_modules(paths, fold), kinds), fold)
    found = alone = Folding(_runs([""] * len(paths), kinds))
    for depth in range(max((path.count(".") for path in paths), default=0), 0, -1):
        if len(found.rows) > limit:
            found = Folding(_runs(_modules(paths, depth), kinds), depth)
    if len(found.rows) <= limit:
        return found
    rows = _runs(_joined([prefix(path, 1) for path in paths], kinds), kinds)
    if len(rows) < len(alone.rows):
        found = Folding(rows, 1, joined=len(rows) < len(found.rows))
    return found if len(rows) <= limit else _shortened(found, limit, kinds)


def labelled(names: Sequence[str], fold: int | None, limit: int) -> tuple[list[str], Folding]:
    """The same where all of a name share a row, wherever they are: each one's row, and how that came about."""
    distinct = list(dict.fromkeys(names))
    if fold is None and len(distinct) <= limit:
        return list(names), Folding([])
    deepest = max((name.count(".") for name in names), default=0)
    for depth in range(deepest, 0, -1) if fold is None else (fold,):
        short = [prefix(name, depth) for name in names]
        if fold is not None or len(set(short)) <= limit:
            return short, Folding([], depth)
    tops = list(dict.fromkeys(prefix(name, 1) for name in names))
    most = -(-len(tops) // limit)
    parts = [tops[i : i + most] for i in range(0, len(tops), most)]
    row_of = {top: span(part[0], part[-1]) for part in parts for top in part}
    told_apart = 1 if len(tops) < len(distinct) else None
    return [row_of[prefix(name, 1)] for name in names], Folding([], told_apart, most=most)


def _modules(paths: Sequence[str], depth: int) -> list[str]:
    """The module at a depth that each is inside of; ``""`` where it is inside of none."""
    return [prefix(path, depth) if path.count(".") >= depth else "" for path in paths]


def _runs(modules: Sequence[str], kinds: Sequence[Hashable]) -> list[list[int]]:
    """Neighbours in the same module, and those that were not asked for."""

    def key(i: int) -> tuple[bool, str | int]:
        return (False, 0) if kinds[i] is None else (True, modules[i] or i)

    return [list(group) for _, group in groupby(range(len(modules)), key)]


def _joined(paths: Sequence[str], kinds: Sequence[Hashable]) -> list[str]:
    """Count what belongs to no module, but stands between two nodes of one, to that module."""
    found, before = list(paths), 0
    for i in range(len(paths)):
        if kinds[i] is None or kinds[i] != kinds[before]:
            before = i
        elif paths[i]:
            if paths[i] == paths[before]:
                found[before:i] = [paths[i]] * (i - before)
            before = i
    return found


def _shortened(found: Folding, limit: int, kinds: Sequence[Hashable]) -> Folding:
    """Neighbouring rows of a kind joined, as few as needed; rows of all kinds if there are too many kinds."""
    rows = found.rows
    stretches = [list(run) for _, run in groupby(rows, lambda row: kinds[row[0]])]

    def count(most: int) -> int:
        return sum(-(-len(run) // most) for run in stretches)

    if len(stretches) > limit:
        stretches = [rows]
    most = bisect_left(range(1, len(rows)), -limit, key=lambda size: -count(size)) + 1
    parts = [run[i : i + most] for run in stretches for i in range(0, len(run), most)]
    return Folding([list(chain(*part)) for part in parts], found.depth, found.joined, most)


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
