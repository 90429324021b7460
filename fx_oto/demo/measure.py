"""The measures of a model: cost, size of its file, latency."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from fx_oto.reports.costs import Cost, cost

__all__ = ["Measured"]


@dataclass(frozen=True)
class Measured:
    """One model: its cost, bytes of its saved state_dict, and seconds of a forward pass, or None where not measured."""

    cost: Cost
    bytes: int
    seconds: float | None

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Any, seconds: float | None) -> Measured:
        """Measure a model, except for the time, which takes turns with others."""
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        return cls(cost(model, example_inputs), buffer.tell(), seconds)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return {**asdict(self.cost), "bytes": self.bytes, "seconds": self.seconds}
