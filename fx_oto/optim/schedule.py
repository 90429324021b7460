"""When what happens: the pruning window and its periods."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fx_oto.core.errors import SettingsError

__all__ = ["Period", "Schedule"]


@dataclass(frozen=True)
class Period:
    """A part of the window, in which one portion of the redundant ZIGs is driven to zero.

    Attributes:
        start: first step.
        end: one past the last step, by which they are zero.
        done: fraction of the way to the target at its end.
    """

    start: int
    end: int
    done: float

    def fade(self, step: int, steps: int = 1, start: float = 0.5) -> float:
        """The product of (T − t − 1)/(T − t) over the ``steps`` steps t up to and including ``step``.

        T is the end of the period; steps in its first part, up to the fraction ``start``, count as 1.
        """
        begin = max(step - steps + 1, math.ceil(self.start + start * (self.end - self.start)))
        return min(1.0, (self.end - step - 1) / (self.end - begin)) if begin <= step else 1.0


@dataclass(frozen=True)
class Schedule:
    """The pruning window ``[start, end)``, in steps, divided into equal periods."""

    start: int
    end: int
    periods: int

    @classmethod
    def of(cls, total: int | None, start: int | None, end: int | None, periods: int, end_at: float) -> Schedule:
        """Read a user's settings.

        Args:
            total: length of the training.
            start: first step of the window; a tenth of ``total`` if None (0 if that is not known).
            end: step by which the target is reached; the fraction ``end_at`` of ``total`` if None, or later if the
                window begins late.
            periods: into how many periods the window is divided, at most one for each of its steps.
            end_at: see ``end``.

        Raises:
            SettingsError: there is no such window.
        """
        if total is None and end is None:
            raise SettingsError(
                "the optimizer must know by when to be done: pass total_steps=epochs * len(loader), or start_step and "
                "end_step"
            )
        for name, value in (("total_steps", total), ("start_step", start), ("end_step", end), ("periods", periods)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise SettingsError(f"{name} must be a whole number of steps (int), found {value!r}")
        if total is not None and total < 1:
            raise SettingsError(
                f"total_steps must be at least 1, the number of optimizer.step() calls in all; found {total}"
            )
        first = start if start is not None else (total or 0) // 10
        share = (end_at - 0.1) / 0.9  # of what is left of the training at the default start
        last = end if end is not None else first + max(int(share * ((total or 0) - first)), 1)
        if not 0 <= first < last or (total is not None and last > total):
            raise SettingsError(
                "the pruning window must satisfy 0 <= start_step < end_step <= total_steps; found "
                f"start_step={first}, end_step={last}, total_steps={total}"
            )
        if periods < 1:
            raise SettingsError(f"periods must be at least 1, found {periods}")
        return cls(first, last, min(periods, last - first))

    def settings(self) -> dict[str, str]:
        """Each by its name, as it is said to a user: ``"periods=3"``."""
        found = {"start_step": self.start, "end_step": self.end, "periods": self.periods}
        return {name: f"{name}={value}" for name, value in found.items()}

    def period(self, step: int) -> Period | None:
        """The period that a step belongs to; None outside the window."""
        if not self.start <= step < self.end:
            return None
        position = ((step - self.start + 1) * self.periods - 1) // (self.end - self.start)
        return Period(self._bound(position), self._bound(position + 1), (position + 1) / self.periods)

    def is_late(self, step: int) -> bool:
        """Whether half of the window is over at a step."""
        return 2 * step >= self.start + self.end

    def observes(self, step: int, batches: int) -> bool:
        """Whether a step is among the ``batches`` steps up to and including the first one of a period."""
        if not self.start - batches < step < self.end:
            return False
        ahead = self.period(step + batches - 1) if step + batches - 1 < self.end else self.period(self.end - 1)
        return ahead is not None and step <= ahead.start < step + batches

    def _bound(self, position: int) -> int:
        return self.start + (self.end - self.start) * position // self.periods
