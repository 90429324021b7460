"""Tables and a plot of the runs that ``quality.py`` has finished."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from small_networks import NETWORKS
from tabulate import tabulate

import fx_oto

CONTENDERS = {
    "dhspg": "DHSPG",
    "hesso": "HESSO",
    "magnitude": "magnitude + fine-tuning",
    "torch-pruning": "Torch-Pruning + fine-tuning",
    "scratch": "from scratch",
}


def results(done: dict[Any, dict], network: str, contender: str) -> dict[float, dict[int, dict]]:
    """The finished runs of one contender on one network, by target and seed."""
    found: dict[float, dict[int, dict]] = {}
    for run, entry in sorted(done.items(), key=lambda item: (-item[0].target, item[0].seed)):
        if (run.network, run.contender) == (network, contender) and "failed" not in entry:
            found.setdefault(run.target, {})[run.seed] = entry
    return found


def _failed(done: dict[Any, dict], network: str, target: float) -> set[str]:
    """The contenders whose library ends in an error of its own."""
    return {
        run.contender for run, e in done.items() if "failed" in e and (run.network, run.target) == (network, target)
    }


def table(done: dict[Any, dict]) -> str:
    """Accuracy of each contender, mean ± standard deviation over the seeds, at the same MACs, and parameters left."""
    rows = []
    for network in NETWORKS:
        full = _mean(results(done, network, "full").get(1.0, {}))
        found = {contender: results(done, network, contender) for contender in CONTENDERS}
        for target in found["dhspg"]:
            entries = [found[contender].get(target, {}) for contender in CONTENDERS]
            failed = _failed(done, network, target)
            means = ["fails" if name in failed else _mean(one) for name, one in zip(CONTENDERS, entries, strict=True)]
            rows.append((network, f"{target:.0%}", full, *means))
            rows.append(("", "", "", *map(_params, entries)))
    headers = ("network", "MACs left", "no pruning", *CONTENDERS.values())
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def differences(done: dict[Any, dict]) -> str:
    """DHSPG's accuracy less each contender's, over pairs of one seed: mean ± half of a 95% interval."""
    rows = []
    for network in NETWORKS:
        ours = results(done, network, "dhspg")
        for target, entries in ours.items():
            pairs = [_pairs(entries, results(done, network, other).get(target, {})) for other in _others()]
            full = _pairs(entries, results(done, network, "full").get(1.0, {}))
            rows.append((network, f"{target:.0%}", _interval(full), *map(_interval, pairs)))
    everything = []
    for other in ("full", *_others()):
        pairs = []
        for network in NETWORKS:
            theirs = results(done, network, other)
            for target, entries in results(done, network, "dhspg").items():
                pairs += _pairs(entries, theirs.get(1.0 if other == "full" else target, {}))
        everything.append(_interval(pairs))
    rows.append(("all", "", *everything))
    headers = ("network", "MACs left", "no pruning", *(CONTENDERS[other] for other in _others()))
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _others() -> list[str]:
    return [contender for contender in CONTENDERS if contender != "dhspg"]


def _pairs(ours: dict[int, dict], theirs: dict[int, dict]) -> list[float]:
    return [ours[seed]["accuracy"] - theirs[seed]["accuracy"] for seed in ours if seed in theirs]


def _interval(pairs: list[float]) -> str:
    """By Student's distribution, whose 97.5% quantiles stand here by degrees of freedom."""
    if len(pairs) < 2:
        return f"{pairs[0]:+.2f}" if pairs else "–"
    free = len(pairs) - 1
    quantile = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}.get(free, 2.1)
    return f"{statistics.mean(pairs):+.2f} ± {quantile * statistics.stdev(pairs) / len(pairs) ** 0.5:.2f}"


def _mean(entries: dict[int, dict]) -> str:
    values = [entry["accuracy"] for entry in entries.values()]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def _params(entries: dict[int, dict]) -> str:
    return f"params {statistics.mean(entry['params'] for entry in entries.values()):.1%}" if entries else ""


def draw(done: dict[Any, dict], path: Path) -> None:
    """Accuracy against MACs, a panel for each network; one dot for each seed, a line through the means."""
    panels, baselines = {}, {}
    for network in (name for name in NETWORKS if results(done, name, "dhspg")):
        for entries in results(done, network, "full").values():
            baselines[network] = statistics.mean(entry["accuracy"] for entry in entries.values())
        panels[network] = {
            name: [
                ([100 * entry["macs"] for entry in by_seed.values()], [e["accuracy"] for e in by_seed.values()])
                for by_seed in results(done, network, contender).values()
            ]
            for contender, name in CONTENDERS.items()
        }
    fx_oto.plot_tradeoff(panels, baseline=baselines, ylabel="test accuracy (%)").save(path)
