"""The lane of each wire, as in ``git log --graph``: a row for each node, a lane for each value in use; columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

__all__ = ["Wire", "columns", "interval_lanes", "value_lanes"]

_PAGE = 9.5  # inches that a notebook shows without making them smaller

Wire = tuple[int, int]  # first and last row


def value_lanes(inputs: Sequence[Sequence[int]]) -> list[int]:
    """A lane for the value of each row, kept free of others until its last reader.

    A row takes over the leftmost lane that ends in it, so a chain is a straight line and a shortcut runs beside it.

    Args:
        inputs: for each row, the earlier rows whose values it reads.
    """
    last = list(range(len(inputs)))
    for row, read in enumerate(inputs):
        for source in read:
            last[source] = max(last[source], row)
    lanes: list[int] = []
    busy: dict[int, int] = {}  # lane -> last row that it is needed in
    for row, read in enumerate(inputs):
        ending = [lanes[source] for source in read if last[source] == row]
        busy = {lane: end for lane, end in busy.items() if end > row}
        lanes.append(min(ending, default=next(lane for lane in range(row + 1) if lane not in busy)))
        busy[lanes[-1]] = last[row]
    return lanes


def interval_lanes(wires: Sequence[Wire]) -> list[int]:
    """A lane for each wire so that no two in a lane share a row; the longest wires come first, on the left."""
    order = sorted(range(len(wires)), key=lambda i: (wires[i][0] - wires[i][1], wires[i][0]))
    taken: list[list[Wire]] = []
    lanes = [0] * len(wires)
    for i in order:
        first, last = wires[i]
        free = (n for n, held in enumerate(taken) if all(last < start or end < first for start, end in held))
        lanes[i] = next(free, len(taken))
        if lanes[i] == len(taken):
            taken.append([])
        taken[lanes[i]].append(wires[i])
    return lanes


def columns(rows: int, height: float, width: float) -> list[range]:
    """Rows in as few columns of almost equal length as make a picture that is wider than high, or as fill a page.

    Args:
        rows: how many.
        height: of a row, in inches.
        width: of a column, roughly, in inches.
    """
    wider = next(n for n in count(1) if -(-rows // n) * height <= n * width or n >= rows)
    number = min(wider, max(1, int(_PAGE / width)))
    length = max(1, -(-rows // number))
    return [range(start, min(start + length, rows)) for start in range(0, max(rows, 1), length)]
