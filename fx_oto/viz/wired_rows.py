"""Rows of text beside lanes of coloured wires, wrapped into columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from fx_oto.core.picture import Picture, drawing, new_figure
from fx_oto.viz.layout import columns
from fx_oto.viz.style import DARK, FAINT, MUTED, clipped, darker, printable, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection

__all__ = ["Entry", "Line", "Mark", "Row", "Strip", "draw_strip"]

# All in inches, text in points.
_ROW, _LANE, _BOX = 0.19, 0.22, (0.2, 0.135)  # the last one's width and height
_GAP, _MARGIN, _WIDEST_NAME = 0.28, 0.25, 2.6
_SIZE, _SMALL = 7.0, 5.5
_MOST_LANES = 14
_NARROWEST, _NUMBERED = 0.07, 0.165  # lanes, if there are many: of boxes apart from one another, and side by side
_TITLE, _WIDEST_ENTRY, _WIDEST_NOTE, _WIDEST_DETAIL = 0.42, 3.6, 11.0, 2.6

Point: TypeAlias = tuple[float, float]


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
    """Lay out and draw the rows, the wires and the legend."""
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
    """The layout of a whole picture, in inches from its upper left corner."""

    def __init__(self, strip: Strip) -> None:
        self.strip, self.ink = strip, _Ink()
        crowded = any(len(row.marks) > 1 for row in strip.rows)
        every = range(len(strip.rows))
        self.pitch = max(_LANE * min(1.0, _MOST_LANES / self._lanes_in(every)), _NUMBERED if crowded else _NARROWEST)
        self.box = min(_BOX[0], self.pitch - 0.01) if crowded else _BOX[0]
        self.columns = columns(len(strip.rows), _ROW, self._width(every))
        self.widths = [self._width(column) for column in self.columns]
        longest = max((text_width(entry.text, _SIZE) for entry in strip.legend), default=0.0)
        self.entry = min(longest + 0.6, _WIDEST_ENTRY)
        noted = max((text_width(entry.text, _SIZE) for entry in strip.notes), default=0.0) + 0.4
        self.inner = max(sum(self.widths), 4.5, self._heading_width(), min(noted, _WIDEST_NOTE))
        self.across = max(1, int(self.inner / self.entry))
        self.body = max(len(column) for column in self.columns) * _ROW
        legend = -(-len(strip.legend) // self.across) + len(strip.notes)
        self.height = _TITLE + _MARGIN + self.body + _MARGIN + legend * _ROW + _MARGIN / 2

    def run(self) -> Picture:
        width = self.inner + 2 * _MARGIN
        figure = new_figure(width, self.height)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(self.height, 0))
        axes.set_axis_off()
        axes.text(_MARGIN, _MARGIN, self.strip.title, size=10, weight="bold", color=DARK, va="center")
        axes.text(_MARGIN, _MARGIN + 0.2, self.strip.subtitle, size=_SIZE, color=MUTED, va="center")
        left = _MARGIN
        for rows, wide in zip(self.columns, self.widths, strict=True):
            _Column(self, axes, rows, left, wide).draw()
            left += wide
        self._legend(axes)
        self.ink.draw(axes)
        return Picture(figure)

    def lanes_width(self, rows: range) -> float:
        return self._lanes_in(rows) * self.pitch + _GAP

    def _width(self, rows: range) -> float:
        texts = max((row_width(self.strip.rows[row]) for row in rows), default=0.0)
        return self.lanes_width(rows) + texts + _GAP

    def _lanes_in(self, rows: range) -> int:
        used = [mark.lane for row in rows for mark in self.strip.rows[row].marks]
        used += [line.lane for line in self.strip.lines if line.first < rows.stop and line.last >= rows.start]
        return max(used, default=0) + 1

    def _heading_width(self) -> float:
        return max(text_width(self.strip.title, 10, "bold"), text_width(self.strip.subtitle, _SIZE))

    def _legend(self, axes: Axes) -> None:
        top = _TITLE + _MARGIN + self.body + _MARGIN + _ROW / 2
        down = -(-len(self.strip.legend) // self.across)
        for i, entry in enumerate(self.strip.legend):
            self._entry(axes, entry, _MARGIN + i // down * self.entry, top + i % down * _ROW, self.entry - 0.55)
        for i, entry in enumerate(self.strip.notes):
            self._entry(axes, entry, _MARGIN, top + (down + i) * _ROW, self.inner - 0.35)

    def _entry(self, axes: Axes, entry: Entry, x: float, y: float, most: float) -> None:
        draw_mark(axes, self.ink, entry.mark, x + _BOX[0] / 2, y)
        axes.text(x + 0.3, y, clipped(entry.text, _SIZE, most), size=_SIZE, color=DARK, va="center_baseline")


class _Column:
    """One column of rows, from ``left`` on."""

    def __init__(self, whole: _Drawing, axes: Axes, rows: range, left: float, width: float) -> None:
        self.whole, self.axes, self.ink = whole, axes, whole.ink
        self.rows, self.left, self.width = rows, left, width
        self.text = left + whole.lanes_width(rows)

    def draw(self) -> None:
        for line in self.whole.strip.lines:
            if line.first < self.rows.stop and line.last >= self.rows.start:
                self._line(line)
        for row in self.rows:
            self._row(row)

    def x(self, lane: float) -> float:
        return self.left + (lane + 0.5) * self.whole.pitch

    def y(self, row: float) -> float:
        return _TITLE + _MARGIN + (row - self.rows.start + 0.5) * _ROW

    def _line(self, line: Line) -> None:
        bends = line.to is not None and line.last in self.rows
        top = self.y(max(line.first, self.rows.start - 0.5))
        bottom = max(top, self.y(min(line.last - (1 if bends else 0), self.rows.stop - 0.5)))
        here = self.x(line.lane)
        points = [(here, top), (here, bottom)]
        if bends and line.to is not None:
            there, end = self.x(line.to), self.y(line.last)
            points += [(here, (bottom + end) / 2), (there, (bottom + end) / 2), (there, end)]
        self.ink.wires.append((points, line.colour, line.width))

    def _row(self, number: int) -> None:
        row, y = self.whole.strip.rows[number], self.y(number)
        if row.group % 2:
            corner = self.left - 0.05, y - _ROW / 2
            self.ink.shades.append(_Box(corner, (self.width - 0.1, _ROW), FAINT, "none"))
        right = max((self.x(mark.lane) for mark in row.marks), default=self.x(0))
        self.ink.rules.append(((right, y), (self.text - 0.06, y)))
        for mark in row.marks:
            draw_mark(self.axes, self.ink, mark, self.x(mark.lane), y, self.whole.box)
        x = self.text
        for text, colour in row.chips:
            width = _chip_width(text)
            self.ink.box((x, y), width, (colour,) if colour else ())
            self.axes.text(x + width / 2, y, text, size=_SMALL, color=DARK, ha="center", va="center_baseline")
            x += width + 0.04
        weight = _weight(row)
        self.axes.text(x, y, row.name, size=_SIZE, weight=weight, color=DARK, va="center_baseline")
        x += text_width(row.name, _SIZE, weight) + 0.09
        self.axes.text(x, y, row.detail, size=_SIZE, color=MUTED, va="center_baseline")


@dataclass(frozen=True)
class _Box:
    """A rectangle from its upper left corner; a fill or an edge may be ``"none"``."""

    corner: Point
    size: Point
    fill: str
    edge: str


class _Ink:
    """Everything except text, drawn as a few collections: an artist for each box and wire is several times slower."""

    def __init__(self) -> None:
        self.shades: list[_Box] = []  # behind rows
        self.boxes: list[_Box] = []
        self.rules: list[Sequence[Point]] = []  # from boxes to names
        self.bars: list[Sequence[Point]] = []
        self.dots: list[tuple[float, float, str]] = []
        self.wires: list[tuple[Sequence[Point], str, float]] = []  # two points, and three more where it bends

    def box(self, middle: Point, width: float, fills: Sequence[str]) -> None:
        """A box that starts at the middle of its left side, in equal stripes."""
        (x, y), height = middle, _BOX[1]
        stripe = width / max(len(fills), 1)
        corner = x, y - height / 2
        edge = darker(fills[0]) if len(set(fills)) == 1 else "#888888"
        face = "none" if fills else "white"
        for i, fill in enumerate(fills):
            self.boxes.append(_Box((x + stripe * i, corner[1]), (stripe, height), fill, "none"))
        self.boxes.append(_Box(corner, (width, height), face, edge))

    def draw(self, axes: Axes) -> None:
        from matplotlib.collections import LineCollection, PathCollection  # noqa: PLC0415 - an extra
        from matplotlib.path import Path  # noqa: PLC0415 - an extra

        codes = [Path.MOVETO, Path.LINETO, *[Path.CURVE4] * 3]
        paths = [Path(points, codes[: len(points)]) for points, *_ in self.wires]
        widths = [width for *_, width in self.wires]
        colours = [colour for _, colour, _ in self.wires]
        style = {"facecolors": "none", "capstyle": "butt"}
        xs, ys, rings = zip(*self.dots, strict=True) if self.dots else ((), (), ())
        for collection in (
            _rectangles(self.shades, 0),
            PathCollection(paths, linewidths=[width + 1.4 for width in widths], edgecolors="white", zorder=1, **style),
            LineCollection(self.rules, colors="#CCCCCC", linewidths=0.5, zorder=1.05),
            PathCollection(paths, linewidths=widths, edgecolors=colours, zorder=1.1, **style),
            _rectangles(self.boxes, 2),
            LineCollection(self.bars, colors=DARK, linewidths=1.5, zorder=3, capstyle="butt"),
        ):
            axes.add_collection(collection, autolim=False)
        axes.scatter(xs, ys, s=25, c="white", edgecolors=rings, linewidths=1.6, zorder=3)


def _rectangles(boxes: Sequence[_Box], order: float) -> PolyCollection:
    from matplotlib.collections import PolyCollection  # noqa: PLC0415 - an extra

    corners = [
        [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        for (x, y), (width, height) in ((box.corner, box.size) for box in boxes)
    ]
    fills, edges = [box.fill for box in boxes], [box.edge for box in boxes]
    return PolyCollection(corners, facecolors=fills, edgecolors=edges, linewidths=0.7, zorder=order)


def row_width(row: Row) -> float:
    """The width of a row's text in inches."""
    chips = sum(_chip_width(text) + 0.04 for text, _ in row.chips)
    return chips + text_width(row.name, _SIZE, _weight(row)) + 0.09 + text_width(row.detail, _SIZE)


def _chip_width(text: str) -> float:
    return text_width(text, _SMALL) + 0.07


def draw_mark(axes: Axes, ink: _Ink, mark: Mark, x: float, y: float, width: float = _BOX[0]) -> None:
    """Draw a mark around a point."""
    if mark.kind == "dot":
        ink.dots.append((x, y, darker(mark.fills[0] if mark.fills else "#FFFFFF")))
        return
    if mark.kind == "pile":
        ink.box((x - width / 2 + 0.03, y - 0.03), width, mark.fills[-1:])
    if mark.barred:
        bar = y + _BOX[1] / 2 + 0.018
        ink.bars.append(((x - width / 2, bar), (x + width / 2, bar)))
    ink.box((x - width / 2, y), width, mark.fills)
    if mark.text:
        size = _SMALL if width >= _BOX[0] else _SMALL - 0.5
        axes.text(x, y, mark.text, size=size, color=DARK, ha="center", va="center_baseline", zorder=4)
