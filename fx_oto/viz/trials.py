"""A sensitivity: lines for a few families, a heat map for many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fx_oto.core.picture import Picture, drawing, new_figure
from fx_oto.reports.sensitivity import Trial
from fx_oto.viz.style import MUTED, clipped, darker, family_colour, in_legend, name_rows, text_width

__all__ = ["draw_trials"]

_MOST_LINES = 8
_NAME = 2.4  # inches


def draw_trials(baseline: Trial, families: Sequence[Sequence[Trial]], metrics: Sequence[str]) -> Picture:
    """Draw some metrics side by side.

    Args:
        baseline: the model as it is.
        families: the trials of each family.
        metrics: names of metrics.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    many = len(families) > _MOST_LINES
    cells = len({trial.fraction for trials in families for trial in trials})
    with drawing():
        titles = max(text_width(_title(baseline, metric), 10) for metric in metrics) + 0.2
        size = (max(2.2, titles, 0.75 * cells), 1.3 + 0.23 * len(families)) if many else (3.8, 3.4)
        shown = [clipped(trials[0].family, 8, _NAME) for trials in families]
        names = max((text_width(name, 8) for name in shown), default=0.0) + 0.6
        figure = new_figure(size[0] * len(metrics) + names, size[1], layout="constrained")
        axes = figure.subplots(1, len(metrics), squeeze=False, sharey=many)[0]
        for place, metric in zip(axes, metrics, strict=True):
            (_heat_map if many else _lines)(place, baseline, families, metric)
        if many:
            name_rows(axes[0], shown, 8)
            figure.supxlabel("ZIGs of one family removed; the darker, the more it changes", fontsize=9)
        else:
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
        return Picture(figure)


def _title(baseline: Trial, metric: str) -> str:
    return f"{clipped(metric, 10, _NAME)}, as it is: {baseline.metrics[metric]:.4g}"


def _lines(place: Any, baseline: Trial, families: Sequence[Sequence[Trial]], metric: str) -> None:
    start = baseline.metrics[metric]
    place.axhline(start, color=MUTED, linestyle="--", linewidth=1, label="as it is")
    for trials in families:
        colour = darker(family_colour(trials[0].position))
        removed = [0.0, *(trial.removed / trial.zigs for trial in trials)]
        values = [start, *(trial.metrics[metric] for trial in trials)]
        place.plot(removed, values, marker="o", markersize=4, color=colour, label=in_legend(trials[0].family, _NAME))
    place.set_title(clipped(metric, 10, _NAME), fontsize=10)
    place.set_xlabel("ZIGs of the family removed", fontsize=9)
    place.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _heat_map(place: Any, baseline: Trial, families: Sequence[Sequence[Trial]], metric: str) -> None:
    """The darker, the more it changes; what it changes to is written in."""
    from matplotlib.colors import PowerNorm  # noqa: PLC0415 - an extra

    start = baseline.metrics[metric]
    fractions = sorted({trial.fraction for trials in families for trial in trials})
    changes = [[abs(trial.metrics[metric] - start) for trial in trials] for trials in families]
    most = max((change for row in changes for change in row if math.isfinite(change)), default=0.0) or 1.0
    place.imshow(changes, cmap="YlOrRd", norm=PowerNorm(0.5, 0, most), aspect="auto")
    for y, trials in enumerate(families):
        for x, trial in enumerate(trials):
            dark = not changes[y][x] < 0.45 * most
            text = f"{trial.metrics[metric]:.3g}"
            place.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    place.set_xticks(range(len(fractions)), [f"{fraction:.0%}" for fraction in fractions], fontsize=8)
    place.set_title(_title(baseline, metric), fontsize=10)
    place.tick_params(length=0)
    place.grid(visible=False)
    place.spines[:].set_visible(False)
