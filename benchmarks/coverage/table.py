"""What was measured, as markdown."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["into_readme", "render", "summary"]

Record = dict[str, Any]
STATUSES = ("exact", "inexact", "refused", "failed", "timeout", "unavailable")
LIBRARIES = {"only_train_once HEAD": "only_train_once", "torch-pruning 1.6.1": "Torch-Pruning 1.6.1"}
PEERS = Path(__file__).with_name("peers.csv")
MARGIN = 0.05  # share of the parameters that we may leave above Torch-Pruning

HEADER = """# Coverage

Which networks fx_oto compresses exactly. Each has random weights; half of the groups of every family are set to
zero; the compact network is compared with the group-sparse eager one at two batch sizes.
`python benchmarks/coverage.py ZOO` measures, and renders this file.

- **exact**: the largest difference, relative to the largest output, is at most 1e-10 in float64, 1e-5 in float32.
  "float32 inside": the model is in float64, but computes in float32 somewhere itself.
- **refused**: an error that says why, before anything was cut. **failed**: any other error. **unavailable**: the
  network itself does not run here.
- **left**: parameters after compression. **whole**: share of the parameters that no group has a part in.
  **prepare**: CPU seconds on one thread to trace, analyse and mask.
- **Torch-Pruning**: parameters that Torch-Pruning 1.6.1 leaves at `pruning_ratio=0.5`, if its network still runs with
  outputs of the same shape. Whether these are the right numbers is not asked here.
"""


SUMMARY = ("<!-- coverage: python benchmarks/coverage.py --table -->\n", "<!-- end of coverage -->")


def into_readme(readme: Path, zoos: dict[str, dict[str, Record]]) -> None:
    """Put the counts between the marks in the project's README."""
    begin, end = SUMMARY
    before, _, rest = readme.read_text().partition(begin)
    _, _, after = rest.partition(end)
    readme.write_text(f"{before}{begin}\n{summary(zoos)}\n\n{end}{after}")


def render(zoos: dict[str, dict[str, Record]]) -> str:
    parts = [HEADER, summary(zoos)]
    for zoo, records in zoos.items():
        parts.append(f"## {zoo}\n\n{_count(records)}")
        parts.append(_with_libraries(records) if zoo == "peers" else _plain(records))
        parts.append(_failures(records))
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def summary(zoos: dict[str, dict[str, Record]]) -> str:
    """One row for each zoo: how many networks, and how each fared."""
    rows = []
    for zoo, records in zoos.items():
        counts = Counter(record.get("status") for record in records.values())
        behind, both = _comparison(records)
        compared = f"{both - len(behind)} of {both}" if both else "–"
        rows.append(
            [zoo, str(sum(counts[status] for status in STATUSES)), *(str(counts[s]) for s in STATUSES), compared]
        )
    columns = ["zoo", "networks", *STATUSES, "no more than 5 points above Torch-Pruning"]
    return _markdown(columns, rows)


def _comparison(records: dict[str, Record]) -> tuple[list[str], int]:
    """The networks of which we leave clearly more than Torch-Pruning, and of how many both leave something."""
    peers = {row["network"]: row for row in csv.DictReader(PEERS.open()) if row["library"].startswith("torch-pruning")}

    def theirs(name: str, record: Record) -> float | None:
        row = peers.get(name)
        if row is not None:
            return float(row["params_kept"]) if row["runs"] == "1" else None
        return record.get("torch_pruning", {}).get("params_left")

    both = {
        name: (record["params_left"], theirs(name, record))
        for name, record in records.items()
        if record.get("status") == "exact" and theirs(name, record) is not None
    }
    return [name for name, (ours, theirs) in both.items() if ours > theirs + MARGIN], len(both)


def _count(records: dict[str, Record]) -> str:
    counts = Counter(record.get("status") for record in records.values())
    told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    behind, _ = _comparison(records)
    more = f" More than 5 points above Torch-Pruning: {', '.join(sorted(behind))}." if behind else ""
    notes = [name for name, record in records.items() if record.get("sensitive") is False]
    blind = (
        f" The output hardly depends on the input, so that little is shown: {', '.join(sorted(notes))}."
        if notes
        else ""
    )
    return f"{told}.{more}{blind}"


def _plain(records: dict[str, Record]) -> str:
    columns = [
        "network",
        "result",
        "error",
        "precision",
        "front end",
        "ZIGs",
        "params",
        "left",
        "Torch-Pruning",
        "whole",
        "prepare",
    ]
    return _markdown(columns, ([name, *_ours(record)] for name, record in sorted(records.items())))


def _ours(record: Record) -> list[str]:
    status = record.get("status", "–")
    errors = record.get("errors")
    theirs = record.get("torch_pruning", {})
    return [
        status if status == "exact" else f"**{status}**",
        f"{max(errors):.0e}" if errors else "–",
        record.get("dtype", "–"),
        record.get("front_end", "–"),
        _number(record, "zigs", "{:,}"),
        f"{record['params'] / 1e6:.2f}M" if "params" in record else "–",
        _number(record, "params_left", "{:.1%}"),
        _number(theirs, "params_left", "{:.1%}") if "params_left" in theirs else "fails" if theirs else "–",
        _number(record, "frozen_share", "{:.1%}"),
        _number(record, "seconds", "{:.2f} s"),
    ]


def _with_libraries(records: dict[str, Record]) -> str:
    measured = {(row["network"], row["library"]): row for row in csv.DictReader(PEERS.open())}
    columns = [
        "network",
        "fx_oto",
        "left",
        *(f"{name}{what}" for name in LIBRARIES.values() for what in ("", ", left")),
    ]
    rows = []
    for name, record in sorted(records.items()):
        status, error, *_ = _ours(record)
        cells = [c for library in LIBRARIES for c in _library(measured.get((name, library)))]
        rows.append([name, f"{status}, {error}", _number(record, "params_left", "{:.1%}"), *cells])
    return _markdown(columns, rows)


def _library(row: dict[str, str] | None) -> Iterator[str]:
    """How another library fared: exact, wrong by how much, or not running; and the parameters left."""
    if row is None:
        return iter(("–", "–"))
    if row["runs"] != "1":
        return iter(("does not run" if row["pruned"] == "1" else "prunes nothing", "–"))
    error = float(row["rel_error"])
    return iter(("exact" if error <= 1e-10 else f"wrong by {error:.0e}", f"{float(row['params_kept']):.1%}"))


def _failures(records: dict[str, Record]) -> str:
    """Every network that is not exact with its reason, the most frequent status first."""
    bad = [(name, record) for name, record in sorted(records.items()) if record.get("status") not in ("exact", None)]
    if not bad:
        return ""
    order = [status for status, _ in Counter(record["status"] for _, record in bad).most_common()]
    bad.sort(key=lambda pair: order.index(pair[1]["status"]))
    rows = ([name, record["status"], f"`{_cell(record.get('reason', ''))}`"] for name, record in bad)
    return "Not exact, and why:\n\n" + _markdown(["network", "result", "reason"], rows)


def _number(record: Record, key: str, form: str) -> str:
    return form.format(record[key]) if key in record else "–"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("`", "'")[:300]


def _markdown(columns: list[str], rows: Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
