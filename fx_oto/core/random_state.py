"""Random numbers that code draws while it is captured: the graph could only repeat them for ever."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch import Tensor

__all__ = ["Dice"]


class Dice:
    """The states of the generators of torch, of Python and of NumPy, as they are now.

    Args:
        torchs: whether torch's is one of them, from which other threads may draw, too.
    """

    def __init__(self, torchs: bool = True) -> None:
        self._torchs = torchs
        self._states = self._now()

    def _now(self) -> tuple[Tensor, Any, Any]:
        numpy: Any = sys.modules.get("numpy")
        drawn = numpy.random.get_state() if numpy else ()
        return torch.random.get_rng_state() if self._torchs else torch.empty(0), random.getstate(), drawn

    def rolled(self) -> bool:
        """Whether numbers have been drawn since."""
        mine, now = self._states, self._now()
        if (self._torchs and not torch.equal(mine[0], now[0])) or mine[1] != now[1]:
            return True
        return any(_differ(*pair) for pair in zip(mine[2], now[2], strict=True))

    def put_back(self) -> None:
        """As if none had been drawn."""
        state, python, drawn = self._states
        if self._torchs:
            torch.random.set_rng_state(state)
        random.setstate(python)
        if drawn:
            sys.modules["numpy"].random.set_state(drawn)


def _differ(one: Any, other: Any) -> bool:
    same = one == other
    return not (same if isinstance(same, bool) else same.all())
