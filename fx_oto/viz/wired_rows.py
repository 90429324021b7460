"""Rows of text beside lanes of coloured wires, wrapped into columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fx_oto.core.picture import Picture, drawing, new_figure
from fx_oto.viz.layout import columns
from fx_oto.viz.style import DARK, FAINT, MUTED, clipped, darker, printable, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Entry", "Line", "Mark", "Row", "Strip", "draw_strip"]

# All in inches, text in points.
_ROW, _LANE, _BOX = 0.19, 0.22, (0.2, 0.135)
_GAP, _MARGIN, _WIDEST_NAME = 0.28, 0.25, 2.6
_SIZE, _SMALL = 7.0, 5.5
_COLUMN, _MOST_LANES = 3.2, 14
_NARROWEST, _NUMBERED = 0.07, 0.165  # lanes, if there are many: of boxes apart from one another, and side by side
_TITLE, _WIDEST_ENTRY, _WIDEST_NOTE, _WIDEST_DETAIL = 0.42, 3.6, 11.0, 2.6


@dataclass(frozen=True)
class Mark:
    """A box on a row.

    Attributes:
        lane: where.
        fills: its colours from left to right; none for an outline.
        text: at most three characters.
        kind: ``"box"``; ``"dot"``, smaller and round; ``"pile"``, for what stands for several.
        barred: with a bar below, across the wire.
    """

    lane: int
    fills: tuple[str, ...] = ()
    text: str = ""
    kind: str = "box"
    barred: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the picture: marks, small numbered boxes, a name and details; rows of odd groups are shaded."""

    marks: tuple[Mark, ...]
    name: str
    detail: str = ""
    chips: tuple[tuple[str, str], ...] = ()
    group: int = 0
    bold: bool = False


@dataclass(frozen=True)
class Line:
    """A wire down a lane from a row to a row; with ``to``, it then bends into that lane at its last row."""

    lane: int
    first: int
    last: int
    colour: str
    to: int | None = None
    width: float = 1.6


@dataclass(frozen=True)
class Entry:
    """A line of the legend."""

    mark: Mark
    text: str


@dataclass(frozen=True)
class Strip:
    """All of a picture."""

    title: str
    subtitle: str
    rows: Sequence[Row]
    lines: Sequence[Line]
    legend: Sequence[Entry] = ()
    notes: Sequence[Entry] = ()


def draw_strip(strip: Strip) -> Picture:
    """Draw it."""
    with drawing():
        return _Drawing(_printable(strip)).run()


def _printable(strip: Strip) -> Strip:
    """The same in characters that the font has, no text wider than there can be room for."""
    return Strip(
        clipped(strip.title, 10, _WIDEST_NOTE, "bold"),
        clipped(strip.subtitle, _SIZE, _WIDEST_NOTE),
        [
            replace(
                row,
                name=clipped(row.name, _SIZE, _WIDEST_NAME, _weight(row)),
                detail=clipped(row.detail, _SIZE, _WIDEST_DETAIL),
            )
            for row in strip.rows
        ],
        strip.lines,
        [replace(entry, text=printable(entry.text)) for entry in strip.legend],
        [replace(entry, text=printable(entry.text)) for entry in strip.notes],
    )


def _weight(row: Row) -> str:
    return "bold" if row.bold else "normal"


