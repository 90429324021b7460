"""What was measured, as markdown."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["into_readme", "render", "summary"]

Record = dict[str, Any]
STATUSES = ("exact", "inexact", "refused", "failed", "timeout", "unavailable")
LIBRARIES = {"only_train_once HEAD": "only_train_once", "torch-pruning 1.6.1": "Torch-Pruning 1.6.1"}
PEERS = Path(__file__).with_name("peers.csv")
NONE = "–"
MARGIN = 0.05  # share of the parameters that we may leave above Torch-Pruning

HEADER = """# Coverage

Which networks fx_oto compresses exactly. Each has random weights; half of the groups of every family are set to
zero; the compact network is compared with the user's group-sparse eager model on the example inputs, at another batch
size and, where the model takes them, at other lengths and image sizes, in evaluation and in training mode (with dropout
off). `python benchmarks/coverage.py ZOO` measures, and renders this file.

- **exact**: in all of these the largest difference, relative to the largest output, is at most 1e-10 in float64, 1e-5
  in float32. "float32 inside": the model is in float64, but computes in float32 somewhere itself.
- **front end**: "modules": the model's `nn.Linear`, `nn.Embedding`, `nn.LayerNorm` and convolutions are modules of the
  compact network too; "GraphModule": some became operations (how many are modules still); "partly opaque": a part is
  called as a whole; "parts": of a detector, `prepare(…, parts=…)` took the networks inside, and the user's own class
  with its smaller parts is compared: boxes, scores, labels, masks and keypoints, and in training mode losses, their
  gradients and buffers, with the same boxes drawn.
- **batch**, **size**: "any" if the capture leaves them open and the compact network is exact there, else what fixes
  them (of "parts": "any" if the model is exact there); "–": the model itself takes no other. **training**: "exact";
  "random": the model draws numbers that are no dropout; "evaluation only": the graph stays in evaluation mode, as is
  announced; "–": the model does not run in training mode on these inputs.
- **refused**: an error that says why, before anything was cut. **failed**: any other error. **unavailable**: the
  network itself does not run here.
- **left**: parameters after compression. **whole**: share of the parameters that no group has a part in.
  **prepare**: CPU seconds on one thread to trace, analyse and mask.
- **written back**: "yes": the compact network as the user's own class, modules and code; else how many modules became
  graphs, as their code spells out sizes, and how many norms, as their statistics count channels that are gone.
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
    for zoo, records in _merged(zoos).items():
        parts.append(f"## {zoo}\n\n{_count(records)}")
        parts.append(_with_libraries(records) if zoo == "peers" else _plain(records))
        parts.append(_failures(records))
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _merged(zoos: dict[str, dict[str, Record]]) -> dict[str, dict[str, Record]]:
    """One zoo with several versions of its library is one table, in which each network has a row for each version."""
    together: dict[str, dict[str, dict[str, Record]]] = {}
    for zoo, records in zoos.items():
        together.setdefault(zoo.removesuffix("-5"), {})[_titled(zoo, records)] = records
    merged = {}
    for zoo, versions in together.items():
        several = len(versions) > 1
        merged[zoo] = {
            f"{name} ({title.split()[-1]})" if several else name: record
            for title, records in versions.items()
            for name, record in records.items()
        }
    return merged


def summary(zoos: dict[str, dict[str, Record]]) -> str:
    """One row for each zoo: how many networks, how each fared, and how many of the exact ones are open."""
    rows = []
    for zoo, records in zoos.items():
        counts = Counter(record.get("status") for record in records.values())
        behind, both = _comparison(records)
        rows.append(
            [
                _titled(zoo, records),
                str(sum(counts[status] for status in STATUSES)),
                *(str(counts[status]) for status in STATUSES),
                *(_share(records, *question) for question in QUESTIONS.values()),
                f"{both - len(behind)} of {both}" if both else NONE,
            ]
        )
    return _markdown(["zoo", "networks", *STATUSES, *QUESTIONS, "no more than 5 points above Torch-Pruning"], rows)


def _share(records: dict[str, Record], answer: Callable[[Record], str], wanted: str) -> str:
    """Of the exact networks that have an answer, how many have the one that is wanted."""
    answers = [answer(record) for record in records.values() if record.get("status") == "exact"]
    known = [one for one in answers if one not in (NONE, "random")]
    return f"{known.count(wanted)} of {len(known)}" if known else NONE


def _front_end(record: Record) -> str:
    """With how many of the layers are modules still, where not all are."""
    if "modules" not in record:
        return NONE
    kind = str(record["front_end"])
    return f"{kind} ({record['modules']})" if kind == "GraphModule" else kind


