"""The tables of the README, from the recipes and the file of results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.paper.recipes import RECIPES, Published

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
README = HERE / "README.md"
_BEGIN, _END = "<!-- {}: python -m benchmarks.paper --table -->", "<!-- end of {} -->"


def load(path: Path) -> list[dict[str, Any]]:
    """The lines of finished runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a finished run."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def rows() -> str:
    """Every recipe and what is published."""
    headers = ("recipe", "network / data", "optimizer", "sparsity", "epochs", "MACs left", "params left", "score")
    cells = []
    for name, recipe in RECIPES.items():
        known = recipe.published
        score = _scores(known.scores) + (f" (full {_scores(known.full)})" if known.full else "")
        left = (_percent(known.macs), _percent(known.params))
        cells.append((name, recipe.title, recipe.optimizer, recipe.target, recipe.epochs, *left, score, known.source))
    return _table(cells, (*headers, "source"))


def results(lines: Iterable[Mapping[str, Any]]) -> str:
    """Every run beside the published numbers of its row."""
    headers = ("recipe", "model", "epochs", "batch", "train / test", "width", "MACs left", "published", "params left")
    headers += ("published", "score", "published", "seed", "where")
    cells = []
    for line in lines:
        row = RECIPES[line["recipe"]].published
        known = Published(row.source, row.full) if line["full"] else row
        what = (line["recipe"], "full" if line["full"] else "pruned", line["epochs"], line["batch"])
        size = (f"{line['train']:,} / {line['test']:,}", line["width"] or "published")
        left = ((line["macs"], known.macs), (line["params_folded"], known.params))
        percents = (_percent(value) for pair in left for value in pair)
        where = f"{line['device']}, {line['precision']}, {line['seconds']} s, {line['date']}"
        cells.append((*what, *size, *percents, _scores(line["scores"]), _scores(known.scores), line["seed"], where))
    return _table(cells, headers)


def write(lines: Iterable[Mapping[str, Any]], path: Path = README) -> None:
    """Put both tables into the README."""
    text = path.read_text()
    for name, content in (("rows", rows()), ("results", results(lines))):
        begin, end = _BEGIN.format(name), _END.format(name)
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"
    path.write_text(text)


def _table(cells: Iterable[tuple[object, ...]], headers: tuple[str, ...]) -> str:
    return tabulate([[str(cell) for cell in row] for row in cells], headers, tablefmt="github", disable_numparse=True)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}%"


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in scores.items()) or "–"
