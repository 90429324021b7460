"""Colours and text sizes that all pictures share."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["DARK", "FAINT", "FROZEN", "LINES", "MUTED", "clipped", "darker", "family_colour", "text_width"]

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


@lru_cache(maxsize=65536)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """The width of a text in inches; within ``drawing()``."""
    from matplotlib.font_manager import FontProperties  # noqa: PLC0415 - an extra
    from matplotlib.textpath import text_to_path  # noqa: PLC0415 - an extra

    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / 72


def clipped(text: str, size: float, most: float, weight: str = "normal") -> str:
    """A text that is at most so many inches wide: the beginning gives way, for names differ at the end."""
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
