"""Every model of timm with random weights: hours, for a nightly run."""

from __future__ import annotations

import timm
from zoo_timm import build

__all__ = ["build", "names"]


def names() -> list[str]:
    return sorted(timm.list_models())
