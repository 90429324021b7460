"""What every group-sparse optimizer shares: the base that it wraps, the target, the choice of ZIGs, the state."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.optim import Optimizer

from fx_oto.core.context import Context
from fx_oto.core.fx_utils import tensor_names
from fx_oto.core.progress import StepsBar, log_step
from fx_oto.core.tables import counted
from fx_oto.core.unused import parameters_of_graph
from fx_oto.framework.trajectory import Trajectory
from fx_oto.optim import arguments, checks, states
from fx_oto.optim.allocation import Allocation, check_allocation
from fx_oto.optim.choice import Choice
from fx_oto.optim.limits import Limits, PerFamily, Rules, Uniform
from fx_oto.optim.ranks import of_first_rank
from fx_oto.optim.rows import Rows
from fx_oto.optim.saliency import Criterion, ZIGStatistics, criterion
from fx_oto.optim.schedule import Period, Schedule
from fx_oto.optim.spared import steep
from fx_oto.optim.targets import find_target, fractions, in_words, reached
from fx_oto.zigs.partition import partition

__all__ = ["GroupSparseOptimizer"]


class GroupSparseOptimizer(Optimizer, ABC):
    """Wraps a torch optimizer and drives redundant ZIGs to zero; subclasses say how, in ``prune``.

    The base trains alone until ``start_step``. The pruning window that begins there is divided into periods; at the
    start of each, the ZIGs with the highest redundancy score are chosen, as many as are needed to come that much nearer
    to the target, and by its end they are exactly zero. They stay zero.

    Param groups and state are the base's own, so schedulers, ``GradScaler``, clipping and accumulation work as with
    the base alone. Arguments and errors are those of ``DHSPG``, without ``lam``, ``amplify``, ``hat``, ``epsilon`` and
    ``stride``.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> optimizer = fx_oto.HESSO(gm, torch.optim.SGD, lr=0.1, target_macs=0.5, total_steps=20)
        >>> isinstance(optimizer, fx_oto.GroupSparseOptimizer), optimizer.group_sparsity
        (True, 0.0)
        >>> optimizer.reached()
        {'group sparsity': 0.0, 'params': 1.0, 'macs': 1.0}
    """

    _END_AT: float
    _PERIODS: int
    _SALIENCY: str
    _BATCHES: int
    _ALLOCATION: str
    __signature__: ClassVar[inspect.Signature]

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
        allocation: Allocation | None = None,
        min_kept: PerFamily = 1,
        max_group_sparsity: PerFamily = 1.0,
        round_to: int = 1,
        uniform: Uniform = (),
        unprunable: Iterable[str] = (),
        prune_frozen: bool = False,
        progress: bool | None = None,
        **base_kwargs: Any,
    ) -> None:
        own = [name for name in type(self).__signature__.parameters if name not in ("gm", "base_kwargs")]
        arguments.check_not_wrapped(base, GroupSparseOptimizer)
        checks.check_keywords(type(self).__name__, base, base_kwargs, own)
        context = Context.of(gm)
        if context.original is not None:
            context.original.share(gm)
            context.original.check_shared(gm)
        self.zigs = partition(gm)
        checks.check_unchanged(self.zigs, tensor_names(gm))
        periods = self._PERIODS if periods is None else periods
        self.schedule = Schedule.of(total_steps, start_step, end_step, periods, self._END_AT)
        batches = self._BATCHES if saliency_batches is None else saliency_batches
        self.saliency_batches = arguments.checked("saliency_batches", batches, lambda n: n > 0, "at least 1 (int)", int)
        self.target = find_target(
            gm,
            self.zigs,
            {
                "group sparsity": target_group_sparsity,
                "params": target_params,
                "macs": target_macs,
                "latency": target_latency,
            },
            progress,
        )
        for price in (self.zigs.params, self.zigs.macs):
            if price.depth is not None:
                price.depth(frozenset())  # found once, and not in the middle of a step
        families = self.zigs.families
        score = criterion(self._SALIENCY if saliency is None else saliency)
        shares = check_allocation(self._ALLOCATION if allocation is None else allocation)
        rules = Rules.of(
            min_kept=min_kept,
            max_group_sparsity=max_group_sparsity,
            round_to=round_to,
            uniform=uniform,
            unprunable=unprunable,
            prune_frozen=prune_frozen,
        )
        self._choice = Choice(gm, self.zigs, self.target, score, shares, rules, steep(gm, families, rules))
        self.base = checks.build_base(base, gm, base_kwargs)
        pairs = zip(families, self._choice.alone, strict=True)
        checks.check_covered(gm, [family for family, alone in pairs if not alone], self.base)
        super().__init__(self.base.param_groups, self.base.defaults)
        self.param_groups, self.state = self.base.param_groups, self.base.state
        earlier = context.results.get(Trajectory)
        self._gm, self._rows = gm, Rows(gm, families)
        if earlier is not None and len(earlier.gone) == len(families):
            self._rows.keep_gone(earlier.gone)
        self._steps = 0
        self._idle = {name: p for name, p in parameters_of_graph(gm).items() if p.requires_grad}
        self._beside = checks.beside(gm, families)
        self._loss: Tensor | float | None = None
        asked, end = self.target.describe(self.target.left), self.schedule.end
        self.trajectory = Trajectory(self.zigs.num_zigs, asked, end=end, total=total_steps)
        if earlier is None or not earlier.steps:
            self._attach()
        self._bar = StepsBar(total_steps or self.schedule.end, self.zigs.num_zigs) if progress else None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let ``help`` and notebooks show every argument of a subclass, also those that it hands on."""
        super().__init_subclass__(**kwargs)
        cls.__signature__ = checks.signature_of(cls.__init__, GroupSparseOptimizer.__init__)

    # -- what subclasses say ---------------------------------------------------------------------------

    @abstractmethod
    def prune(self, rows: Rows, period: Period, step: int) -> None:
        """Take one step inside the window: call ``self.base.step()`` and bring the active ZIGs nearer to zero.

        Args:
            rows: the parts of the parameters that belong to the active ZIGs.
            period: the part of the window, in steps.
            step: number of the step, in ``[period.start, period.end)``.
        """

    def begin(self, rows: Rows, period: Period) -> None:
        """Called when the ZIGs of a ``period`` have been made active in ``rows``."""

    def left_after(self, period: Period) -> float:
        """The fraction of the target's quantity that is to be left when a ``period`` ends."""
        return self.target.part_way(period.done)

    def statistics(self) -> list[ZIGStatistics]:
        """What the present mini-batch says of the ZIGs of each family: here, by the gradients."""
        sign = {id(p): -1.0 for group in self.param_groups for p in group["params"] if group.get("maximize")}
        return self._rows.statistics(sign)

    # -- what users read -------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """The target, the window, what is reached, then the base optimizer's groups."""
        window, left = self.schedule, fractions(self.zigs, self._removed())
        lines = [
            f"{type(self).__name__} over {type(self.base).__name__} (",
            f"    target: {self.trajectory.asked}",
            f"    window: steps {window.start} to {window.end}, {counted(window.periods, 'period', 'periods')}",
            f"    now: step {self._steps}, " + ", ".join(in_words(name, value) for name, value in left.items()),
        ]
        return "\n".join([*lines, *super().__repr__().splitlines()[1:]])

    @property
    def limits(self) -> Limits:
        """How many ZIGs of each family may go, and in what portions."""
        return self._choice.limits

    @property
    def group_sparsity(self) -> float:
        """The fraction of prunable ZIGs that are zero now; of a sharded model, that this optimizer has made zero."""
        return float(self._removed().sum()) / self.zigs.num_zigs

    def reached(self) -> dict[str, float]:
        """What zero ZIGs make of the model now: group sparsity, and fractions of params and MACs that would be left.

        Of a sharded model those count that this optimizer has made zero, so that any process may ask alone.
        """
        return reached(self.target, self.zigs, self._removed())

    def _removed(self) -> Tensor:
        """How many ZIGs of each family are zero, or known to be."""
        if self._rows.sharded:
            return torch.tensor([len(gone) for gone in self._rows.gone])
        return self.zigs.removed()

    def note_loss(self, loss: Tensor | float) -> None:
        """Keep the ``loss`` of the coming step for ``report``; not needed if ``step`` is given a closure.

        Raises:
            InputError: it is neither a number nor a tensor of one element.
        """
        self._loss = arguments.as_loss(loss)

    @torch.no_grad()
    def project(self, module: nn.Module | Mapping[str, Tensor]) -> None:
        """Set to zero what this optimizer has made zero, in the model or any copy of it, in place.

        For weights that do not come from the last step: a checkpoint, or an average such as that of ``AveragedModel``,
        in which ZIGs that are zero now are not, or not quite.

        Args:
            module: has the model's parameters under their names, perhaps inside of a wrapper; or a state dict of such.

        Raises:
            SettingsError: a parameter is missing, or has another shape; nothing is changed.

        Example:
            >>> import torch, fx_oto
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
            >>> optimizer = fx_oto.DHSPG(gm, lr=0.1, target_group_sparsity=0.5, total_steps=20)
            >>> average = torch.optim.swa_utils.AveragedModel(net)
            >>> for _ in range(20):
            ...     net(torch.randn(16, 4)).square().mean().backward()
            ...     optimizer.step()
            ...     average.update_parameters(net)
            >>> optimizer.project(average)
            >>> int((average.module[0].weight == 0).all(1).sum())
            4
        """
        self._rows.project(module)

    # -- the step --------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the closure's loss, if there is one.

        Args:
            closure: computes the loss anew, and its gradients, as for any torch optimizer.

        Raises:
            TrainingError: no parameter has a gradient, or NaN is met when ZIGs are to be chosen; nothing is changed.
        """
        if torch.compiler.is_compiling():  # it decides by numbers at every period: nothing for a compiler
            return torch.compiler.disable(self._step)(closure)
        return self._step(closure)

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = self._loss = closure()
        checks.check_gradients(self.param_groups)
        if checks.is_rehearsal(self.param_groups, self._rows.anywhere):
            self.base.step()
            return loss
        self._attach()
        now = self._steps
        self._beside = checks.warn_of_beside(self._beside)
        if now <= self.schedule.start:
            self._idle = {name: p for name, p in self._idle.items() if p.grad is None and p.requires_grad}
            self._choice.look_for_frozen(now, self.schedule.start)
        if self.schedule.observes(now, self.saliency_batches):
            self._choice.observe(self.statistics())
        period = self.schedule.period(now)
        if period is None:
            self.base.step()
        else:
            if now == period.start or self._choice.waits:
                self._choose(period, now)
            if now == self.schedule.start:
                checks.warn_of_idle(self._idle, sum(p.requires_grad for p in parameters_of_graph(self._gm).values()))
            self.prune(self._rows, period, now)
        self._rows.keep_zero()
        if period is not None and now + 1 == period.end:
            self._rows.retire(self.base, torch.ones(self._rows.count, dtype=torch.bool))
        self._close_step(now, period)
        return loss

    def _choose(self, period: Period, now: int) -> None:
        if not self._choice.observed:
            self._choice.observe(self.statistics())
        if self._choice.make(self._rows, self.left_after(period), now, self.schedule.is_late(now)):
            self.begin(self._rows, period)

    def _attach(self) -> None:
        """Make this training the one that the GraphModule's report shows."""
        context = Context.of(self._gm)
        if context.results.get(Trajectory) is not self.trajectory:
            context.provide(self.trajectory).attach(self._gm)

    def _close_step(self, now: int, period: Period | None) -> None:
        self._steps = self.trajectory.steps = self._steps + 1
        is_last = period is not None and period.done == 1
        self.trajectory.done |= is_last and not self._rows.count and not self._choice.waits
        self.trajectory.add(now, self._rows.num_gone, self._loss)
        self.trajectory.gone, self.trajectory.held = self._rows.gone, self._choice.held
        if self._bar is not None:
            self._bar.show(self._steps, self._rows.num_gone)
        log_step(self._steps, self.trajectory.total or self.schedule.end, self._rows.num_gone, self.zigs.num_zigs)
        self._loss = None
        if period is not None and self._steps == self.schedule.end:
            found = of_first_rank(self.reached)
            self.trajectory.reached = ", ".join(in_words(name, value) for name, value in found.items())

    # -- what torch's tools need -----------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the bar, and methods that others replaced, for copies alone (torch's forgets too much)."""
        return states.copied(self) | {"_bar": None}

    def __getattr__(self, name: str) -> Any:
        """``train`` and ``eval`` where the base has them, as schedule-free ones do; zero ZIGs stay zero."""
        if name in ("train", "eval") and hasattr(self.__dict__.get("base"), name):
            return partial(self._switch, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @torch.no_grad()
    def _switch(self, mode: str) -> None:
        getattr(self.base, mode)()
        self._rows.keep_zero()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add ``param_group`` to the base as well."""
        if hasattr(self, "_rows"):  # the list of groups is the base's own
            self.base.add_param_group(param_group)
        else:
            super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base's state and, in its first param group under ``"zigs"``, all else that resuming needs.

        There it is found by whatever knows of optimizers' states, as ``torch.distributed.checkpoint.state_dict`` does.
        """
        states.call_before_saving(self)
        own = {
            "settings": self.settings(),
            "step": self._steps,
            "phases": self._rows.phases(),
            **self._choice.state(self._rows),
            "trajectory": self.trajectory.state(),
            **self.own_state(),
        }
        return states.called_after_saving(self, states.joined(self.base.state_dict(), own))

    def settings(self) -> dict[str, str]:
        """What a state must have been saved with, as it is to be said."""
        found = {"optimizer": type(self).__name__, "target": self.target.setting}
        return {**found, **self.schedule.settings(), **self._choice.rules.settings()}

    def own_state(self) -> dict[str, Any]:
        """What a subclass adds to the state."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take up ``state``, what ``own_state()`` has returned."""

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from ``state_dict``; the model's own state dict is restored apart.

        Target, window, limits and stride must be those that it was saved with; ``saliency``, ``lam`` and the like, by
        which ZIGs are chosen and driven out from here on, may be others.

        Raises:
            SettingsError: the state is not that of such an optimizer, or of this model.
        """
        state_dict = states.called_before_loading(self, state_dict)
        base, own = states.parted(state_dict, type(self).__name__)
        states.check_own(own, self.settings(), [len(family) for family in self.zigs.families])
        self.base.load_state_dict(base)
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self._steps = own["step"]
        self._choice.restore(own, self._rows.device)
        self._rows.restore_phases(own["phases"])
        self.trajectory.restore(own["trajectory"])
        self.trajectory.steps, self.trajectory.gone = self._steps, self._rows.gone
        self.load_own_state(own)
        self._attach()
        states.call_after_loading(self)
