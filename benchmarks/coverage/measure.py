"""One network: random weights, half of every family zero, compact against group-sparse eager model."""

from __future__ import annotations

import math
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from networks import Built, Inputs
from support.exactness import TOLERANCE, calibrate, randomise, to_double
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import fx_oto
from passes.verification import relative_error

__all__ = ["explained", "measure", "warm_up"]

BATCHES = (2, 3)
LARGE = 120_000_000  # parameters; more are measured in float32, to fit the memory
SENSITIVE = 1e-4
ROOT = Path(__file__).parents[2]
REFUSALS = (fx_oto.TraceError, fx_oto.InputError, fx_oto.NothingToCompressError)
NOTEWORTHY = 0.01  # share of the parameters below which no reason is given for keeping them whole

Note = Callable[[str], None]
Record = dict[str, Any]


def warm_up() -> None:
    """Load what is loaded at the first use, so that processes forked from this one need not."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    image = torch.zeros(2, 4)
    fx_oto.prepare(torch.export.export(net, (image,), strict=False).module(), image)
    fx_oto.prepare(net, image)


def measure(build: Callable[[], Built], note: Note) -> Record:
    """The record of one network. ``note`` is told each stage, for the case that this process is stopped in it."""
    torch.manual_seed(0)
    record: Record = {"status": "unavailable"}
    try:
        note("building")
        model, inputs = build()
        note("running the model")
        model, inputs, record["dtype"] = _ready(model, inputs)
        record["status"] = "failed"
        record |= _compressed(model, inputs, record["dtype"], note)
    except REFUSALS as error:
        record |= {"status": "refused", "reason": explained(error)}
    except Exception as error:
        record |= {"reason": explained(error)}
    return record


def _ready(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, str]:
    """Random weights in the highest precision that the model and the memory allow."""
    randomise(model.eval(), linear_gain=1.0, constants=False)
    if sum(parameter.numel() for parameter in model.parameters()) <= LARGE:
        try:
            return _calibrated(model.double(), lambda batch, seed: to_double(inputs(batch, seed)), "float64")
        except (RuntimeError, TypeError) as error:
            if "type" not in str(error):
                raise
    return _calibrated(model.float(), inputs, "float32")


def _calibrated(model: nn.Module, inputs: Inputs, dtype: str) -> tuple[nn.Module, Inputs, str]:
    calibrate(model, *inputs(2, 0))
    if not all(leaf.isfinite().all() for leaf in _tensors(_run(model, inputs(2, 0)))):
        raise FloatingPointError("with these random weights, outputs are not finite")
    return model, inputs, dtype


def _compressed(model: nn.Module, inputs: Inputs, dtype: str, note: Note) -> Record:
    params = _size(model)
    note("preparing")
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gm = fx_oto.prepare(model, inputs(2, 0))
    seconds = time.process_time() - start
    partition = fx_oto.partition(gm)
    frozen, kept = _frozen(partition, dict(gm.named_parameters()))
    facts = {
        "front_end": fx_oto.Context.of(gm).capture.front_end,
        "params": params,
        "zigs": partition.num_zigs,
        "frozen_share": round(frozen, 4),
        "kept_whole": kept,
        "seconds": round(seconds, 2),
    }
    note("compressing")
    partition.zero_(0.5, torch.Generator().manual_seed(1))
    try:
        small = fx_oto.compress(gm, verify=False)
        facts["params_left"] = round(_size(small) / params, 4)
        note("comparing")
        return facts | _compared(model, gm, small, inputs, dtype)
    except Exception as error:
        refused = isinstance(error, REFUSALS)
        return facts | {"status": "refused" if refused else "failed", "reason": explained(error)}


def _compared(model: nn.Module, gm: GraphModule, small: GraphModule, inputs: Inputs, dtype: str) -> Record:
    given = [inputs(batch, 0) for batch in BATCHES]
    model.train().eval()  # forgets what some modules keep of their parameters in evaluation
    expected = [_run(model, call) for call in given]
    found: Record = {"errors": []}
    for call, one in zip(given, expected, strict=True):
        try:
            found["errors"].append(_short(relative_error(one, _run(small, call))))
        except Exception as error:
            reason = f"the compact model does not run: {explained(error)}"
            return found | {"status": "failed", "reason": reason}
    found["sensitive"] = relative_error(expected[0], _run(model, inputs(BATCHES[0], 1))) > SENSITIVE
    tolerance = TOLERANCE[getattr(torch, dtype)]
    if not max(found["errors"]) <= tolerance and dtype == "float64" and _computes_in_float32(model, given[0]):
        tolerance, found["dtype"] = TOLERANCE[torch.float32], "float32 inside"
    if max(found["errors"]) <= tolerance:
        return found | {"status": "exact"}
    return found | {"status": "inexact", "reason": _difference(gm, small, given, expected, tolerance)}


def _difference(gm: GraphModule, small: GraphModule, given: list[Any], expected: list[Any], tolerance: float) -> str:
    for call, one in zip(given, expected, strict=True):
        if not relative_error(one, _run(gm, call)) <= tolerance:
            return "the captured graph itself differs from the model"
    try:
        fx_oto.Verification(gm)(small)
    except Exception as error:
        return explained(error)
    return "only beyond the example inputs"


class _Precision(TorchDispatchMode):
    """Notes whether anything is computed in less than float64."""

    def __init__(self) -> None:
        super().__init__()
        self.lower = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.lower |= any(leaf.dtype in (torch.float32, torch.bfloat16, torch.float16) for leaf in _tensors(result))
        return result


def _computes_in_float32(model: nn.Module, call: Any) -> bool:
    with _Precision() as precision:
        _run(model, call)
    return precision.lower


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
    return share, _portable(top)


def explained(error: BaseException) -> str:
    """One line: kind and text of the error that all came from, and the line of ours that raised it."""
    while isinstance(error, fx_oto.PassError) and error.__cause__ is not None:
        error = error.__cause__
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith((str(ROOT / "fx_oto"), str(ROOT / "passes")))
    ]
    where = f" [{ours[-1].filename}:{ours[-1].lineno}]" if ours else ""
    text = " ".join(str(error).split())
    if "refuses it too: " in text:  # what symbolic tracing says comes first, and is long
        text = "torch.export: " + text.split("refuses it too: ")[1].split(". What to do:")[0] + " | " + text[:160]
    return _portable(f"{type(error).__name__}: {text[:420]}{where}")


def _portable(text: str) -> str:
    """Without the places where this machine keeps its files."""
    text = text.replace(f"{ROOT}/", "")
    return re.sub(r"/[^\s:\"']*/(?:site-packages|python3\.\d+)/", "", text)


def _run(model: nn.Module, call: Any) -> Any:
    args, kwargs = tree_map_only(Tensor, Tensor.clone, call)
    with torch.no_grad():
        return model(*args, **kwargs)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _short(number: float) -> float:
    return float(f"{number:.1e}")
