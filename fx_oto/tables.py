"""Tables as text, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

__all__ = ["foldable", "table"]

_MOST_ROWS = 12  # that a notebook shows of what can be unfolded


def table(rows: Sequence[Sequence[object]], headers: Sequence[str], style: str = "simple", **options: Any) -> str:
    """``tabulate``, in whose HTML text stays on the left: a notebook moves every cell to the right that does not say.

    Args:
        rows: the cells.
        headers: a name for each column.
        style: a ``tablefmt`` of tabulate.
        options: of tabulate.
    """
    text = str(tabulate(rows, headers, tablefmt=style, **options))
    if style == "html":
        for tag in ("td", "th"):
            text = text.replace(f"<{tag}>", f'<{tag} style="text-align: left;">')
    return text


def foldable(text: str, rows: int, title: str) -> str:
    """An HTML table that is folded away if it is long."""
    return text if rows <= _MOST_ROWS else f"<details><summary>{title}</summary>{text}</details>"
