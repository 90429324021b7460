"""Size of the compact model, were a fraction of each family removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fx_oto.core.tables import MACS, Tabular, macs_text, table
from fx_oto.zigs.families import Family
from fx_oto.zigs.prices import Price

__all__ = ["FRACTIONS", "Forecast", "forecast"]

FRACTIONS = (0.25, 0.5, 0.75, 0.9)
_HEADERS = ("of every family gone", "parameters left", f"{MACS} left")


@dataclass(frozen=True, repr=False)
class Forecast(Tabular):
    """Parameters and multiply-adds of compact models, before any training.

    Attributes:
        rows: of each fraction of the ZIGs that goes: it, parameters left, multiply-adds left on the example inputs.
        params: of the full model.
        macs: of the full model.
        samples: in the batch that multiply-adds are counted for; the table gives them per sample.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> print(fx_oto.partition(fx_oto.prepare(net, torch.randn(1, 4))).forecast(0.5))
          of every family gone    parameters left    MACs/sample left
        ----------------------  -----------------  ------------------
                           50%         30 (51.7%)          24 (50.0%)
    """

    rows: tuple[tuple[float, int, int], ...]
    params: int
    macs: int
    samples: int = 1

    def __iter__(self) -> Iterator[tuple[float, int, int]]:
        return iter(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """``removal``: ``fraction``, ``params`` and ``macs`` of each."""
        return {"removal": [dict(zip(("fraction", "params", "macs"), row, strict=True)) for row in self.rows]}

    def _tables(self, style: str) -> tuple[str, ...]:
        rows = [
            (
                f"{fraction:.0%}",
                f"{params:,} ({params / max(self.params, 1):.1%})",
                f"{macs_text(macs, self.samples)} ({macs / max(self.macs, 1):.1%})",
            )
            for fraction, params, macs in self.rows
        ]
        return (table(rows, _HEADERS, style, _HEADERS),) if rows else ()


def forecast(
    families: Sequence[Family], params: Price, macs: Price, fractions: Sequence[float], samples: int = 1
) -> Forecast:
    """See ``Partition.forecast``."""
    rows = []
    for fraction in fractions if families else ():
        gone = torch.tensor([family.part(fraction) for family in families], dtype=torch.int64)
        rows.append((fraction, round(params.left(gone)), round(macs.left(gone))))
    return Forecast(tuple(rows), round(params.total), round(macs.total), samples)
