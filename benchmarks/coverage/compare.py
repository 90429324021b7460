"""The compact network against the user's own group-sparse model: other batches, other sizes, both training modes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from claims import Claims
from explaining import explained
from networks import Built, Call, Inputs
from running import float_leaves, run
from support.exactness import TOLERANCE
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import fx_oto
from fx_oto.core.differences import relative_error

__all__ = ["compared"]

EXAMPLE, OTHER = 2, 3  # batches
SENSITIVE = 1e-4
MOVES, AT_MOST = 5, 1e-8  # how often inputs are moved by a unit of rounding, and how far outputs may move with them

Record = dict[str, Any]


class RefusalError(Exception):
    """The compact network does not run on a call on which the model does."""


class UnlikeError(Exception):
    """It is not what it should be: a status and a reason."""


@dataclass
class Pair:
    """A model, the graph that was prepared from it, and the compact network.

    Attributes:
        errors: by the name of the trial.
        moved: by how much the model's own outputs move by rounding, where that was asked.
    """

    model: nn.Module
    gm: GraphModule
    small: GraphModule
    dtype: str
    errors: dict[str, float] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        return TOLERANCE[torch.float32 if self.dtype == "float32 inside" else getattr(torch, self.dtype)]

    def compare(self, trial: str, call: Call, training: bool = False, expected: Any = None) -> None:
        """Hold the compact network to what the model returns.

        Raises:
            RefusalError: it does not run.
            UnlikeError: it returns something else.
        """
        expected = run(self.model, call, training) if expected is None else expected
        try:
            found = run(self.small, call, training)
        except Exception as error:
            raise RefusalError(explained(error)) from error
        error = relative_error(expected, found)
        self.errors[trial] = float(f"{error:.1e}")
        if not error <= self.tolerance and self.dtype == "float64" and _computes_in_float32(self.model, call):
            self.dtype = "float32 inside"
        if not error <= self.tolerance and not error <= self._moved(trial, call, training, expected):
            raise UnlikeError("inexact", f"{trial}: {self._cause(call, training, expected)}")

    def _moved(self, trial: str, call: Call, training: bool, expected: Any) -> float:
        """By how much the model's own outputs move where its inputs do by one unit of rounding; 0 beyond ``AT_MOST``.

        Deep products let rounding grow: no other order of summation is nearer to the model than it is to itself.
        """
        dice = torch.Generator().manual_seed(0)

        def move(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            steps = torch.randint(-1, 2, tensor.shape, generator=dice).to(tensor)
            return tensor + tensor.abs() * torch.finfo(tensor.dtype).eps * steps

        others = (run(self.model, tree_map_only(Tensor, move, call), training) for _ in range(MOVES))
        found = max(relative_error(expected, other) for other in others)
        self.moved[trial] = float(f"{found:.1e}")
        return 2 * found if found <= AT_MOST else 0.0

    def _cause(self, call: Call, training: bool, expected: Any) -> str:
        if not relative_error(expected, run(self.gm, call, training)) <= self.tolerance:
            return "the captured graph itself differs from the model"
        try:
            fx_oto.Verification(self.gm)(self.small)
        except Exception as error:
            return explained(error)
        return "only beyond the example inputs"


def compared(built: Built, gm: GraphModule, small: GraphModule, dtype: str, evaluation_only: bool) -> Record:
    """Errors by trial, what is dynamic, and the status: the first of the trials that fails decides it.

    ``evaluation_only``: it was announced that the graph stays in evaluation mode.
    """
    built.model.train().eval()  # forgets what some modules keep of their parameters in evaluation
    pair = Pair(built.model, gm, small, dtype)
    record: Record = {"errors": pair.errors}
    try:
        _try_all(built, pair, record, evaluation_only)
        record["status"] = "exact"
    except RefusalError as refusal:
        record |= {"status": "failed", "reason": f"the compact model does not run: {refusal}"}
    except UnlikeError as unlike:
        record |= dict(zip(("status", "reason"), unlike.args, strict=True))
    return record | {"dtype": pair.dtype} | ({"moved_by_rounding": pair.moved} if pair.moved else {})


def _try_all(built: Built, pair: Pair, record: Record, evaluation_only: bool) -> None:
    example, batch = built.inputs(EXAMPLE, 0), built.inputs(OTHER, 0)
    claims = Claims(fx_oto.Context.of(pair.gm).capture, pair.model, example)
    expected = run(pair.model, example)
    pair.compare("example", example, expected=expected)
    record["sensitive"] = relative_error(expected, run(pair.model, built.inputs(EXAMPLE, 1))) > SENSITIVE
    if claims.changed(batch):
        record["batch"] = _dynamic(pair, "batch", batch, claims)
        if record["batch"] != "any" and claims.on(batch) is None:
            raise UnlikeError("failed", f"at another batch the compact model does not run: {record['batch']}")
    else:
        pair.compare("other images", batch)
    trials = {kind: call for kind, inputs in built.others.items() if (call := _taken(pair.model, inputs)) is not None}
    record["sizes"] = {kind: _dynamic(pair, kind, call, claims) for kind, call in trials.items()}
    dynamic = {kind: call for kind, call in trials.items() if record["sizes"][kind] == "any"}
    first = batch if record.get("batch", "any") == "any" else example
    _train(pair, record, {"training": first, **{f"training, {k}": c for k, c in dynamic.items()}}, evaluation_only)


def _dynamic(pair: Pair, trial: str, call: Call, claims: Claims) -> str:
    """``"any"`` if the capture does not fix these sizes and the compact network is exact, else why they are fixed.

    Raises:
        UnlikeError: the capture says that they are open, and the compact network does not run.
    """
    claim = claims.on(call)
    try:
        pair.compare(trial, call)
    except RefusalError as refusal:
        if claim == "any":
            reason = f"{trial}: any size, it is said, but the compact model does not run: {refusal}"
            raise UnlikeError("failed", reason) from refusal
        return claim or f"fixed: {refusal}"
    return claim if claim is not None and claim.startswith("fixed") else "any"


def _taken(model: nn.Module, alternatives: Iterable[Inputs]) -> Call | None:
    """The first arguments on which the model itself runs, with outputs that are numbers."""
    for inputs in alternatives:
        call = inputs(EXAMPLE, 0)
        try:
            if all(leaf.isfinite().all() for leaf in float_leaves(run(model, call))):
                return call
        except Exception:  # other sizes fail in as many ways as there are models
            continue
    return None


def _train(pair: Pair, record: Record, trials: dict[str, Call], evaluation_only: bool) -> None:
    first = next(iter(trials.values()))
    try:
        expected = run(pair.model, first, training=True)
    except Exception:  # detectors want targets
        return
    if not relative_error(expected, run(pair.model, first, training=True, seed=1)) <= pair.tolerance:
        record["training"] = "random"
    elif evaluation_only:
        record["training"] = "evaluation only"
    else:
        for trial, call in trials.items():
            pair.compare(trial, call, training=True)
        record["training"] = "exact"


class _Precision(TorchDispatchMode):
    """Notes whether anything is computed in less than float64."""

    def __init__(self) -> None:
        super().__init__()
        self.lower = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.lower |= any(leaf.dtype in (torch.float32, torch.bfloat16, torch.float16) for leaf in float_leaves(result))
        return result


def _computes_in_float32(model: nn.Module, call: Call) -> bool:
    with _Precision() as precision:
        run(model, call)
    return precision.lower
