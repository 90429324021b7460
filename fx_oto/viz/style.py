"""Colours and text sizes that all pictures share."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.font_manager import FontProperties

__all__ = [
    "DARK",
    "FAINT",
    "FROZEN",
    "LINES",
    "MUTED",
    "clipped",
    "darker",
    "family_colour",
    "in_legend",
    "name_rows",
    "printable",
    "text_width",
]

DARK, MUTED, FAINT = "#222222", "#666666", "#F4F4F4"
FROZEN = "#DDDDDD"

# Paul Tol's "light" scheme, made for cells with dark text that colour-blind readers tell apart as well. Neighbours in
# the list are neighbours in a network, so they differ most; a number beside the colour settles what is left.
_FAMILIES = ("#77AADD", "#EE8866", "#44BB99", "#EEDD88", "#FFAABB", "#BBCC33", "#99DDFF", "#C4A5D8")

# Okabe and Ito's scheme without its yellow, which a thin line loses on white.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")


def family_colour(family: int) -> str:
    """The colour of a family, the same in every picture; shades repeat after 24, and the number tells them apart."""
    colour = _FAMILIES[family % len(_FAMILIES)]
    shade = family // len(_FAMILIES) % 3
    return (colour, _mixed(colour, "#FFFFFF", 0.45), _mixed(colour, "#000000", 0.14))[shade]


def darker(colour: str) -> str:
    """A shade that a line on white can have."""
    return _mixed(colour, "#000000", 0.22)


def _mixed(colour: str, other: str, part: float) -> str:
    pairs = [(int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * part):02X}" for a, b in pairs)


def printable(text: str) -> str:
    """A text of one line that the font has every character of; a mark replaces those that it lacks."""
    escaped = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return "".join(one if ord(one) in _characters() else "\N{REPLACEMENT CHARACTER}" for one in "".join(escaped))


def in_legend(text: str, most: float = 2.6) -> str:
    """A label, clipped; a legend leaves out labels that begin with an underscore, unless a space hides it."""
    text = clipped(text, 8, most)
    return f" {text}" if text.startswith("_") else text


def name_rows(axes: Axes, names: Sequence[str], size: float) -> None:
    """Label the rows of a plot, from 0 on; no name is maths, also where the figure is saved without ``Picture``."""
    axes.set_yticks(range(len(names)), names, size=size)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font  # noqa: PLC0415 - an extra

    fonts = (get_font(findfont(_font(7.0, weight))) for weight in ("normal", "bold"))
    normal, bold = (frozenset(font.get_charmap()) for font in fonts)
    return normal & bold


def _font(size: float, weight: str) -> FontProperties:
    from matplotlib.font_manager import FontProperties  # noqa: PLC0415 - an extra

    return FontProperties(family="DejaVu Sans", size=size, weight=weight)


@lru_cache(maxsize=65536)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """The width of a text in inches; within ``drawing()``."""
    from matplotlib.textpath import text_to_path  # noqa: PLC0415 - an extra

    return float(text_to_path.get_text_width_height_descent(text, _font(size, weight), False)[0]) / 72


def clipped(text: str, size: float, most: float, weight: str = "normal") -> str:
    """A text as it is drawn, at most so many inches wide: the beginning is cut, because names differ at the end."""
    text = printable(text)
    if text_width(text, size, weight) <= most:
        return text
    first, last = 1, len(text)
    while first < last:  # the longest end that fits
        middle = (first + last) // 2
        if text_width("…" + text[middle:], size, weight) <= most:
            last = middle
        else:
            first = middle + 1
    return "…" + text[first:]
