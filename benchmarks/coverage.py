"""Which networks are compressed exactly: half of every family of groups zero, compact against eager model.

    pip install -e '.[bench]' timm transformers torch-pruning==1.6.1; pip install --no-deps torchvision
    python benchmarks/coverage.py torchvision            # or another zoo, see --help; then names
    python benchmarks/coverage.py timm --missing         # only what was not measured yet
    python benchmarks/coverage.py timm --again           # only what was not exact, or left much
    python benchmarks/coverage.py timm --peer            # what Torch-Pruning leaves of the same networks
    python benchmarks/coverage.py timm --write-back      # whether they can be written back into their own classes
    hf5/bin/python benchmarks/coverage.py transformers-5 # in an environment with transformers 5
    python benchmarks/coverage.py --table                # only render coverage/README.md, and its summary in the README

Each network has random weights, in float64 where it can, and is measured in a process of its own. Results are kept in
``coverage/<zoo>.json`` as they come; names replace what was measured before, so a run can be stopped and continued.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "coverage"
sys.path[0] = str(HERE)  # this script's own folder would hide the package of its name
sys.path[1:1] = [str(HERE.parents[1] / "tests"), str(HERE.parents[1])]

import torch
from apart import Limits, run_apart
from networks import ZOOS, load
from table import into_readme, render

BESIDE = ("torch_pruning", "written_back")  # measured apart
MUCH = 0.45  # share of the parameters left
Records = dict[str, dict[str, Any]]


def kept(zoo: str) -> Records:
    path = HERE / f"{zoo}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def keep(zoo: str, records: Records) -> None:
    """One network a line, sorted: a change of one is a change of one line."""
    lines = (f"{json.dumps(name)}: {json.dumps(records[name], sort_keys=True)}" for name in sorted(records))
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    beside = HERE / f"{zoo}.json.new"
    beside.write_text(text)
    beside.replace(HERE / f"{zoo}.json")


def worth_another_look(record: dict[str, Any]) -> bool:
    """Whether a network was measured, and is not exact or keeps much."""
    return bool(record) and (record.get("status") != "exact" or record.get("params_left", 1.0) > MUCH)


def chosen(zoo: str, patterns: list[str], records: Records, field: str | None) -> list[str]:
    """Names that match a pattern, or all; with ``field``, only those whose record lacks it."""
    names = [name for name in load(zoo).names() if not patterns or any(fnmatchcase(name, p) for p in patterns)]
    return [name for name in names if field is None or field not in records.get(name, {})]


def installed(zoo: str) -> dict[str, str]:
    """The library of a zoo with the version that is measured, if it is of one."""
    name = zoo.partition("-")[0]
    return {} if name in ("peers", "packages") else {"library": f"{name} {version(name)}"}


def run(zoo: str, arguments: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    source, records = load(zoo), kept(zoo)
    torch.set_num_threads(1)
    beside = "torch_pruning" if arguments.peer else "written_back" if arguments.write_back else None
    tool = import_module("peer" if arguments.peer else "writing" if arguments.write_back else "measure")
    if not arguments.peer:
        tool.warm_up()
    missing = (beside or "status") if arguments.missing else None
    names = chosen(zoo, arguments.names, records, missing)
    if arguments.again:
        names = [name for name in names if worth_another_look(records.get(name, {}))]
    limits = Limits(arguments.timeout, arguments.memory, arguments.jobs)
    library = installed(zoo)
    for name, result in run_apart(names, lambda name, note: tool.measure(lambda: source.build(name), note), limits):
        records = kept(zoo)  # another run may have written meanwhile
        before = records.get(name, {})
        if beside is not None:
            records[name] = before | {beside: result}
        else:
            records[name] = result | library | {key: before[key] for key in BESIDE if key in before}
        keep(zoo, records)
        print(f"{name:40s} {json.dumps(result)[:400]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", nargs="?", choices=sorted(ZOOS))
    parser.add_argument("names", nargs="*", help="names or glob patterns; all of the zoo if none")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for each network")
    parser.add_argument("--memory", type=float, default=12, help="GiB for each network")
    parser.add_argument("--missing", action="store_true", help="only what has no result yet")
    parser.add_argument("--again", action="store_true", help="only what was not exact, or kept much")
    parser.add_argument("--peer", action="store_true", help="measure Torch-Pruning instead")
    parser.add_argument("--write-back", action="store_true", help="measure writing back into the model's own class")
    parser.add_argument("--table", action="store_true", help="only render the results")
    arguments = parser.parse_intermixed_args()
    if arguments.zoo and not arguments.table:
        run(arguments.zoo, arguments)
    zoos = {zoo: kept(zoo) for zoo in ZOOS if kept(zoo)}
    (HERE / "README.md").write_text(render(zoos))
    into_readme(HERE.parents[1] / "README.md", zoos)


if __name__ == "__main__":
    main()
