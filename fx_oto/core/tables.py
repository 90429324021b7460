"""Results that show themselves alike: as text, in a notebook, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
import shutil
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape
from typing import Any

from tabulate import tabulate

__all__ = ["MACS", "Tabular", "counted", "finite", "foldable", "macs_text", "table", "terminal_width", "wrapped"]

_MOST_ROWS = 12  # that a notebook shows of what can be unfolded
_NARROWEST = 24  # columns that a text is wrapped to


class Tabular(ABC):
    """A result of one or several tables: ``str()``, HTML in a notebook, ``to_markdown()`` and ``to_json()``."""

    @property
    def _summary(self) -> str:
        """A line above the tables; empty for none. Of those without ``__repr__`` of their own, also that."""
        return ""

    @abstractmethod
    def _tables(self, style: str) -> Sequence[str]:
        """The tables in a format of ``tabulate``."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, as JSON knows them."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._summary}>"

    def __str__(self) -> str:
        return "\n\n".join(filter(None, (self._summary, *self._tables("simple"))))

    def _repr_html_(self) -> str:
        summary = f"<p><b>{escape(self._summary)}</b></p>" if self._summary else ""
        return "\n".join(filter(None, (summary, *self._tables("html"))))

    def to_markdown(self) -> str:
        """The same tables in Markdown."""
        return "\n\n".join(filter(None, (self._summary, *self._tables("pipe"))))

    def to_json(self) -> str:
        """``to_dict()`` as a JSON document, in which NaN and what is infinite are null."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


MACS = "MACs/sample"


def macs_text(macs: float, samples: int = 1) -> str:
    """Multiply-adds of one sample, in millions, or one by one where there are few.

    Args:
        macs: those of a whole batch.
        samples: in the batch.
    """
    macs /= max(samples, 1)
    return f"{macs / 1e6:,.2f}M" if macs >= 1e5 else f"{round(macs):,}"


def table(
    rows: Sequence[Sequence[object]],
    headers: Sequence[str],
    style: str = "simple",
    numeric: Sequence[str] = (),
    width: int | None = None,
) -> str:
    """A table of texts.

    Args:
        rows: the cells.
        headers: a name for each column.
        style: a format of ``tabulate``: ``"simple"``, ``"html"`` or ``"pipe"``.
        numeric: the headers of the columns that are aligned to the right.
        width: columns of text that the last column is wrapped to fit into, between words; None for any.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    if width is not None:
        padded = [f"{header}  " for header in headers]  # as tabulate has it
        taken = sum(max(len(line[i]) for line in (padded, *cells)) + 2 for i in range(len(headers) - 1))
        cells = [[*row[:-1], wrapped(row[-1], max(width - taken, _NARROWEST))] for row in cells]
    if style == "pipe":
        cells = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    align = ["right" if header in numeric else "left" for header in headers]
    text = str(tabulate(cells, headers, style, colalign=align if cells else None, disable_numparse=True))
    if style == "html":
        for tag in ("td", "th"):  # else a notebook moves them to the right
            text = text.replace(f"<{tag}>", f'<{tag} style="text-align: left;">')
    return text


def terminal_width() -> int:
    """Columns to write in: ``$COLUMNS``, those of the terminal, or 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def wrapped(text: str, columns: int | None = None) -> str:
    """Text in lines of at most so many columns, by default the terminal's; names are not broken."""
    return textwrap.fill(text, columns or terminal_width(), break_long_words=False, break_on_hyphens=False)


def foldable(text: str, rows: int, title: str) -> str:
    """An HTML table that is folded away if it is long."""
    return text if rows <= _MOST_ROWS else f"<details><summary>{title}</summary>{text}</details>"


def counted(number: int, one: str, many: str) -> str:
    """A number and the word for what is counted, such as ``"1 family"``."""
    return f"{number:,} {one if number == 1 else many}"


def finite(value: float | None) -> float | None:
    """A number as JSON knows it: None if it is NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None
