"""The one way up: results show themselves by what is built on top of them, which is loaded when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["above"]

_HOMES = {
    "explain": "fx_oto.reports.explanation",
    "draw_couplings": "fx_oto.viz.couplings",
    "draw_training": "fx_oto.viz.charts",
    "draw_trials": "fx_oto.viz.trials",
}


def above(name: str) -> Any:
    """A function by which results of lower rooms show themselves: a class of data does not import what draws it."""
    return getattr(import_module(_HOMES[name]), name)
