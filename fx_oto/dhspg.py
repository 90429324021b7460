"""Dual half-space projected gradient (DHSPG, after OTOv2, section 3.2): train while ZIGs become exactly zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fx_oto.errors import SettingsError
from fx_oto.graph import tensor_names
from fx_oto.masks import mask_of
from fx_oto.saliency import Moments, redundancy, select_redundant
from fx_oto.zigs import Family, Slot, partition

__all__ = ["DHSPG", "Dual", "dual_step"]


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


class DHSPG(Optimizer):
    """Wraps any torch optimizer: the base takes its step, then DHSPG corrects the redundant ZIGs.

    Until ``start_step`` the base trains alone. At ``start_step`` the ZIGs with the highest redundancy score are
    chosen; from then on each of their steps is the dual half-space step of ``dual_step``, and in the second half of
    the window what is not zero yet is also shrunk by (T − t − 1)/(T − t) at step t, T being ``end_step``, so that
    the target is reached exactly. ZIGs that are zero stay zero, in the parameters, the masks and the base's state.

    It differs from the authors' optimizer in that any base can be used, λ comes from the data, λ_g never falls below
    its bound, the regulariser never enters momentum, and redundant ZIGs that have not been projected by the end are
    shrunk to zero instead of being left.

    Args:
        gm: a prepared GraphModule; the eager model that shares its parameters may be the one that is trained.
        base: an optimizer class, built over ``gm.parameters()`` with ``base_kwargs``, or an instance.
        target_group_sparsity: fraction of the prunable ZIGs to make zero, in (0, 1). ZIGs with a parameter that does
            not require gradients count as prunable, but stay as they are.
        total_steps: length of the training, in steps; sets ``start_step`` to a tenth and ``end_step`` to six tenths.
        start_step: first step of the pruning window.
        end_step: the step by which the target is reached.
        lam: λ; None: such that the mean redundant ZIG would reach zero in half the window at the learning rate found
            there (time to zero ≈ ‖x‖/(αλ)).
        amplify: see ``dual_step``.
        hat: see ``dual_step``.
        epsilon: see ``dual_step``.
        min_kept: fraction of each family that is kept, at least one ZIG.
        base_kwargs: arguments of the base class, such as ``lr=0.1, momentum=0.9``.

    Raises:
        SettingsError: a setting cannot work; nothing is changed.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, total_steps=20)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     gm(torch.randn(16, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> fx_oto.partition(gm).group_sparsity()
        0.5
    """

    def __init__(  # noqa: PLR0913 - an optimizer's settings are keyword arguments by custom
        self,
        gm: nn.Module,
        base: type[Optimizer] | Optimizer = torch.optim.SGD,
        *,
        target_group_sparsity: float,
        total_steps: int | None = None,
        start_step: int | None = None,
        end_step: int | None = None,
        lam: float | None = None,
        amplify: float = 2.0,
        hat: float = 10.0,
        epsilon: float = 0.0,
        min_kept: float = 0.05,
        **base_kwargs: Any,
    ) -> None:
        self.zigs = partition(gm)  # type: ignore[arg-type]
        self.start_step, self.end_step = _window(total_steps, start_step, end_step)
        self.target_group_sparsity = target_group_sparsity
        self.lam, self.amplify, self.hat, self.epsilon = lam, amplify, hat, epsilon
        self._quota = _quota(
            self.zigs.families, target_group_sparsity, min_kept, _frozen_by_user(gm, self.zigs.families)
        )
        _check(amplify=amplify > 1, hat=hat > 1, epsilon=0 <= epsilon < 1, lam=lam is None or lam > 0)
        self.base = _build(base, gm, base_kwargs)
        super().__init__(self.base.param_groups, self.base.defaults)
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self._steps = 0
        self._parts = [_Part(gm, i, family) for i, family in enumerate(self.zigs.families)]
        self._check_covered()

    def _check_covered(self) -> None:
        mine = {id(p) for group in self.param_groups for p in group["params"]}
        for part in self._parts:
            for slot, tensor in part.variables:
                if id(tensor) not in mine and tensor.requires_grad:
                    raise SettingsError(
                        f"the base optimizer does not hold {slot.tensor!r}, which belongs to prunable ZIGs: build it "
                        "over gm.parameters() (or the model's own), or keep it whole by prepare(…, unprunable=…)"
                    )

    @property
    def group_sparsity(self) -> float:
        """The fraction of prunable ZIGs that are zero now."""
        return self.zigs.group_sparsity()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._steps == self.start_step:
            self._choose()
        in_window = self.start_step <= self._steps < self.end_step
        before = [part.gather() for part in self._parts] if in_window else []
        self.base.step()
        if in_window:
            self._correct(before)
        elif self._steps >= self.end_step:
            for part in self._parts:
                part.keep_zero(self.base)
        self._steps += 1
        return loss

    def _choose(self) -> None:
        """Find the redundant set G_r and, unless it is given, λ."""
        if all(tensor.grad is None for part in self._parts for _, tensor in part.variables):
            raise SettingsError("no ZIG has a gradient at the start of pruning: call backward() before step()")
        moments = [part.saliency_moments() for part in self._parts]
        scores = redundancy(moments, [part.size for part in self._parts])
        chosen = select_redundant(scores, *self._quota)
        for part, redundant in zip(self._parts, chosen, strict=True):
            part.choose(redundant)
        if self.lam is None:
            norms = torch.cat([m.square[c].sqrt() for m, c in zip(moments, chosen, strict=True)])
            rate = sum(float(group["lr"]) for group in self.param_groups) / len(self.param_groups)
            window = max(self.end_step - self.start_step, 1) / 2
            self.lam = float(norms.mean()) / max(rate * window, 1e-12)

    def _correct(self, before: list[list[Tensor]]) -> None:
        left = self.end_step - self._steps
        fade = (left - 1) / left if left <= (self.end_step - self.start_step) / 2 else 1.0
        rates = {id(p): group["lr"] for group in self.param_groups for p in group["params"]}
        for part, rows in zip(self._parts, before, strict=True):
            if rows:
                moments = part.moments(rows, rates)
                assert self.lam is not None
                dual = dual_step(moments, self.lam, self.amplify, self.hat, self.epsilon)
                part.write(rows, rates, dual, fade)
                part.clear_state(self.base)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base as well."""
        if hasattr(self, "_parts"):  # the list of groups is the base's own
            self.base.add_param_group(param_group)
        else:
            super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base's state and DHSPG's own, under the key ``"dhspg"``."""
        own = {"step": self._steps, "lam": self.lam, "chosen": [part.state() for part in self._parts]}
        return {**self.base.state_dict(), "dhspg": own}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from ``state_dict()``; the model's own state dict, masks included, is restored apart."""
        if "dhspg" not in state_dict:
            raise SettingsError("this state was not saved by DHSPG: the key 'dhspg' is missing")
        own = state_dict["dhspg"]
        if len(own["chosen"]) != len(self._parts):
            raise SettingsError(
                f"this state has {len(own['chosen'])} families, the model has {len(self._parts)}: it is another model's"
            )
        self.base.load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self._steps, self.lam = own["step"], own["lam"]
        for part, state in zip(self._parts, own["chosen"], strict=True):
            part.restore(state)


class _Part:
    """One family's variables, and which of its ZIGs are redundant."""

    def __init__(self, gm: nn.Module, position: int, family: Family) -> None:
        tensors = tensor_names(gm)
        self.variables: list[tuple[Slot, Tensor]] = [(slot, tensors[slot.tensor]) for slot in family.variables]
        self.mask = mask_of(gm, position)
        self.size = sum(slot.index.shape[1] * slot.numel for slot in family.variables)
        self.count = len(family)
        self.redundant = torch.zeros(0, dtype=torch.int64)
        self.zero = torch.zeros(0, dtype=torch.bool)
        self._rows: list[Tensor] = []

    def choose(self, redundant: Tensor) -> None:
        """Take these positions in the family as the redundant ones."""
        device = self.variables[0][1].device
        self.redundant = redundant.to(device)
        self.zero = torch.zeros(len(redundant), dtype=torch.bool, device=device)
        self._rows = [slot.index[redundant.cpu()].reshape(-1).to(tensor.device) for slot, tensor in self.variables]

    def gather(self) -> list[Tensor]:
        """The redundant ZIGs' variables, a tensor ``(redundant, n)`` for each slot."""
        if not len(self.redundant):
            return []
        return [
            self._read(tensor, slot.dim, rows) for (slot, tensor), rows in zip(self.variables, self._rows, strict=True)
        ]

    def _read(self, tensor: Tensor, dim: int, rows: Tensor) -> Tensor:
        return tensor.index_select(dim, rows).movedim(dim, 0).reshape(len(self.redundant), -1)

    def saliency_moments(self) -> Moments:
        """Inner products of every ZIG's variables with their gradient."""
        total = Moments.zeros(self.count, self.variables[0][1])
        for slot, tensor in self.variables:
            index = slot.index.reshape(-1).to(tensor.device)
            x = tensor.index_select(slot.dim, index).movedim(slot.dim, 0).reshape(self.count, -1)
            grad = tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
            g = grad.index_select(slot.dim, index).movedim(slot.dim, 0).reshape(self.count, -1)
            total = total.add(x, g, 1.0)
        return total

    def moments(self, before: list[Tensor], rates: dict[int, Any]) -> Moments:
        """Inner products of the redundant variables with their effective gradient."""
        total = Moments.zeros(len(self.redundant), before[0])
        for (slot, tensor), rows, x in zip(self.variables, self._rows, before, strict=True):
            rate = rates.get(id(tensor), 1.0)
            after = self._read(tensor, slot.dim, rows)
            total = total.add(x, (x - after) / max(rate, 1e-30), rate)
        return total

    def write(self, before: list[Tensor], rates: dict[int, Any], dual: Dual, fade: float) -> None:
        """Put the trial points in place, zero where projected or where zero already."""
        self.zero |= dual.project if fade > 0 else True
        keep = torch.where(self.zero, 0.0, fade)
        for (slot, tensor), rows, x in zip(self.variables, self._rows, before, strict=True):
            shrink = rates.get(id(tensor), 1.0) * dual.shrink
            trial = self._read(tensor, slot.dim, rows) - shrink[:, None] * x
            trial = torch.where(self.zero[:, None], 0.0, trial * keep[:, None])
            self._write_rows(tensor, slot.dim, rows, trial)
        if self.mask is not None:
            self.mask[self.redundant] = (~self.zero).to(self.mask)

    def _write_rows(self, tensor: Tensor, dim: int, rows: Tensor, values: Tensor) -> None:
        shape = list(tensor.movedim(dim, 0).shape)
        shape[0] = len(rows)
        tensor.index_copy_(dim, rows, values.reshape(shape).movedim(0, dim).to(tensor.dtype))

    def clear_state(self, base: Optimizer) -> None:
        """Zero the base's buffers, such as momentum, of ZIGs that are zero."""
        for (slot, tensor), rows in zip(self.variables, self._rows, strict=True):
            for buffer in _buffers(base, tensor):
                kept = torch.where(self.zero[:, None], 0, self._read(buffer, slot.dim, rows))
                self._write_rows(buffer, slot.dim, rows, kept)

    def keep_zero(self, base: Optimizer) -> None:
        """After the window every redundant ZIG is zero, and stays so."""
        for (slot, tensor), rows in zip(self.variables, self._rows, strict=True):
            for buffer in (tensor, *_buffers(base, tensor)):
                buffer.index_fill_(slot.dim, rows, 0)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {"redundant": self.redundant, "zero": self.zero}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up ``state()``."""
        self.choose(state["redundant"])
        self.zero.copy_(state["zero"])


def _buffers(base: Optimizer, tensor: Tensor) -> Iterable[Tensor]:
    state = base.state.get(tensor, {})
    return [
        value for value in state.values() if isinstance(value, Tensor) and value.shape == tensor.shape and value.ndim
    ]


def _build(base: type[Optimizer] | Optimizer, gm: nn.Module, kwargs: dict[str, Any]) -> Optimizer:
    if isinstance(base, Optimizer):
        if kwargs:
            raise SettingsError(
                f"base is an optimizer already, so {sorted(kwargs)} cannot be used: set them when building it"
            )
        return base
    if issubclass(base, torch.optim.LBFGS):
        raise SettingsError("LBFGS takes several steps in one, which DHSPG cannot correct: use another base")
    return base(gm.parameters(), **kwargs)


def _window(total: int | None, start: int | None, end: int | None) -> tuple[int, int]:
    if total is None and end is None:
        raise SettingsError(
            "DHSPG must know by when to be done: pass total_steps=epochs * len(loader), or start_step and end_step"
        )
    first = start if start is not None else (total or 0) // 10
    last = end if end is not None else max(6 * (total or 0) // 10, first + 1)
    if not 0 <= first < last or (total is not None and last > total):
        raise SettingsError(
            f"the pruning window must satisfy 0 <= start_step < end_step <= total_steps; found start_step={first}, "
            f"end_step={last}, total_steps={total}"
        )
    return first, last


def _frozen_by_user(gm: nn.Module, families: tuple[Family, ...]) -> set[str]:
    """Families of which some variable must not be trained."""
    tensors = tensor_names(gm)
    return {f.name for f in families if not all(tensors[slot.tensor].requires_grad for slot in f.variables)}


def _quota(families: tuple[Family, ...], target: float, min_kept: float, frozen: set[str]) -> tuple[int, list[int]]:
    """How many ZIGs to make zero, and how many of each family at most; none of what the user froze."""
    if not 0 < target < 1:
        raise SettingsError(f"target_group_sparsity must be between 0 and 1, both excluded; found {target}")
    if not 0 <= min_kept < 1:
        raise SettingsError(f"min_kept must be in [0, 1), found {min_kept}")
    if not families:
        raise SettingsError("no axis of this model can be pruned: print(fx_oto.partition(gm)) gives the reasons")
    most = [
        0 if family.name in frozen else len(family) - max(1, math.ceil(min_kept * len(family))) for family in families
    ]
    count = math.ceil(target * sum(len(family) for family in families) - 1e-9)
    if count > sum(most):
        reachable = sum(most) / max(sum(len(family) for family in families), 1)
        raise SettingsError(
            f"target_group_sparsity={target} cannot be reached: with min_kept={min_kept} of each family, at most "
            f"{reachable:.3f} of the ZIGs can go; lower the target or min_kept"
            + (f" ({len(frozen)} families have parameters with requires_grad=False)" if frozen else "")
        )
    return count, most


def _check(**conditions: bool) -> None:
    for name, holds in conditions.items():
        if not holds:
            limits = {"amplify": "> 1", "hat": "> 1", "epsilon": "in [0, 1)", "lam": "> 0"}[name]
            raise SettingsError(f"{name} must be {limits}")
