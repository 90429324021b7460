"""Tables that fit the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from tabulate import tabulate

__all__ = ["table", "width", "wrapped"]

_LEAST = 24


def width() -> int:
    """Columns to write in: ``$COLUMNS``, those of the terminal, or 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def table(rows: Sequence[Sequence[object]], headers: Sequence[str], numeric: Sequence[str] = ()) -> str:
    """A table whose last column is wrapped, between words, to what the others leave of the width."""
    cells = [[str(cell) for cell in row] for row in rows]
    padded = [f"{header}  " for header in headers]  # as tabulate has it
    taken = sum(max(len(line[i]) for line in (padded, *cells)) + 2 for i in range(len(headers) - 1))
    for row in cells:
        row[-1] = wrapped(row[-1], max(width() - taken, _LEAST))
    align = ["right" if header in numeric else "left" for header in headers]
    return str(tabulate(cells, headers, colalign=align if cells else None, disable_numparse=True))


def wrapped(text: str, columns: int | None = None) -> str:
    """Text in lines of at most so many columns; names are not broken."""
    return textwrap.fill(text, columns or width(), break_long_words=False, break_on_hyphens=False)
