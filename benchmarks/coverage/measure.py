"""One network: random weights, half of every family zero, compact against group-sparse eager model."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from compare import compared
from compare_parts import compared_in_parts
from explaining import explained, portable
from front_end import Called, front_end, kernel_taps
from networks import Built, Call, Inputs
from running import float_leaves, run
from support.exactness import calibrate, randomise
from torch import Tensor, nn
from torch.fx import GraphModule

import fx_oto

__all__ = ["REFUSALS", "measure", "ready", "warm_up"]

LARGE = 150_000_000  # parameters; more are measured in float32, to fit the memory
REFUSALS = (fx_oto.TraceError, fx_oto.InputError, fx_oto.NothingToCompressError)
NOTEWORTHY = 0.01  # share of the parameters below which no reason is given for keeping them whole
EVALUATION_ONLY = "evaluation mode"  # in a warning of prepare

Note = Callable[[str], None]
Record = dict[str, Any]


def warm_up() -> None:
    """Load what is loaded at the first use, so that processes forked from this one need not."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    fx_oto.prepare(net, torch.zeros(2, 4))


def measure(build: Callable[[], Built], note: Note) -> Record:
    """The record of one network. ``note`` is told each stage, for the case that this process is stopped in it."""
    torch.manual_seed(0)
    record: Record = {"status": "unavailable"}
    try:
        note("building")
        built = build()
        note("running the model")
        built, record["dtype"] = ready(built)
        record["status"] = "failed"
        record |= _compressed(built, record["dtype"], note)
    except REFUSALS as error:
        record |= {"status": "refused", "reason": explained(error)}
    except Exception as error:
        record |= {"reason": explained(error)}
    return record


def ready(built: Built) -> tuple[Built, str]:
    """Random weights in the highest precision that the model and the memory allow."""
    model = randomise(built.model.eval(), linear_gain=1.0, constants=False)
    if sum(parameter.numel() for parameter in model.parameters()) <= LARGE:
        double = built._replace(
            model=model.double(),
            inputs=_converted(built.inputs, built.in_double),
            others={
                kind: tuple(_converted(one, built.in_double) for one in inputs) for kind, inputs in built.others.items()
            },
        )
        try:
            return _calibrated(double), "float64"
        except (RuntimeError, TypeError) as error:
            if not any(word in str(error) for word in ("type", "Double")):  # an operator has no kernel for it
                raise
    return _calibrated(built._replace(model=model.float())), "float32"


def _converted(inputs: Inputs, convert: Callable[[Call], Call]) -> Inputs:
    return lambda batch, seed: convert(inputs(batch, seed))


def _calibrated(built: Built) -> Built:
    calibrate(built.model, *built.inputs(2, 0))
    if not all(leaf.isfinite().all() for leaf in float_leaves(run(built.model, built.inputs(2, 0)))):
        raise FloatingPointError("with these random weights, outputs are not finite")
    return built


def _compressed(built: Built, dtype: str, note: Note) -> Record:
    model, example = built.model, built.inputs(2, 0)
    params, called = _size(model), Called.by(model, example)
    note("preparing")
    gm, seconds, warned = _prepared(built, example)
    partition = fx_oto.partition(gm)
    frozen, kept = _frozen(partition, dict(gm.named_parameters()))
    facts = {
        "params": params,
        "zigs": partition.num_zigs,
        "frozen_share": round(frozen, 4),
        "kept_whole": kept,
        "kernel_taps": kernel_taps(partition, called),
        "seconds": round(seconds, 2),
    }
    note("compressing")
    partition.zero_(0.5, torch.Generator().manual_seed(1))
    try:
        small = fx_oto.compress(gm, verify=False)
        whole = fx_oto.write_back(small, model) if built.parts else small
        facts["params_left"] = round(_size(whole) / params, 4)
        facts |= front_end(whole, called)
        note("comparing")
        if built.parts:
            return facts | compared_in_parts(built, small, whole, dtype)
        return facts | compared(built, gm, small, dtype, EVALUATION_ONLY in warned)
    except Exception as error:
        refused = isinstance(error, REFUSALS)
        return facts | {"status": "refused" if refused else "failed", "reason": explained(error)}


def _prepared(built: Built, example: Any) -> tuple[GraphModule, float, str]:
    """The graph, seconds of process time, and what was warned of."""
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gm = fx_oto.prepare(built.model, example, parts=built.parts)
        fx_oto.partition(gm)
    return gm, time.process_time() - start, "; ".join(str(one.message) for one in caught)


def _frozen(partition: fx_oto.Partition, parameters: dict[str, Tensor]) -> tuple[float, str]:
    """The share of the parameters that no group has a part in, along any axis, and what keeps most of them."""
    free: dict[tuple[str, int], Tensor] = {}
    for slot in (slot for family in partition.families for slot in family.slots if slot.tensor in parameters):
        size = parameters[slot.tensor].size(slot.dim)
        free.setdefault((slot.tensor, slot.dim), torch.zeros(size, dtype=torch.bool))[slot.index] = True
    whole = {
        name: math.prod(int((~free[name, dim]).sum()) if (name, dim) in free else n for dim, n in enumerate(one.shape))
        for name, one in parameters.items()
    }
    share = sum(whole.values()) / max(sum(one.numel() for one in parameters.values()), 1)
    reasons: Counter[str] = Counter()
    for axis in partition.frozen:
        reasons[str(axis.reason)] += whole[axis.tensor] * axis.size // parameters[axis.tensor].size(axis.dim)
    top = max(reasons, key=lambda reason: reasons[reason], default="") if share > NOTEWORTHY else ""
    return share, portable(top)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