class _Drawing:
    # Boxes and wires are artists without limits of data: these are not needed, and take half of the time.
    def __init__(self, strip: Strip) -> None:
        self.strip = strip
        self.columns = columns(len(strip.rows), _ROW, _COLUMN)
        self.lanes = [self._lanes_in(column) for column in self.columns]
        crowded = any(len(row.marks) > 1 for row in strip.rows)
        narrowest = _NUMBERED if crowded else _NARROWEST
        self.pitch = max(_LANE * min(1.0, _MOST_LANES / max(self.lanes)), narrowest)
        self.box = min(_BOX[0], self.pitch - 0.01) if crowded else _BOX[0]
        longest = max((text_width(entry.text, _SIZE) for entry in strip.legend), default=0.0)
        self.entry = min(longest + 0.6, _WIDEST_ENTRY)
        self.widths = [
            lanes * self.pitch + _GAP + self._text_width(column) + _GAP
            for lanes, column in zip(self.lanes, self.columns, strict=True)
        ]
        self.width = max(sum(self.widths) + 2 * _MARGIN, 5.0, self._heading_width() + 2 * _MARGIN)
        noted = max((text_width(entry.text, _SIZE) for entry in strip.notes), default=0.0) + 2 * _MARGIN + 0.4
        self.width = max(self.width, min(noted, _WIDEST_NOTE))
        self.across = max(1, int((self.width - 2 * _MARGIN) / self.entry))
        self.body = max(len(column) for column in self.columns) * _ROW
        legend = -(-len(strip.legend) // self.across) + len(strip.notes)
        self.height = _TITLE + _MARGIN + self.body + _MARGIN + legend * _ROW + _MARGIN / 2

    def run(self) -> Picture:
        figure = new_figure(self.width, self.height)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        axes.set_axis_off()
        axes.text(_MARGIN, _MARGIN, self.strip.title, size=10, weight="bold", color=DARK, va="center")
        axes.text(_MARGIN, _MARGIN + 0.2, self.strip.subtitle, size=_SIZE, color=MUTED, va="center")
        left = _MARGIN
        for number, width in enumerate(self.widths):
            _Column(self, axes, number, left).draw()
            left += width
        self._legend(axes)
        return Picture(figure)

    def _lanes_in(self, column: range) -> int:
        used = [mark.lane for row in column for mark in self.strip.rows[row].marks]
        for line in self.strip.lines:
            if line.first <= column.stop - 1 and line.last >= column.start:
                used += [line.lane]
        return max(used, default=0) + 1

    def _text_width(self, column: range) -> float:
        return max((row_width(self.strip.rows[row]) for row in column), default=0.0)

    def _heading_width(self) -> float:
        return max(text_width(self.strip.title, 10, "bold"), text_width(self.strip.subtitle, _SIZE))

    def _legend(self, axes: Axes) -> None:
        top = _TITLE + _MARGIN + self.body + _MARGIN + _ROW / 2
        down = -(-len(self.strip.legend) // self.across)
        for i, entry in enumerate(self.strip.legend):
            self._entry(axes, entry, _MARGIN + i // down * self.entry, top + i % down * _ROW, self.entry - 0.55)
        for i, entry in enumerate(self.strip.notes):
            self._entry(axes, entry, _MARGIN, top + (down + i) * _ROW, self.width - 2 * _MARGIN - 0.35)

    def _entry(self, axes: Axes, entry: Entry, x: float, y: float, most: float) -> None:
        draw_mark(axes, entry.mark, x + _BOX[0] / 2, y)
        axes.text(x + 0.3, y, clipped(entry.text, _SIZE, most), size=_SIZE, color=DARK, va="center_baseline")


class _Column:
    """One column of rows, from ``left`` on."""

    def __init__(self, whole: _Drawing, axes: Axes, number: int, left: float) -> None:
        self.whole, self.axes, self.left = whole, axes, left
        self.rows, self.width = whole.columns[number], whole.widths[number]
        self.text = left + whole.lanes[number] * whole.pitch + _GAP

    def draw(self) -> None:
        self._backgrounds()
        for line in self.whole.strip.lines:
            if line.first < self.rows.stop and line.last >= self.rows.start:
                self._line(line)
        for row in self.rows:
            self._row(row)

    def x(self, lane: float) -> float:
        return self.left + (lane + 0.5) * self.whole.pitch

    def y(self, row: float) -> float:
        return _TITLE + _MARGIN + (row - self.rows.start + 0.5) * _ROW

    def _backgrounds(self) -> None:
        from matplotlib.patches import Rectangle  # noqa: PLC0415 - an extra

        for row in self.rows:
            if self.whole.strip.rows[row].group % 2:
                corner = self.left - 0.05, self.y(row - 0.5)
                self.axes.add_artist(
                    Rectangle(corner, self.width - 0.1, _ROW, color=FAINT, lw=0, zorder=0, clip_on=False)
                )

    def _line(self, line: Line) -> None:
        from matplotlib.patches import PathPatch  # noqa: PLC0415 - an extra
        from matplotlib.path import Path  # noqa: PLC0415 - an extra

        bends = line.to is not None and line.last in self.rows
        top = self.y(max(line.first, self.rows.start - 0.5))
        bottom = max(top, self.y(min(line.last - (1 if bends else 0), self.rows.stop - 0.5)))
        here = self.x(line.lane)
        points, codes = [(here, top), (here, bottom)], [Path.MOVETO, Path.LINETO]
        if bends and line.to is not None:
            there, end = self.x(line.to), self.y(line.last)
            points += [(here, (bottom + end) / 2), (there, (bottom + end) / 2), (there, end)]
            codes += [Path.CURVE4] * 3
        for colour, width, order in (("white", line.width + 1.4, 1.0), (line.colour, line.width, 1.1)):
            style = {"ec": colour, "lw": width, "zorder": order, "capstyle": "butt", "clip_on": False}
            self.axes.add_artist(PathPatch(Path(points, codes), fill=False, **style))

    def _row(self, number: int) -> None:
        row, y = self.whole.strip.rows[number], self.y(number)
        right = max((self.x(mark.lane) for mark in row.marks), default=self.x(0))
        self.axes.plot([right, self.text - 0.06], [y, y], color="#CCCCCC", lw=0.5, zorder=1.05)
        for mark in row.marks:
            draw_mark(self.axes, mark, self.x(mark.lane), y, self.whole.box)
        x = self.text
        for text, colour in row.chips:
            width = _chip_width(text)
            _box(self.axes, (x, y), (width, _BOX[1]), (colour,) if colour else ())
            self.axes.text(x + width / 2, y, text, size=_SMALL, color=DARK, ha="center", va="center_baseline")
            x += width + 0.04
        weight = _weight(row)
        self.axes.text(x, y, row.name, size=_SIZE, weight=weight, color=DARK, va="center_baseline")
        x += text_width(row.name, _SIZE, weight) + 0.09
        self.axes.text(x, y, row.detail, size=_SIZE, color=MUTED, va="center_baseline")


def row_width(row: Row) -> float:
    """The width of a row's text in inches."""
    chips = sum(_chip_width(text) + 0.04 for text, _ in row.chips)
    return chips + text_width(row.name, _SIZE, _weight(row)) + 0.09 + text_width(row.detail, _SIZE)


def _chip_width(text: str) -> float:
    return text_width(text, _SMALL) + 0.07


def draw_mark(axes: Axes, mark: Mark, x: float, y: float, width: float = _BOX[0]) -> None:
    """Draw a mark around a point."""
    height = _BOX[1]
    if mark.kind == "dot":
        face = mark.fills[0] if mark.fills else "white"
        axes.plot([x], [y], "o", ms=5, mfc="white", mec=darker(face), mew=1.6, zorder=3)
        return
    if mark.kind == "pile":
        _box(axes, (x - width / 2 + 0.03, y - 0.03), (width, height), mark.fills[-1:] or ("#FFFFFF",), 1.5)
    if mark.barred:
        bar = y + height / 2 + 0.018
        axes.plot([x - width / 2, x + width / 2], [bar, bar], color=DARK, lw=1.5, zorder=3, solid_capstyle="butt")
    _box(axes, (x - width / 2, y), (width, height), mark.fills)
    if mark.text:
        size = _SMALL if width >= _BOX[0] else _SMALL - 0.5
        axes.text(x, y, mark.text, size=size, color=DARK, ha="center", va="center_baseline", zorder=4)


def _box(
    axes: Axes, corner: tuple[float, float], size: tuple[float, float], fills: Sequence[str], order: float = 2
) -> None:
    """A box that starts at the middle of its left side, in equal stripes."""
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - an extra

    (x, y), (width, height) = corner, size
    for i, fill in enumerate(fills):
        stripe = (x + width * i / len(fills), y - height / 2)
        axes.add_artist(Rectangle(stripe, width / len(fills), height, fc=fill, lw=0, zorder=order, clip_on=False))
    edge = darker(fills[0]) if len(set(fills)) == 1 else "#888888"
    face = "none" if fills else "white"
    axes.add_artist(
        Rectangle((x, y - height / 2), width, height, fc=face, ec=edge, lw=0.7, zorder=order + 0.2, clip_on=False)
    )
