"""A network of which parts were pruned and written back, against the user's own: losses and gradients in training, too.

What it returns has no size of its own, such as the boxes that are found; what it draws, such as the boxes that its
losses are of, is drawn alike by both.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from compare import EXAMPLE, OTHER, SENSITIVE, UnlikeError
from explaining import explained
from networks import Built, Call
from running import run
from support.detectors import differences
from support.exactness import TOLERANCE
from torch import nn
from torch.fx import GraphModule

from fx_oto.core.differences import relative_error

__all__ = ["compared_in_parts"]

Record = dict[str, Any]
Errors = dict[str, float]


def compared_in_parts(built: Built, small: GraphModule, whole: nn.Module, dtype: str) -> Record:
    """Errors by trial, and the status: the first of the trials that fails decides it.

    Args:
        built: the user's model, and calls of it.
        small: the compact graph of the parts.
        whole: the model in which that was written back.
        dtype: of the model.
    """
    calls = {"example": built.inputs(EXAMPLE, 0), "batch": built.inputs(OTHER, 0)}
    calls |= {kind: alternatives[0](EXAMPLE, 0) for kind, alternatives in built.others.items()}
    expected, other = (run(built.model, call) for call in (calls["example"], built.inputs(EXAMPLE, 1)))
    record: Record = {"errors": {}, "sensitive": relative_error(expected, other) > SENSITIVE}
    try:
        for training in (False, True):
            for kind, call in calls.items():
                trial = f"training, {kind}" if training else kind
                found = _differences(built.model, small, whole, call, trial)
                record["errors"][trial] = float(f"{max(found.values()):.1e}")
                _check(found, trial, TOLERANCE[getattr(torch, dtype)])
    except UnlikeError as unlike:
        return record | dict(zip(("status", "reason"), unlike.args, strict=True))
    sizes = dict.fromkeys(built.others, "any")
    return record | {"status": "exact", "batch": "any", "sizes": sizes, "training": "exact"}


def _differences(model: nn.Module, small: GraphModule, whole: nn.Module, call: Call, trial: str) -> Errors:
    """By the name of what was compared: what it returns, and in training gradients and buffers.

    Raises:
        UnlikeError: one of the two does not run, or finds nothing.
    """
    try:
        found, numbers = differences(model, small, whole, call, trial.startswith("training"))
    except Exception as error:
        raise UnlikeError("failed", f"{trial}: {explained(error)}") from error
    if not numbers:
        raise UnlikeError("failed", f"{trial}: the model finds nothing, so that nothing is compared")
    return {name: math.inf if math.isnan(error) else error for name, error in found.items()}


def _check(found: Errors, trial: str, tolerance: float) -> None:
    worst = max(found, key=lambda name: found[name])
    if found[worst] > tolerance:
        raise UnlikeError("inexact", f"{trial}: {worst} differs by {found[worst]:.1e}")
