"""Bars and curves: widths before and after, a training, accuracy against cost."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from fx_oto.core.errors import SettingsError
from fx_oto.core.picture import Picture, drawing, new_figure
from fx_oto.viz.layout import columns
from fx_oto.viz.style import DARK, FROZEN, LINES, MUTED, clipped, in_legend, name_rows, printable, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Bar", "Points", "draw_bars", "draw_training", "plot_tradeoff"]

_BAR, _NAMES, _LENGTHS = 0.19, 2.4, 2.2  # inches: height of a row, widest name, longest bar
_HEADING, _LABEL = 11.0, 2.2  # inches: widest title, widest label of an axis
_SIZE = 7.0

Points: TypeAlias = Iterable[tuple[float | Sequence[float], float | Sequence[float]]]


@dataclass(frozen=True)
class Bar:
    """One line of a bar plot: a name, the two lengths, the colour of the second."""

    name: str
    before: int
    after: int
    colour: str


def draw_bars(bars: Sequence[Bar], title: str, subtitle: str, unit: str) -> Picture:
    """Pairs of bars, one line each, wrapped into columns that share a scale."""
    with drawing():
        title = clipped(title, 10, _HEADING, "bold")
        shown = [clipped(bar.name, _SIZE, _NAMES) for bar in bars]
        names = max(text_width(name, _SIZE) for name in shown) + 0.1
        values = max(text_width(_change(bar), _SIZE) for bar in bars) + 0.1
        column = names + _LENGTHS + values + 0.2
        parts = columns(len(bars), _BAR, column)
        rows = max(map(len, parts))
        heading = max(text_width(title, 10, "bold"), text_width(subtitle, _SIZE))
        width, height = max(len(parts) * column, heading) + 0.4, rows * _BAR + 1.2
        figure = new_figure(width, height)
        _headings(figure, title, subtitle)
        most = max(bar.before for bar in bars)
        for number, part in enumerate(parts):
            left = 0.2 + number * column + names
            box = (left / width, 0.45 / height, (_LENGTHS + values) / width, rows * _BAR / height)
            axes = figure.add_axes(box)
            axes.set(xlim=(0, most * (1 + values / _LENGTHS)), ylim=(rows - 0.5, -0.5))
            axes.set_xlabel(unit, size=_SIZE, loc="left")
            axes.set_xticks(_ticks(most))
            _bars(axes, [bars[i] for i in part], [shown[i] for i in part])
        return Picture(figure)


def _headings(figure: Figure, title: str, subtitle: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.2 / width, 1 - 0.25 / height, title, size=10, weight="bold", color=DARK, va="center")
    figure.text(0.2 / width, 1 - 0.45 / height, subtitle, size=_SIZE, color=MUTED, va="center")


def _ticks(most: int) -> list[float]:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - an extra

    return [
        tick for tick in MaxNLocator(4, steps=[1, 2, 5, 10], integer=True).tick_values(0, most) if 0 <= tick <= most
    ]


def _change(bar: Bar) -> str:
    if bar.after == bar.before:
        return f"{bar.before:,}"
    return f"{bar.before:,} → {bar.after:,} ({bar.after / bar.before:.0%})"


def _bars(axes: Axes, bars: Sequence[Bar], names: Sequence[str]) -> None:
    rows = range(len(bars))
    axes.barh(rows, [bar.before for bar in bars], height=0.72, color=FROZEN, label="before")
    axes.barh(rows, [bar.after for bar in bars], height=0.72, color=[bar.colour for bar in bars], label="after")
    for row, bar in enumerate(bars):
        place: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "va": "center_baseline"}
        axes.annotate(_change(bar), (bar.before, row), size=_SIZE, color=MUTED, **place)
    name_rows(axes, names, _SIZE)
    axes.tick_params(axis="x", labelsize=_SIZE)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)


def draw_training(rows: Sequence[tuple[int, float, float | None]], title: str) -> Picture:
    """Loss above group sparsity, along the steps; the sparsity alone where no loss is known."""
    if not rows:
        raise SettingsError("nothing to plot: the optimizer has taken no step yet")
    with drawing():
        losses = [(step, loss) for step, _, loss in rows if loss is not None]
        figure = new_figure(6.4, 4.2 if losses else 2.6, layout="constrained")
        panels = figure.subplots(2 if losses else 1, 1, sharex=True, squeeze=False)[:, 0]
        if losses:
            steps, values = zip(*losses, strict=True)
            panels[0].plot(steps, values, color=LINES[1], lw=0.8, alpha=0.35, label="each point")
            panels[0].plot(steps, _smoothed(values), color=LINES[1], lw=1.8, label="mean of its neighbours")
            panels[0].set_ylabel("loss")
            panels[0].legend(fontsize=_SIZE)
        steps, sparsity, _ = zip(*rows, strict=True)
        panels[-1].plot(steps, sparsity, color=LINES[0], lw=1.8)
        panels[-1].fill_between(steps, sparsity, color=LINES[0], alpha=0.12, lw=0)
        panels[-1].set(ylabel="group sparsity", xlabel="step", ylim=(0, 1.02))
        figure.suptitle("\n".join(textwrap.fill(part, 76) for part in printable(title).split("; ")), size=9)
        return Picture(figure)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Means over about a twentieth of all points around each."""
    reach = len(values) // 40
    return [statistics.fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def plot_tradeoff(
    series: Mapping[str, Points] | Mapping[str, Mapping[str, Points]],
    *,
    baseline: float | Mapping[str, float] | None = None,
    xlabel: str = "MACs left (%)",
    ylabel: str = "accuracy (%)",
) -> Picture:
    """Accuracy against MACs, or any quality against any cost: a line through the means of each series.

    Args:
        series: for each name, its points: pairs of a cost and a quality, in the units of the labels. Either may be a
            list with a number for each repetition, such as a seed: these are drawn as dots, with their standard
            deviation as a bar. For several panels, a mapping from their titles to such mappings.
        baseline: the quality without compression, a dashed line; with several panels, one for each title.
        xlabel: of the cost.
        ylabel: of the quality.

    Raises:
        SettingsError: there is no point.
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> import fx_oto
        >>> points = [(35.2, [91.2, 91.4]), (16.1, [90.1, 90.7])]
        >>> picture = fx_oto.plot_tradeoff({"DHSPG": points, "HESSO": [(35.2, 91.0)]}, baseline=91.2)
        >>> [round(float(y), 2) for y in picture.figure.axes[0].lines[1].get_ydata()]
        [90.4, 91.3]
    """
    nested = all(isinstance(value, Mapping) for value in series.values())
    panels: Mapping[str, Any] = series if nested else {"": series}
    found = {
        title: {name: sorted(map(_repeated, points)) for name, points in lines.items()}
        for title, lines in panels.items()
    }
    if not any(points for lines in found.values() for points in lines.values()):
        raise SettingsError("nothing to plot: expected a mapping from names to points (cost, quality), found no point")
    names = list(dict.fromkeys(name for lines in found.values() for name in lines))
    colours = {name: LINES[i % len(LINES)] for i, name in enumerate(names)}
    most = max(max(xs) for lines in found.values() for points in lines.values() for xs, _ in points)
    with drawing():
        figure = new_figure(max(3.1 * len(found), 5.5), 3.6, layout="constrained")
        every = figure.subplots(1, len(found), squeeze=False)[0]
        for axes, (title, lines) in zip(every, found.items(), strict=True):
            level = baseline.get(title) if isinstance(baseline, Mapping) else baseline
            if level is not None:
                axes.axhline(level, color=DARK, lw=1, ls="--", label="without compression")
            for name, points in lines.items():
                _series(axes, in_legend(name), points, colours[name])
            axes.set_title(clipped(title, 10, _LABEL))
            axes.set(xlabel=clipped(xlabel, 9, _LABEL), xlim=(0, 1.08 * most))
        every[0].set_ylabel(clipped(ylabel, 9, _LABEL))
        _shared_legend(figure)
        return Picture(figure)


def _shared_legend(figure: Figure) -> None:
    """Below all panels, every label once, in as many columns as there is room for."""
    found = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    shown = {label: handle for handle, label in found}
    columns = int(figure.get_size_inches()[0] / (max(text_width(label, 8) for label in shown) + 0.55))
    figure.legend(
        list(shown.values()),
        list(shown),
        loc="outside lower center",
        ncols=max(1, min(len(shown), columns)),
        fontsize=8,
    )


def _repeated(point: tuple[Any, Any]) -> tuple[list[float], list[float]]:
    """Costs and qualities, as many of one as of the other."""
    xs, ys = ([float(v)] if isinstance(v, int | float) else [float(one) for one in v] for v in point)
    longer = max(len(xs), len(ys))
    if any(len(values) not in (1, longer) for values in (xs, ys)):
        raise SettingsError(
            f"a point has {len(xs)} costs and {len(ys)} qualities: expected one number, or as many of both"
        )
    return [values * longer if len(values) == 1 else values for values in (xs, ys)]  # type: ignore[return-value]


def _series(axes: Axes, label: str, points: Sequence[tuple[list[float], list[float]]], colour: str) -> None:
    means = sorted((statistics.fmean(xs), statistics.fmean(ys), _spread(ys)) for xs, ys in points)
    if not means:
        return
    if any(len(ys) > 1 for _, ys in points):
        dots = [(x, y) for xs, ys in points for x, y in zip(xs, ys, strict=True)]
        x, y = zip(*dots, strict=True)
        axes.scatter(x, y, s=10, alpha=0.4, lw=0, color=colour)
    x, y, spread = zip(*means, strict=True)
    axes.errorbar(
        x, y, yerr=spread if any(spread) else None, color=colour, marker="o", ms=4, lw=1.6, capsize=2, label=label
    )


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