def _layers(record: Record) -> str:
    """The front end, where all layers are modules still: so they are of a model that is of its own class."""
    return "modules" if record.get("front_end") == "parts" else _front_end(record)


def _batch(record: Record) -> str:
    return str(record.get("batch", NONE))


def _size(record: Record) -> str:
    """Of all kinds of sizes that the model takes others of: "any" if each is, else each that is fixed."""
    fixed = [f"{kind} {size}" for kind, size in record.get("sizes", {}).items() if size != "any"]
    return "; ".join(fixed) if fixed else "any" if record.get("sizes") else NONE


def _training(record: Record) -> str:
    return str(record.get("training", NONE))


def _written_back(record: Record) -> str:
    """Whether a network was written back, and how many of its modules, and norms, became graphs."""
    found = record.get("written_back")
    if not found or "refused" in found:
        return NONE
    if "graphs" not in found:
        return "**no**"
    if found["whole"]:
        return "as one graph"
    parts = [f"{found[key]} {key}" for key in ("graphs", "norms") if found[key]]
    return ", ".join(parts) if parts else "yes"


def _is_written_back(record: Record) -> str:
    cell = _written_back(record)
    return cell if cell in (NONE, "**no**", "as one graph") else "yes"


QUESTIONS = {
    "modules": (_layers, "modules"),
    "batch: any": (_batch, "any"),
    "size: any": (_size, "any"),
    "training: exact": (_training, "exact"),
    "written back": (_is_written_back, "yes"),
}


def _titled(zoo: str, records: dict[str, Record]) -> str:
    """With the versions of the library that they were measured with."""
    versions = sorted({record["library"].split()[-1] for record in records.values() if "library" in record})
    return f"{zoo.partition('-')[0]} {', '.join(versions)}" if versions else zoo


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
    taps = [name for name, record in records.items() if record.get("kernel_taps")]
    sliding = f" **Taps of a kernel are in a family**: {', '.join(sorted(taps))}." if taps else ""
    return f"{told}.{more}{blind}{sliding}"


def _plain(records: dict[str, Record]) -> str:
    columns = [
        "network",
        "result",
        "error",
        "precision",
        "front end",
        "batch",
        "size",
        "training",
        "ZIGs",
        "params",
        "left",
        "Torch-Pruning",
        "whole",
        "prepare",
        "written back",
    ]
    return _markdown(columns, ([name, *_ours(record)] for name, record in sorted(records.items())))


def _ours(record: Record) -> list[str]:
    status = record.get("status", NONE)
    errors = _errors(record)
    theirs = record.get("torch_pruning", {})
    return [
        status if status == "exact" else f"**{status}**",
        f"{max(errors):.0e}" if errors else NONE,
        record.get("dtype", NONE),
        *_openness(record),
        _number(record, "zigs", "{:,}"),
        f"{record['params'] / 1e6:.2f}M" if "params" in record else NONE,
        _number(record, "params_left", "{:.1%}"),
        _number(theirs, "params_left", "{:.1%}") if "params_left" in theirs else "fails" if theirs else NONE,
        _number(record, "frozen_share", "{:.1%}"),
        _number(record, "seconds", "{:.2f} s"),
        _written_back(record),
    ]


def _errors(record: Record) -> list[float]:
    errors = record.get("errors", {})
    return list(errors.values() if isinstance(errors, dict) else errors)


def _openness(record: Record) -> list[str]:
    return [_cell(answer(record)) for answer in (_front_end, _batch, _size, _training)]


def _with_libraries(records: dict[str, Record]) -> str:
    measured = {(row["network"], row["library"]): row for row in csv.DictReader(PEERS.open())}
    columns = [
        "network",
        "fx_oto",
        "left",
        "front end",
        "batch",
        "size",
        "training",
        *(f"{name}{what}" for name in LIBRARIES.values() for what in ("", ", left")),
    ]
    rows = []
    for name, record in sorted(records.items()):
        status, error, *_ = _ours(record)
        cells = [c for library in LIBRARIES for c in _library(measured.get((name, library)))]
        rows.append([name, f"{status}, {error}", _number(record, "params_left", "{:.1%}"), *_openness(record), *cells])
    return _markdown(columns, rows)


def _library(row: dict[str, str] | None) -> Iterator[str]:
    """How another library fared: exact, wrong by how much, or not running; and the parameters left."""
    if row is None:
        return iter((NONE, NONE))
    if row["runs"] != "1":
        return iter(("does not run" if row["pruned"] == "1" else "prunes nothing", NONE))
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
    return form.format(record[key]) if key in record else NONE


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("`", "'")[:300]


def _markdown(columns: list[str], rows: Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
