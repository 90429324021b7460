"""What both examples share: what is measured of each model, the table of it, and the file that keeps it."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fx_oto.core.tables import macs_text, table
from fx_oto.demo.measure import Measured
from fx_oto.reports.timing import in_turns

HERE = Path(__file__).parent


def options(doc: str | None, targets: Sequence[float], steps: int) -> argparse.Namespace:
    """The command line of an example; ``output`` is a folder for the compact models."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=float, nargs="+", default=targets, help="fractions of the MACs to keep")
    parser.add_argument("--steps", type=int, default=steps, help="of each training (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="an existing folder for the compact models")
    return parser.parse_args()


def measured(
    models: Mapping[str, nn.Module], one: Any, batch: Sequence[Any], quality: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """The quality, cost of one sample, bytes of the weights, and median seconds of a batch, the models taking turns.

    Seconds are CPU time of one thread, so that other work on the machine counts little.
    """
    torch.set_num_threads(1)
    with torch.no_grad():
        taken = in_turns([partial(model.eval(), *batch) for model in models.values()], 15, 3, time.process_time)
    return {
        name: {**quality[name], **Measured.of(model, one, statistics.median(seconds)).to_dict()}
        for (name, model), seconds in zip(models.items(), taken, strict=True)
    }


def shown(found: Mapping[str, Mapping[str, Any]], sample: str, batch: str) -> str:
    """A column for each model; fractions are of the first one."""
    columns = list(found.values())
    full = columns[0]
    measures = [name for name in full if name not in ("params", "macs", "samples", "bytes", "seconds")]
    rows = [(name, *(f"{column[name]:.1%}" for column in columns)) for name in measures]
    rows += [
        ("parameters", *(f"{c['params'] / 1e6:.2f}M ({c['params'] / full['params']:.0%})" for c in columns)),
        (f"MACs of {sample}", *(f"{macs_text(c['macs'])} ({c['macs'] / full['macs']:.0%})" for c in columns)),
        ("file", *(f"{c['bytes'] / 2**20:.1f} MiB" for c in columns)),
        (
            f"latency, {batch}",
            *(f"{1e3 * c['seconds']:.0f} ms ({c['seconds'] / full['seconds']:.0%})" for c in columns),
        ),
    ]
    return table(rows, ("", *found), "github")


def keep(name: str, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write what was measured to ``NAME.json`` beside this file."""
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "date": time.strftime("%F"), **settings}
    (HERE / f"{name}.json").write_text(json.dumps({"about": about, "models": found}, indent=1) + "\n")
