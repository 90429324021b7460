"""Learning rates along a training, as factors of the first one; times are in the recipe's own epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Drops:
    """Multiply by ``factor`` at each of the epochs ``at``."""

    at: tuple[float, ...]
    factor: float = 0.1

    def rate(self, epoch: float, _epochs: int) -> float:
        """The factor at a time."""
        return self.factor ** sum(epoch >= drop for drop in self.at)


@dataclass(frozen=True)
class Linear:
    """To zero along a straight line."""

    def rate(self, epoch: float, epochs: int) -> float:
        """The factor at a time."""
        return max(0.0, 1 - epoch / epochs)


@dataclass(frozen=True)
class Cosine:
    """Up along a straight line for ``warmup`` epochs, then to zero along half a cosine."""

    warmup: float = 0

    def rate(self, epoch: float, epochs: int) -> float:
        """The factor at a time."""
        if epoch < self.warmup:
            return epoch / self.warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - self.warmup) / (epochs - self.warmup))))


Schedule = Drops | Linear | Cosine


def every(epochs: int, step: int, factor: float = 0.1) -> Drops:
    """torch's ``StepLR(step, factor)`` over a training of so many epochs."""
    return Drops(tuple(range(step, epochs, step)), factor)
