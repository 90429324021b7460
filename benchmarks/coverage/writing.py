"""The same networks written back into their own classes: how many modules had to become graphs."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from explaining import explained
from measure import REFUSALS, ready, warm_up
from networks import Built
from running import float_leaves, run

import fx_oto

__all__ = ["measure", "warm_up"]


def measure(build: Callable[[], Built], note: Callable[[str], None]) -> dict[str, Any]:
    """``graphs``, ``norms`` that are graphs, ``attributes`` and ``error`` where it is written back; else the reason."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    try:
        note("building")
        built, _ = ready(build())
        note("preparing")
        gm = fx_oto.prepare(built.model, built.inputs(2, 0), parts=built.parts)
        fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
        small = fx_oto.compress(gm, verify=False)
        note("writing back")
        start = time.process_time()
        result = fx_oto.write_back(small, built.model)
        return _record(result) | {
            "seconds": round(time.process_time() - start, 2),
            "error": _error(built, small, result),
        }
    except REFUSALS as error:
        return {"refused": explained(error)[:200]}
    except Exception as error:
        return {"reason": explained(error)[:200]}


def _record(result: torch.nn.Module) -> dict[str, Any]:
    found = fx_oto.WriteBack.of(result)
    graphs = [graph for graph in found.graphs if not graph.is_norm]
    kinds = Counter(graph.kind for graph in graphs)
    return {
        "graphs": len(graphs),
        "norms": len(found.graphs) - len(graphs),
        "scaled": len(found.norms),
        "attributes": len(found.attributes),
        "kinds": dict(kinds),
        "whole": any(not graph.module for graph in graphs),
        "reasons": sorted({f"{graph.kind}: {graph.reason}" for graph in graphs})[:3],
    }


def _error(built: Built, small: torch.nn.Module, result: torch.nn.Module) -> float:
    """The largest difference on other inputs, relative to the largest output; a graph of parts takes others."""
    call, expected = built.inputs(2, 7), built.model if built.parts else small
    pairs = zip(float_leaves(run(expected, call)), float_leaves(run(result, call)), strict=True)
    return max(float((one - other).abs().max() / one.abs().max().clamp(min=1e-30)) for one, other in pairs)
