"""Before and after: parameters, multiply-adds, file size and latency of two models."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fx_oto.core.context import ExampleInputs
from fx_oto.core.tables import MACS, macs_text, table, terminal_width
from fx_oto.demo.measure import Measured
from fx_oto.reports.timing import latency

__all__ = ["before_and_after", "measure"]


def measure(full: nn.Module, compact: nn.Module, inputs: ExampleInputs, timed: bool) -> tuple[Measured, Measured]:
    """Measure both, in eval mode, on the example inputs."""
    seconds: list[float | None] = [None, None]
    if timed:
        seconds = [taken.median for taken in latency([full, compact], inputs)]
    return Measured.of(full, inputs, seconds[0]), Measured.of(compact, inputs, seconds[1])


def before_and_after(full: Measured, compact: Measured) -> str:
    """The table of both."""
    rows: list[tuple[str, Callable[[Measured], str], Callable[[Measured], float | None]]] = [
        ("parameters", lambda m: f"{m.cost.params:,}", lambda m: m.cost.params),
        (MACS, lambda m: macs_text(m.cost.macs, m.cost.samples), lambda m: m.cost.macs),
        ("state_dict", lambda m: f"{m.bytes / 1024:,.0f} KiB", lambda m: m.bytes),
        ("latency", lambda m: f"{1e3 * (m.seconds or 0):,.2f} ms", lambda m: m.seconds),
    ]
    shown = [
        (name, show(full), show(compact), f"{(value(compact) or 0) / (value(full) or 1):.1%}")
        for name, show, value in rows
        if value(full) is not None
    ]
    headers = ("", "before", "after", "left")
    return table(shown, headers, numeric=headers[1:], width=terminal_width())
