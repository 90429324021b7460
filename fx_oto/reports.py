"""What the passes did, and how the training went, as tables."""

from __future__ import annotations

from dataclasses import dataclass

from tabulate import tabulate
from torch.fx import GraphModule

from fx_oto.context import Context
from fx_oto.pipeline import PassRecord
from fx_oto.trajectory import Trajectory

__all__ = ["Report", "report"]

_HEADERS = ("pass", "seconds", "nodes", "parameters", "changed")


@dataclass(frozen=True)
class Report:
    """The passes that made a GraphModule, in order, and its training; ``str()`` prints tables, a notebook shows HTML.

    Attributes:
        records: one for each pass that was run.
        training: group sparsity and loss along the steps, if a group-sparse optimizer was built for it.
    """

    records: tuple[PassRecord, ...]
    training: Trajectory | None = None

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
        parts = [tabulate(self._rows(), _HEADERS, disable_numparse=True)]
        if self.training is not None:
            parts += [self.training.summary, self.training.table()]
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        passes = str(tabulate(self._rows(), _HEADERS, tablefmt="html", disable_numparse=True))
        return (
            passes if self.training is None else f"{passes}<p>{self.training.summary}</p>{self.training.table('html')}"
        )


def _change(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} → {after:,} ({after / max(before, 1):.1%})"


def report(gm: GraphModule) -> Report:
    """The record of every pass that was run to make ``gm``, and of its training by a group-sparse optimizer.

    Raises:
        MissingResultError: ``gm`` was not made by fx_oto.

    Example:
        >>> import torch, fx_oto
        >>> gm = fx_oto.prepare(torch.nn.Linear(4, 8), torch.randn(2, 4))
        >>> [record.name for record in fx_oto.report(gm).records]
        ['dependency-analysis', 'zig-partition', 'mask-insertion']
    """
    context = Context.of(gm)
    return Report(context.records, context.results.get(Trajectory))
