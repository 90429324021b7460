"""What every group-sparse optimizer shares: the base that it wraps, the target, the choice of ZIGs, the state."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.optim import Optimizer

from fx_oto.context import Context
from fx_oto.errors import FxOtoWarning, SettingsError, TrainingError
from fx_oto.graph import tensor_names
from fx_oto.latency import Latency
from fx_oto.optim.rows import Rows
from fx_oto.optim.saliency import Criterion, ZIGStatistics, criterion
from fx_oto.optim.schedule import Period, Schedule
from fx_oto.optim.selection import Limits, PerFamily, Target, select
from fx_oto.prices import Price
from fx_oto.trajectory import Trajectory
from fx_oto.zigs import Family, Partition, partition

__all__ = ["GroupSparseOptimizer"]

_KEY = "zigs"


class GroupSparseOptimizer(Optimizer):
    """Wraps a torch optimizer and drives redundant ZIGs to zero; subclasses say how, in ``prune``.

    The base trains alone until ``start_step``. The pruning window that begins there is divided into periods; at the
    start of each, the ZIGs with the highest redundancy score are chosen, as many as are needed to come that much nearer
    to the target, and by its end they are exactly zero. They stay zero, in the parameters and in the masks.

    Param groups and state are the base's own, so schedulers, ``GradScaler``, clipping and accumulation work as with
    the base alone. See ``DHSPG`` for the arguments.
    """

    _END_AT: float
    _PERIODS: int
    _SALIENCY: str
    _BATCHES: int

    def __init__(  # noqa: PLR0913 - an optimizer's settings are keyword arguments by custom
        self,
        gm: GraphModule,
        base: type[Optimizer] | Optimizer = torch.optim.SGD,
        *,
        target_group_sparsity: float | None = None,
        target_params: float | None = None,
        target_macs: float | None = None,
        target_latency: float | None = None,
        total_steps: int | None = None,
        start_step: int | None = None,
        end_step: int | None = None,
        periods: int | None = None,
        saliency: str | Criterion | None = None,
        saliency_batches: int | None = None,
        min_kept: PerFamily | None = None,
        max_group_sparsity: PerFamily = 1.0,
        round_to: int = 1,
        unprunable: Iterable[str] = (),
        **base_kwargs: Any,
    ) -> None:
        self.zigs = partition(gm)
        _check_unchanged(self.zigs, tensor_names(gm))
        periods = self._PERIODS if periods is None else periods
        self.schedule = Schedule.of(total_steps, start_step, end_step, periods, self._END_AT)
        self.saliency = criterion(self._SALIENCY if saliency is None else saliency)
        self.saliency_batches = self._BATCHES if saliency_batches is None else saliency_batches
        if self.saliency_batches < 1:
            raise SettingsError(f"saliency_batches must be at least 1, found {saliency_batches}")
        self.target = _target(
            gm,
            self.zigs,
            {
                "group sparsity": target_group_sparsity,
                "params": target_params,
                "macs": target_macs,
                "latency": target_latency,
            },
        )
        families = self.zigs.families
        alone = _left_alone(gm, families, tuple(unprunable))
        self.limits = _limits(self.target, families, alone, min_kept, max_group_sparsity, round_to)
        self.base = _build(base, gm, base_kwargs)
        _check_covered(gm, families, self.base)
        super().__init__(self.base.param_groups, self.base.defaults)
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self._gm, self._rows = gm, Rows(gm, families)
        self._steps = 0
        self._observed: list[dict[str, Tensor]] = []
        self._batches = 0
        self._loss: Tensor | float | None = None
        self.trajectory = Trajectory(self.zigs.num_zigs, self.target.describe(self.target.left))
        Context.of(gm).provide(self.trajectory).attach(gm)

    # -- what subclasses say ---------------------------------------------------------------------------

    @abstractmethod
    def prune(self, rows: Rows, period: Period, step: int) -> None:
        """Take one step inside the window: call ``self.base.step()`` and bring the active ZIGs nearer to zero."""

    def begin(self, rows: Rows, period: Period) -> None:
        """Called when the ZIGs of a period have been made active."""

    # -- what users read -------------------------------------------------------------------------------

    @property
    def group_sparsity(self) -> float:
        """The fraction of prunable ZIGs that are zero now."""
        return self.zigs.group_sparsity()

    def reached(self) -> dict[str, float]:
        """What zero ZIGs make of the model now: group sparsity, and fractions of params and MACs that would be left."""
        removed = self.zigs.removed()
        found = {
            "group sparsity": float(removed.sum()) / self.zigs.num_zigs,
            "params": self.zigs.params.left(removed) / self.zigs.params.total,
            "macs": self.zigs.macs.left(removed) / max(self.zigs.macs.total, 1),
        }
        if self.target.name not in found:
            found[self.target.name] = self.target.fraction(removed)
        return found

    def note_loss(self, loss: Tensor | float) -> None:
        """Keep the loss of the coming step for ``report``; not needed if ``step`` is given a closure."""
        self._loss = loss

    # -- the step --------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the closure's loss, if there is one.

        Raises:
            TrainingError: no parameter has a gradient, or NaN is met when ZIGs are to be chosen; nothing is changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = self._loss = closure()
        if all(p.grad is None for group in self.param_groups for p in group["params"]):
            raise TrainingError("no parameter has a gradient: call backward() before step()")
        now = self._steps
        if self.schedule.observes(now, self.saliency_batches):
            self._observe()
        period = self.schedule.period(now)
        if period is None:
            self.base.step()
        else:
            if now == period.start:
                self._choose(period)
            self.prune(self._rows, period, now)
        self._rows.keep_zero()
        if period is not None and now + 1 == period.end:
            self._rows.retire(self.base)
        self._close_step(now, period)
        return loss

    def _close_step(self, now: int, period: Period | None) -> None:
        self._steps += 1
        self.trajectory.add(now, self._rows.count_zero(), self._loss)
        self._loss = None
        if period is not None and self._steps == self.schedule.end:
            self.trajectory.reached = ", ".join(
                f"{name} {value:.4f}" if name == "group sparsity" else f"{name} left {value:.4f}"
                for name, value in self.reached().items()
            )

    def _observe(self) -> None:
        """Add the gradients of this mini-batch to the statistics."""
        sign = {id(p): -1.0 for group in self.param_groups for p in group["params"] if group.get("maximize")}
        fresh = [zigs.tensors() for zigs in self._rows.statistics(sign)]
        if self._observed:
            pairs = zip(self._observed, fresh, strict=True)
            fresh = [{name: old[name] + value for name, value in new.items()} for old, new in pairs]
        self._observed = fresh
        self._batches += 1

    def _choose(self, period: Period) -> None:
        """Find the redundant set of this period."""
        _check_unchanged(self.zigs, self._rows.named(), tensor_names(self._gm))
        scores = self._scores()
        self._observed, self._batches = [], 0
        chosen = select(scores, self.limits, self.target, self.target.part_way(period.done), self._rows.gone)
        self._rows.activate(chosen)
        self.begin(self._rows, period)

    def _scores(self) -> list[Tensor]:
        zigs = [
            ZIGStatistics(**{name: total / self._batches for name, total in sums.items()}, family=family)
            for sums, family in zip(self._observed, self.zigs.families, strict=True)
        ]
        if not all(bool(family.dot_square.isfinite().all()) for family in zigs):
            raise TrainingError(
                f"the gradients, or the parameters, hold NaN or infinite values around step {self._steps}, where ZIGs "
                "are to be chosen: lower the learning rate, clip the gradients, or use a GradScaler in half precision"
            )
        if not any(bool(family.gradient.any()) for family in zigs):
            raise TrainingError("no ZIG has a gradient at the start of pruning: is the prepared model being trained?")
        scores = [score.detach().cpu() for score in self.saliency(zigs)]
        sizes = [tuple(score.shape) for score in scores]
        if sizes != [(len(family),) for family in self.zigs.families] or any(score.isnan().any() for score in scores):
            raise SettingsError(
                f"saliency must return a tensor of {len(self.zigs.families)} families' scores, one number for each "
                f"ZIG and no NaN; expected shapes {[(len(f),) for f in self.zigs.families][:4]}…, found {sizes[:4]}…"
            )
        return scores

    # -- what torch's tools need -----------------------------------------------------------------------

    def train(self) -> None:
        """For bases that have it, such as schedule-free ones: go to training parameters; zero ZIGs stay zero."""
        self._switch("train")

    def eval(self) -> None:
        """For bases that have it, such as schedule-free ones: go to averaged parameters; zero ZIGs stay zero."""
        self._switch("eval")

    @torch.no_grad()
    def _switch(self, mode: str) -> None:
        if not hasattr(self.base, mode):
            raise AttributeError(f"{type(self.base).__name__}, the base optimizer, has no method {mode!r}")
        getattr(self.base, mode)()
        self._rows.keep_zero()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base as well."""
        if hasattr(self, "_rows"):  # the list of groups is the base's own
            self.base.add_param_group(param_group)
        else:
            super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base's state and, under the key ``"zigs"``, everything else that a training needs to be resumed."""
        own = {
            "step": self._steps,
            "active": self._rows.active,
            "gone": self._rows.gone,
            "zero": self._rows.zero,
            "observed": self._observed,
            "batches": self._batches,
            "trajectory": self.trajectory.state(),
            **self.own_state(),
        }
        return {**self.base.state_dict(), _KEY: own}

    def own_state(self) -> dict[str, Any]:
        """What a subclass adds to the state."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take up ``own_state()``."""

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from ``state_dict()``; the model's own state dict, masks included, is restored apart.

        Raises:
            SettingsError: the state is not that of such an optimizer, or of this model.
        """
        if _KEY not in state_dict:
            raise SettingsError(f"this state was not saved by {type(self).__name__}: the key {_KEY!r} is missing")
        own = state_dict[_KEY]
        if len(own["gone"]) != len(self.zigs.families):
            raise SettingsError(
                f"this state has {len(own['gone'])} families, the model has {len(self.zigs.families)}: it is "
                "another model's"
            )
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != _KEY})
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self._steps, self._batches = own["step"], own["batches"]
        device = self._rows.device
        self._observed = [{name: v.to(device) for name, v in values.items()} for values in own["observed"]]
        self._rows.restore(own["active"], own["gone"], own["zero"])
        self.trajectory.restore(own["trajectory"])
        self.load_own_state(own)


def _target(gm: GraphModule, zigs: Partition, wanted: dict[str, float | None]) -> Target:
    """The one target that was given."""
    given = {name: value for name, value in wanted.items() if value is not None}
    if len(given) != 1:
        raise SettingsError(
            "give one of target_group_sparsity, target_params, target_macs and target_latency, as a fraction of the "
            f"full model; found {' and '.join(map(_option, given)) or 'none'}"
        )
    name, value = next(iter(given.items()))
    if not 0 < value < 1:
        raise SettingsError(f"{_option(name)} must be between 0 and 1, both excluded; found {value}")
    if not zigs.families:
        raise SettingsError("no axis of this model can be pruned: print(fx_oto.partition(gm)) gives the reasons")
    if name == "group sparsity":
        return Target(name, 1 - value, _count(zigs))
    known = {"params": zigs.params, "macs": zigs.macs}
    return Target(name, value, known[name] if name in known else Latency(gm))


def _option(name: str) -> str:
    return f"target_{name.replace(' ', '_')}"


def _limits(
    target: Target,
    families: tuple[Family, ...],
    alone: list[bool],
    min_kept: PerFamily | None,
    max_group_sparsity: PerFamily,
    round_to: int,
) -> Limits:
    """The limits, within which the target must be; the default minimum gives way where it is not."""
    for least in (target.uniform / 2, 1) if min_kept is None else (min_kept,):
        limits = Limits.of(families, alone, least, max_group_sparsity, round_to)
        reachable = target.fraction(torch.tensor(limits.most))
        if reachable <= target.left + 1e-9:
            return limits
    asked = 1 - target.left if target.name == "group sparsity" else target.left
    raise SettingsError(
        f"{_option(target.name)}={asked:g} cannot be reached: with the minimum kept of each family and the other "
        f"limits, what can be reached is {target.describe(reachable)}; change the target, min_kept, "
        "max_group_sparsity or round_to"
        + (f" ({sum(alone)} families are left alone: unprunable, or with requires_grad=False)" if any(alone) else "")
    )


def _count(zigs: Partition) -> Price:
    """ZIGs that are left, as a quantity."""
    sizes = torch.tensor([len(family) for family in zigs.families])
    members = torch.arange(len(sizes)).repeat_interleave(sizes)
    return Price.of([zigs.num_zigs], [(0, 0, members)], sizes)


def _left_alone(gm: nn.Module, families: tuple[Family, ...], unprunable: tuple[str, ...]) -> list[bool]:
    """Families that match a pattern, or of which some variable must not be trained."""
    for pattern in unprunable:
        if not any(family.matches(pattern) for family in families):
            raise SettingsError(
                f"the pattern {pattern!r} in unprunable matches no family; families are called "
                + ", ".join(repr(family.name) for family in families[:3])
            )
    tensors = tensor_names(gm)
    return [
        not all(tensors[slot.tensor].requires_grad for slot in family.variables)
        or any(family.matches(pattern) for pattern in unprunable)
        for family in families
    ]


def _build(base: type[Optimizer] | Optimizer, gm: nn.Module, kwargs: dict[str, Any]) -> Optimizer:
    if isinstance(base, torch.optim.LBFGS) or base is torch.optim.LBFGS:
        raise SettingsError("LBFGS takes several steps in one, which cannot be corrected: use another base")
    if not isinstance(base, Optimizer):
        return base(gm.parameters(), **kwargs)
    if kwargs:
        raise SettingsError(
            f"base is an optimizer already, so {sorted(kwargs)} cannot be used: set them when building it"
        )
    return base


def _check_covered(gm: nn.Module, families: tuple[Family, ...], base: Optimizer) -> None:
    """The base must hold every variable; what else it holds is only trained."""
    held = {id(p) for group in base.param_groups for p in group["params"]}
    tensors = tensor_names(gm)
    for family in families:
        for slot in family.variables:
            if id(tensors[slot.tensor]) not in held and tensors[slot.tensor].requires_grad:
                raise SettingsError(
                    f"the base optimizer does not hold {slot.tensor!r}, which belongs to prunable ZIGs: build it over "
                    "gm.parameters() (or the model's own), or keep it whole by prepare(…, unprunable=…)"
                )
    others = held - {id(p) for p in gm.parameters()}
    if others:
        warnings.warn(
            f"the base optimizer also holds {len(others)} tensors that are no parameters of gm: they are trained, but "
            "not pruned; if they should be, prepare the model that holds them",
            FxOtoWarning,
            stacklevel=4,
        )


def _check_unchanged(zigs: Partition, tensors: dict[str, Tensor], now: dict[str, Tensor] | None = None) -> None:
    """The parameters must be those that ``prepare`` saw."""
    for family in zigs.families:
        for slot in family.variables:
            tensor = tensors.get(slot.tensor)
            if tensor is not None and (now is None or now.get(slot.tensor) is tensor):
                fits = tensor.ndim > slot.dim and int(slot.index.max()) < tensor.size(slot.dim)
                if fits and tensor.numel() == slot.numel * tensor.size(slot.dim):
                    continue
            found = "it is gone" if tensor is None else f"it is another tensor of shape {tuple(tensor.shape)}"
            raise SettingsError(
                f"{slot.tensor!r} is not what prepare found: {found}. The model was changed since; call "
                "fx_oto.prepare on the changed model and build the optimizer anew"
            )
