"""The report on passes and training as text, HTML, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from torch.fx import GraphModule

from fx_oto.core.context import Capture, Context
from fx_oto.core.records import PassRecord
from fx_oto.core.tables import MACS, Tabular, counted, macs_text, table
from fx_oto.framework.trajectory import Trajectory

__all__ = ["Report", "report"]

_PASSES = ("pass", "seconds", "peak memory", "nodes", "parameters", MACS, "changed")
_REFUSALS = ("pass", "kept whole or left undone, and why")
_RESIZED = ("tensor", "before", "after")
_TOLD = (
    *("name", "options", "seconds", "peak_memory", "modified", "nodes", "params", "macs"),
    *("refusals", "resized", "diff"),
)
_MOST_REFUSALS = 12  # of a pass, where the table is not foldable


@dataclass(frozen=True, repr=False)
class Report(Tabular):
    """The passes that made a GraphModule, in order, and its training.

    ``str()`` is tables, a notebook shows HTML in which each pass unfolds to its options, refusals and changes;
    ``to_markdown()`` and ``to_json()`` hold everything.

    Attributes:
        capture: how the model became a graph.
        records: one for each pass that was run.
        training: group sparsity and loss along the steps, if a group-sparse optimizer was built for it.
        samples: in the batch that multiply-adds are counted for; tables give them per sample.

    Example:
        >>> import torch, fx_oto
        >>> gm = fx_oto.prepare(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_(0.5)
        >>> sliced = fx_oto.report(fx_oto.compress(gm)).records[3]
        >>> print(sliced.name, sliced.params, sliced.macs)
        physical-slicing (58, 30) (96, 48)
        >>> sliced.resized["0.weight"]
        ((8, 4), (4, 4))
    """

    capture: Capture
    records: tuple[PassRecord, ...]
    training: Trajectory | None = None
    samples: int = 1

    def __str__(self) -> str:
        parts = [self._summary, *self._tables("simple")]
        refused = [(record.name, reason) for record in self.records for reason in _shortened(record.refusals)]
        if refused:
            parts.append(table(refused, _REFUSALS, width=140))
        if self.training is not None:
            parts.append(str(self.training))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        parts = [f"<p>{escape(self._summary)}</p>", *self._tables("html")]
        for record in self.records:
            details = "".join(_html_details(record))
            hints = [counted(len(record.refusals), "refusal", "refusals")] if record.refusals else []
            hints += [counted(len(record.resized), "changed tensor", "changed tensors")] if record.resized else []
            title = f"<b>{escape(record.name)}</b>{' – ' if hints else ''}{', '.join(hints)}"
            parts.append(f"<details><summary>{title}</summary>{details}</details>")
        if self.training is not None:
            title = f"<b>training</b> – {escape(self.training.summary)}"
            parts.append(f"<details><summary>{title}</summary>{''.join(self.training._tables('html'))}</details>")
        return "\n".join(parts)

    def to_markdown(self) -> str:
        """Everything, as GitHub's Markdown: tables, and a foldable section for each pass."""
        parts = [self._summary, *self._tables("pipe")]
        for record in self.records:
            parts += [f"<details><summary>{record.name}</summary>", *_markdown_details(record), "</details>"]
        if self.training is not None:
            parts.append(self.training.to_markdown())
        return "\n\n".join(parts) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """``capture``, ``passes`` and ``training``; seconds and bytes are numbers, pairs are before and after."""
        records = [{key: getattr(record, key) for key in _TOLD} for record in self.records]
        training = None if self.training is None else self.training.to_dict()
        return {"capture": asdict(self.capture), "passes": records, "training": training}

    @property
    def _summary(self) -> str:
        return str(self.capture)

    def _tables(self, style: str) -> tuple[str]:
        return (table(self._rows(), _PASSES, style, _PASSES[1:-1]),)

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                record.name,
                f"{record.seconds:.3f}",
                "–" if record.peak_memory is None else f"{record.peak_memory / 2**20:.1f} MiB",
                " → ".join(map(str, dict.fromkeys(record.nodes))),
                _change(*record.params, "{:,}".format),
                _change(*record.macs, lambda macs: macs_text(macs, self.samples)),
                "yes" if record.modified else "no",
            )
            for record in self.records
        ]


def _html_details(record: PassRecord) -> Iterator[str]:
    yield f"<p><code>{escape(record.options)}</code></p>"
    if record.refusals:
        yield "<ul>" + "".join(f"<li>{escape(reason)}</li>" for reason in record.refusals) + "</ul>"
    if record.resized:
        yield table(_resized(record), _RESIZED, "html", _RESIZED[1:])
    if record.diff:
        lines = "\n".join(map(_coloured, record.diff.splitlines()[2:]))
        yield f'<pre style="line-height:1.25">{lines}</pre>'


def _coloured(line: str) -> str:
    """Green and red on a tint, as everywhere; dark text on both, whatever the notebook's theme."""
    tint = {"+": "#dafbe1", "-": "#ffebe9"}.get(line[:1])
    text = escape(line)
    return text if tint is None else f'<span style="background:{tint};color:#1f2328">{text}</span>'


def _markdown_details(record: PassRecord) -> Iterator[str]:
    yield f"`{record.options}`"
    if record.refusals:
        yield "\n".join(f"- {reason}" for reason in record.refusals)
    if record.resized:
        yield table(_resized(record), _RESIZED, "pipe")
    if record.diff:
        yield f"```diff\n{record.diff}\n```"


def _resized(record: PassRecord) -> list[tuple[str, str, str]]:
    def shown(shape: tuple[int, ...] | None) -> str:
        return "–" if shape is None else " × ".join(map(str, shape)) or "one number"

    return [(name, shown(before), shown(after)) for name, (before, after) in record.resized.items()]


def _shortened(reasons: Sequence[str]) -> Sequence[str]:
    more = len(reasons) - _MOST_REFUSALS
    return reasons if more <= 0 else (*reasons[:_MOST_REFUSALS], f"and {more} more: to_markdown() lists them")


def _change(before: int | None, after: int | None, shown: Callable[[int], str]) -> str:
    numbers = ["–" if count is None else shown(count) for count in (before, after)]
    if before == after:
        return numbers[0]
    return " → ".join(numbers) + (f" ({after / before:.1%})" if before and after is not None else "")


def report(gm: GraphModule) -> Report:
    """The record of every pass that was run to make ``gm``, and of its training by a group-sparse optimizer.

    Args:
        gm: a GraphModule that ``trace``, ``prepare``, ``compress`` or a pass has made.

    Raises:
        MissingResultError: ``gm`` was not made by fx_oto.

    Example:
        >>> import torch, fx_oto
        >>> gm = fx_oto.prepare(torch.nn.Linear(4, 8), torch.randn(2, 4))
        >>> [record.name for record in fx_oto.report(gm).records]
        ['dependency-analysis', 'zig-partition', 'mask-insertion']
    """
    context = Context.of(gm)
    return Report(context.capture, context.records, context.results.get(Trajectory), context.inputs.samples)
