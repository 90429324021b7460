"""The result of ``fx_oto.sensitivity``: a table, a figure, and limits for the optimizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fx_oto.core.doors import above
from fx_oto.core.errors import SettingsError
from fx_oto.core.picture import Picture
from fx_oto.core.tables import MACS, Tabular, finite, macs_text, table

__all__ = ["Sensitivity", "Trial"]


@dataclass(frozen=True)
class Trial:
    """One pruning that was tried, of one family alone.

    Attributes:
        position: of the family, in ``fx_oto.partition(gm).families``; −1 for the baseline.
        family: its name.
        pattern: a glob that matches the family, and no other one where there is such a pattern.
        fraction: of its ZIGs, as it was asked for.
        removed: how many of its ZIGs were zero.
        zigs: how many it has.
        params: parameters that would be left of the model.
        macs: multiply-adds that would be left, on the example inputs.
        metrics: what ``evaluate`` returned, by name.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> found = fx_oto.sensitivity(fx_oto.prepare(net, torch.randn(2, 4)), lambda gm: 1.0, fractions=0.25)
        >>> found.trials[0].to_dict()["removed"]
        2
    """

    position: int
    family: str
    pattern: str
    fraction: float
    removed: int
    zigs: int
    params: int
    macs: int
    metrics: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name; NaN and infinity, which JSON does not have, are None."""
        values = {name: finite(value) for name, value in self.metrics.items()}
        return {**vars(self), "metrics": values}


@dataclass(frozen=True)
class Sensitivity(Tabular):
    """Evaluations with part of a family removed; made by ``fx_oto.sensitivity``.

    ``str()`` prints a table, a notebook shows it as HTML, iteration yields the trials.

    Attributes:
        baseline: the model as it is.
        trials: for each family, one for each fraction, ascending.
        samples: in the batch that multiply-adds are counted for; tables give them per sample.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> print(fx_oto.sensitivity(gm, lambda gm: fx_oto.partition(gm).group_sparsity(), fractions=(0.5, 1)))
        family      zero    params left    MACs/sample left    value
        ----------  ------  -------------  ------------------  -------------
        (as it is)          58             48                  0
        0.weight    4 of 8  30 (51.7%)     24 (50.0%)          0.5 (+0.5)
                    7 of 8  9 (15.5%)      6 (12.5%)           0.875 (+0.88)
    """

    baseline: Trial
    trials: tuple[Trial, ...]
    samples: int = 1

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

    def __len__(self) -> int:
        return len(self.trials)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what was evaluated."""
        return tuple(self.baseline.metrics)

    def min_kept(
        self, metric: str | None = None, *, drop: float | None = None, rise: float | None = None
    ) -> dict[str, int]:
        """Find how many ZIGs of each family must be kept so that one metric gets worse by no more than is allowed.

        Every family is judged alone, by the largest fraction that was tried at which, and below which, the metric stays
        within bounds; several families together cost more.

        Args:
            metric: its name; may be left out where there is only one.
            drop: by how much it may fall, such as an accuracy; of ``drop`` and ``rise`` one is given.
            rise: by how much it may grow, such as a loss.

        Returns:
            Counts by pattern, as ``min_kept`` of ``DHSPG`` takes them.

        Raises:
            SettingsError: no metric has this name, or not one of ``drop`` and ``rise`` is given.

        Example:
            >>> import torch, fx_oto
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
            >>> found = fx_oto.sensitivity(gm, lambda gm: gm(torch.ones(2, 4)).sum())
            >>> found.min_kept(drop=0.0, rise=None).keys() == {"0.weight"}
            True
        """
        name = self._metric(metric)
        if (drop is None) == (rise is None):
            raise SettingsError(
                "give drop=…, by how much the metric may fall, such as an accuracy, or rise=…, by how much it may "
                f"grow, such as a loss; found {'both' if drop is not None else 'neither'}"
            )
        sign, allowed = (-1, drop) if drop is not None else (1, rise)
        kept: dict[str, int] = {}
        for trials in self._by_family():
            removed = 0
            for trial in trials:
                worse = sign * (trial.metrics[name] - self.baseline.metrics[name])
                if not worse <= (allowed or 0.0):  # also if it is NaN
                    break
                removed = trial.removed
            kept[trials[0].pattern] = max(trials[0].zigs - removed, kept.get(trials[0].pattern, 1))
        return kept

    def plot(self, metric: str | None = None) -> Picture:
        """A picture: lines for a few families, a heat map of families and fractions for many.

        Args:
            metric: which; None: all, side by side.

        Raises:
            SettingsError: no metric has this name.
            MissingPackageError: matplotlib is not installed.
        """
        names = self.metrics if metric is None else (self._metric(metric),)
        picture: Picture = above("draw_trials")(self.baseline, self._by_family(), names)
        return picture

    def to_dict(self) -> dict[str, Any]:
        """``baseline`` and ``trials``, whose keys are the attributes of ``Trial``."""
        return {"baseline": self.baseline.to_dict(), "trials": [trial.to_dict() for trial in self.trials]}

    def _metric(self, name: str | None) -> str:
        if name is None and len(self.metrics) == 1:
            return self.metrics[0]
        if name not in self.metrics:
            found = "none" if name is None else repr(name)
            raise SettingsError(f"metric must be one of {', '.join(map(repr, self.metrics))}; found {found}")
        return name

    def _by_family(self) -> list[list[Trial]]:
        families: dict[int, list[Trial]] = {}
        for trial in self.trials:
            families.setdefault(trial.position, []).append(trial)
        return list(families.values())

    def _tables(self, style: str) -> tuple[str]:
        headers = ("family", "zero", "params left", f"{MACS} left", *self.metrics)
        base = self.baseline
        full = (f"{base.params:,}", macs_text(base.macs, self.samples))
        rows = [("(as it is)", "", *full, *map(_shown, base.metrics.values()))]
        for trials in self._by_family():
            for trial in trials:
                changes = (self._change(trial, name) for name in self.metrics)
                zero = f"{trial.removed} of {trial.zigs}"
                params = f"{trial.params:,} ({trial.params / max(base.params, 1):.1%})"
                macs = f"{macs_text(trial.macs, self.samples)} ({trial.macs / max(base.macs, 1):.1%})"
                rows.append((trial.family if trial is trials[0] else "", zero, params, macs, *changes))
        return (table(rows, headers, style, headers[1:] if style == "html" else ()),)

    def _change(self, trial: Trial, name: str) -> str:
        value = trial.metrics[name]
        return f"{_shown(value)} ({value - self.baseline.metrics[name]:+.2g})"


def _shown(value: float) -> str:
    return f"{value:.4g}"
