"""Dual half-space projected gradient (DHSPG, after OTOv2, section 3.2): train while ZIGs become exactly zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.optim import Optimizer

from fx_oto.errors import SettingsError
from fx_oto.optim.rows import Rows
from fx_oto.optim.schedule import Period
from fx_oto.optim.sparsifier import GroupSparseOptimizer

__all__ = ["DHSPG", "Dual", "Moments", "dual_step"]


@dataclass(frozen=True)
class Moments:
    """Inner products of each ZIG's variables x with a direction d: tensors of shape ``(zigs,)``.

    Attributes:
        square: ‖x‖².
        dot: ⟨x, d⟩.
        gradient: ‖d‖².
        step_dot: ⟨x, α d⟩, α being each variable's learning rate.
        scaled_square: Σ α x².
    """

    square: Tensor
    dot: Tensor
    gradient: Tensor
    step_dot: Tensor
    scaled_square: Tensor


@dataclass(frozen=True)
class Dual:
    """What ``dual_step`` decides for each ZIG: tensors of shape ``(zigs,)``.

    Attributes:
        shrink: λ_g / ‖x‖: the trial point is x̂ − lr · shrink · x.
        project: True where the half-space test fails and the ZIG becomes 0.
    """

    shrink: Tensor
    project: Tensor


def dual_step(moments: Moments, lam: Tensor | float, amplify: float, hat: float, epsilon: float) -> Dual:
    """The dual update of redundant ZIGs, from inner products only.

    With x a ZIG's variables before the step, x̂ after the base optimizer's step, α the learning rate and
    d = (x − x̂)/α the effective gradient:

    - ⟨x, d⟩ ≥ 0: λ_g = λ, for both goals agree.
    - ⟨x, d⟩ < 0: λ_min = −⟨x, d⟩/‖x‖ (above it ‖x‖ shrinks to first order), λ_max = −‖d‖²‖x‖/⟨x, d⟩ (below it f
      still descends), and λ_g = max(λ, min(amplify · λ_min, hat · λ)), put back to (λ_min + λ_max)/2 if that is
      outside (λ_min, λ_max).
    - half-space test: ⟨x̂ − αλ_g x/‖x‖, x⟩ < ε‖x‖² ⇒ the ZIG becomes 0.

    The authors cap λ_g at hat · λ even below λ_min, and so lose the guarantee that ‖x‖ shrinks; here it is kept.

    Args:
        moments: inner products for each ZIG, ``moments.dot`` and ``moments.gradient`` those of d.
        lam: λ > 0, in the units of a gradient norm.
        amplify: factor on λ_min, > 1.
        hat: factor on λ, > 1: the largest λ_g that amplification may reach.
        epsilon: half-space parameter in [0, 1); the larger, the sooner ZIGs are projected.
    """
    norm = moments.square.sqrt()
    safe = norm.clamp_min(torch.finfo(norm.dtype).tiny)
    lower = (-moments.dot / safe).clamp_min(0)
    upper = torch.where(moments.dot < 0, -moments.gradient * norm / moments.dot, math.inf)
    wanted = torch.maximum((amplify * lower).clamp_max(hat * lam), torch.as_tensor(lam).to(lower))
    inside = (wanted > lower) & (wanted < upper)
    lam_g = torch.where(inside, wanted, (lower + torch.where(upper.isinf(), lower, upper)) / 2)
    shrink = lam_g / safe
    reached = moments.square - moments.step_dot - shrink * moments.scaled_square
    return Dual(shrink, (reached < epsilon * moments.square) | (norm == 0))


class DHSPG(GroupSparseOptimizer):
    """PLACEHOLDER."""

    _END_AT = 0.6
    _PERIODS = 1
    _SALIENCY = "otov2"
    _BATCHES = 20

    def __init__(
        self,
        gm: GraphModule,
        base: type[Optimizer] | Optimizer = torch.optim.SGD,
        *,
        lam: float | None = None,
        amplify: float = 2.0,
        hat: float = 10.0,
        epsilon: float = 0.0,
        **settings: Any,
    ) -> None:
        _check(amplify=amplify > 1, hat=hat > 1, epsilon=0 <= epsilon < 1, lam=lam is None or lam > 0)
        self.lam, self.amplify, self.hat, self.epsilon = lam, amplify, hat, epsilon
        self._lam: Tensor | float = 0.0
        super().__init__(gm, base, **settings)

    def begin(self, rows: Rows, period: Period) -> None:
        """Unless it is given, find λ: the mean active ZIG is to reach zero in half the period."""
        if self.lam is not None:
            self._lam = self.lam
            return
        squares = torch.zeros(len(rows.zero), dtype=torch.float64, device=rows.device)
        for block, x in zip(rows.blocks, rows.remember(), strict=True):
            squares[block.zigs] += block.rows(x).flatten(1).square().sum(1).to(squares)
        rate = sum(float(group["lr"]) for group in self.param_groups) / len(self.param_groups)
        mean = float(squares.sqrt().mean()) if len(squares) else 0.0
        self._lam = max(mean / max(rate * (period.end - period.start) / 2, 1e-12), 1e-12)

    def prune(self, rows: Rows, period: Period, step: int) -> None:
        """The base's step, then the dual half-space step of the active ZIGs."""
        before = rows.remember()
        self.base.step()
        after = rows.current()
        rates = {id(p): group["lr"] for group in self.param_groups for p in group["params"]}
        dual = dual_step(_moments(rows, before, after, rates), self._lam, self.amplify, self.hat, self.epsilon)
        rows.commit(dual.project)
        keep = torch.where(rows.zero, 0.0, period.fade(step)).to(dual.shrink)
        shrink = torch.where(rows.zero, 0.0, dual.shrink * keep)
        for block, x, trial in zip(rows.blocks, before, after, strict=True):
            scaled = block.per_zig(shrink) * rates[id(block.tensor)]
            block.rows(trial).mul_(block.per_zig(keep)).addcmul_(block.rows(x), scaled, value=-1)
            block.write(trial)

    def own_state(self) -> dict[str, Any]:
        """λ of the current period."""
        return {"lam": self._lam}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take up ``own_state()``."""
        self._lam = state["lam"]


def _moments(rows: Rows, before: list[Tensor], after: list[Tensor], rates: dict[int, Any]) -> Moments:
    """Inner products of the active variables with their effective gradient (x − x̂)/α."""
    sums: Tensor | None = None
    for block, old, new in zip(rows.blocks, before, after, strict=True):
        rate = rates[id(block.tensor)]
        inverse = 1 / max(rate, 1e-30)
        x = block.rows(old)
        step = x - block.rows(new)
        dims = tuple(range(1, x.ndim))
        square = torch.linalg.vector_norm(x, dim=dims).square()
        moved = torch.linalg.vector_norm(step, dim=dims).square()
        dot = step.mul_(x).sum(dims)
        part = torch.stack((square, dot * inverse, moved * inverse**2, dot, square * rate)).to(rows.device)
        if sums is None:
            sums = torch.zeros(5, len(rows.zero), dtype=part.dtype, device=rows.device)
        sums[:, block.zigs] += part
    return Moments(*(torch.zeros(5, 0) if sums is None else sums))


def _check(**conditions: bool) -> None:
    limits = {"amplify": "> 1", "hat": "> 1", "epsilon": "in [0, 1)", "lam": "> 0"}
    for name, holds in conditions.items():
        if not holds:
            raise SettingsError(f"{name} must be {limits[name]}")
