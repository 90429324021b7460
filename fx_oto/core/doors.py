"""Lets a result of a lower room show itself by means of a room above, such as ``Partition.draw`` by ``viz``.

Imports run one way: ``viz`` imports ``zigs`` because it draws a ``Partition``, so ``zigs`` cannot import ``viz``. But
users look for the picture at the result: ``fx_oto.partition(gm).draw()``. So such a method asks ``above`` for the
function that does the work, by name; it is imported when the method is called. This list is all that reaches upwards.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["above"]

_HOMES = {
    "explain": "fx_oto.reports.explanation",  # Partition.explain
    "draw_couplings": "fx_oto.viz.couplings",  # Partition.draw
    "draw_training": "fx_oto.viz.charts",  # Trajectory.plot
    "draw_trials": "fx_oto.viz.trials",  # Sensitivity.plot
}


def above(name: str) -> Any:
    """Import a function of a higher room, one of the list."""
    return getattr(import_module(_HOMES[name]), name)
