"""What goes with the last ZIG of a family: whole branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Depth"]


class Depth(Protocol):
    """Answers what is left of a model once nothing is left of some families, given by position."""

    def params(self, gone: frozenset[int]) -> Tensor:
        """The fraction of each parameter that stays, 0 or 1, beside what is cut of its axes; shape ``(params,)``."""
        ...

    def macs(self, gone: frozenset[int]) -> Tensor:
        """The fraction of each contraction that is still made, beside what is cut of its axes; ``(contractions,)``."""
        ...

    def may_go(self, wanted: Sequence[int]) -> frozenset[int]:
        """Those of some families that can go altogether, all at once: a branch goes with each, and outputs stay."""
        ...
