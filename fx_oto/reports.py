"""What the passes did, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from tabulate import tabulate
from torch.fx import GraphModule

from fx_oto.context import Context
from fx_oto.pipeline import PassRecord

__all__ = ["Report", "report"]

_HEADERS = ("pass", "seconds", "nodes", "parameters", "changed")


@dataclass(frozen=True)
class Report:
    """The passes that made a GraphModule, in order; ``str()`` prints a table, a notebook shows it as HTML."""

    records: tuple[PassRecord, ...]

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        return [
            (
                record.name,
                f"{record.seconds:.3f}",
                _change(*record.nodes),
                _change(*record.params),
                "yes" if record.modified else "no",
            )
            for record in self.records
        ]

    def __str__(self) -> str:
        return tabulate(self._rows(), _HEADERS, disable_numparse=True)

    def _repr_html_(self) -> str:
        return str(tabulate(self._rows(), _HEADERS, tablefmt="html", disable_numparse=True))


def _change(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} → {after:,} ({after / max(before, 1):.1%})"


def report(gm: GraphModule) -> Report:
    """The record of every pass that was run to make ``gm``.

    Raises:
        MissingResultError: ``gm`` was not made by fx_oto.

    Example:
        >>> import torch, fx_oto
        >>> gm = fx_oto.prepare(torch.nn.Linear(4, 8), torch.randn(2, 4))
        >>> [record.name for record in fx_oto.report(gm).records]
        ['dependency-analysis', 'zig-partition', 'mask-insertion']
    """
    return Report(Context.of(gm).records)
