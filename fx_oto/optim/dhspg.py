"""Dual half-space projected gradient (DHSPG, after OTOv2, section 3.2): train while ZIGs become exactly zero."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.optim import Optimizer

from fx_oto.core.errors import SettingsError
from fx_oto.core.warn import warn
from fx_oto.optim.arguments import checked
from fx_oto.optim.ranks import is_distributed
from fx_oto.optim.rows import Rows
from fx_oto.optim.schedule import Period
from fx_oto.optim.sparsifier import GroupSparseOptimizer

__all__ = ["DHSPG", "Dual", "Moments", "dual_step"]

_STRIDES, _LONGEST_STRIDE = 200, 16
_PACE = 0.4  # of a period: in so much of it λ brings a ZIG of its family's mean norm to zero
_SMALL = 0.2  # of the mean norm: a ZIG that has become so small is as good as zero


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


def dual_step(
    moments: Moments, lam: Tensor | float, amplify: float, hat: float, epsilon: float, small: Tensor | float = 0.0
) -> Dual:
    """The dual update of redundant ZIGs, from inner products only.

    With x a ZIG's variables before the step, x̂ after the base optimizer's step, α the learning rate and
    d = (x − x̂)/α the effective gradient:

    - ⟨x, d⟩ ≥ 0: λ_g = λ, for both goals agree.
    - ⟨x, d⟩ < 0: λ_min = −⟨x, d⟩/‖x‖ (above it ‖x‖ shrinks to first order), λ_max = −‖d‖²‖x‖/⟨x, d⟩ (below it f
      still descends), and λ_g = max(λ, min(amplify · λ_min, hat · λ)), put back to (λ_min + λ_max)/2 if that is
      outside (λ_min, λ_max).
    - ⟨x, d⟩ < 0 and ‖x‖ < ``small``: f has no say any more. There is no λ_max, and λ_g is amplify · λ_min where that is
      above hat · λ.
    - half-space test: ⟨x̂ − αλ_g x/‖x‖, x⟩ < ε‖x‖² ⇒ the ZIG becomes 0.

    The authors cap λ_g at hat · λ even below λ_min, and so lose the guarantee that ‖x‖ shrinks; here it is kept. And
    they know no ``small``: but filters before a normalization have gradients that grow like 1/‖x‖, so that λ_min and
    λ_max meet, and λ_g falls to a fraction of λ, just where a ZIG is nearly zero.

    Args:
        moments: inner products for each ZIG, ``moments.dot`` and ``moments.gradient`` those of d.
        lam: λ > 0, in the units of a gradient norm.
        amplify: factor on λ_min, > 1.
        hat: factor on λ, > 1: the largest λ_g that amplification may reach.
        epsilon: half-space parameter in [0, 1); the larger, the sooner ZIGs are projected.
        small: norm of a ZIG that is as good as zero.
    """
    norm = moments.square.sqrt()
    safe = norm.clamp_min(torch.finfo(norm.dtype).tiny)
    lower = (-moments.dot / safe).clamp_min(0)
    upper = torch.where((moments.dot < 0) & (norm >= small), -moments.gradient * norm / moments.dot, math.inf)
    wanted = (amplify * lower).clamp(max=hat * lam).clamp(min=lam)
    # Both goals in one step: above ``lower`` the norm shrinks to first order, below ``upper`` f still descends; by
    # Cauchy and Schwarz lower <= upper, and they meet where x and d are antiparallel. In between ``wanted`` is kept;
    # outside, the middle is as far from either end as can be. Where f agrees, or has no say, there is no upper bound.
    inside = (wanted > lower) & (wanted < upper)
    lam_g = torch.where(inside, wanted, torch.where(upper.isinf(), amplify * lower, (lower + upper) / 2))
    shrink = lam_g / safe
    reached = moments.square - moments.step_dot - shrink * moments.scaled_square
    return Dual(shrink, (reached < epsilon * moments.square) | (norm == 0))


class DHSPG(GroupSparseOptimizer):
    """Dual half-space projected gradient: wraps any torch optimizer and trains while redundant ZIGs become zero.

    The problem (after OTOv2, section 3.2) is min f(x) subject to K zero groups among the ZIGs. With x a redundant ZIG's
    variables before a step, x̂ after the base optimizer's step, α the learning rate and d = (x − x̂)/α:

    1. Before ``start_step``: the base's steps for all.
    2. At ``start_step``: a redundancy score of every ZIG (``saliency``), from its variables and their gradients over
       ``saliency_batches`` mini-batches, says which of a family go, and ``allocation`` how many of each family, as few
       as reach the target. These are redundant; the rest is important.
    3. In the window, important ZIGs take the base's step, and redundant ones go to x̃ = x̂ − α λ_g x/‖x‖, where λ_g is λ
       if ⟨x, d⟩ ≥ 0, else between −⟨x, d⟩/‖x‖, above which ‖x‖ shrinks, and −‖d‖²‖x‖/⟨x, d⟩, below which f still
       descends (``dual_step``). Where ⟨x̃, x⟩ < ε‖x‖², the ZIG leaves its half-space and becomes 0, for good.
    4. In the second half of the window (or period, see ``periods``), a redundant ZIG that is not zero yet is also
       multiplied by (T − t − 1)/(T − t) at step t, T being the end: nothing is left then, and there is no cliff.
    5. After ``end_step``: the base's steps for all, and what is zero stays zero.

    It differs from the authors' optimizer in that:

    - any base can be used, the regulariser never enters its buffers, and the bounds of λ_g are those of its steps,
      momentum and weight decay included; ``amplify`` and ``hat`` are the same for all bases (theirs for Adam are 20 and
      1000);
    - λ comes from the data, and ε from the window; λ_g never falls below the bound that makes ‖x‖ shrink (theirs is
      capped at hat · λ), and where ‖x‖ is a fifth of what is usual in its family, λ_g has no upper bound;
    - every family loses the same share, those first without which the loss would change least; theirs go by ``"otov2"``
      over all families (``saliency="otov2", allocation="global"``), where the size of a ZIG makes most of the choice;
    - other targets can be set than a group sparsity; raw gradients of several mini-batches are scored;
    - redundant ZIGs that have not been projected are shrunk to zero instead of being left, so the target is met;
    - a ``stride`` of several steps of the base may count as one; and the whole state is in ``state_dict()``.

    The loop may train the prepared GraphModule or the eager model, whose parameters it shares. Schedulers,
    ``GradScaler``, clipping and accumulation work as with the base alone, whose param groups and state these are.
    Parameters may be sharded over processes, by ``fully_shard`` after ``prepare`` and before the optimizer is made.

    Args:
        gm: a prepared GraphModule.
        base: an optimizer class, built over ``gm.parameters()`` with ``base_kwargs``, or an instance.
        target_group_sparsity: fraction of the prunable ZIGs to make zero. Of the four targets one is given, in (0, 1).
        target_params: fraction of the parameters to be left in the compact model.
        target_macs: fraction of the multiply-adds to be left, on the example inputs.
        target_latency: fraction of the latency to be left, measured on the example inputs and the model's device.
        total_steps: length of the training, in steps; sets ``start_step`` to a tenth and ``end_step`` to four tenths.
        start_step: first step of the pruning window (0 if ``total_steps`` is not given).
        end_step: the step by which the target is reached.
        periods: equal parts of the window (1); with more, each chooses and drives out its share.
        saliency: which ZIGs of a family go: ``"taylor1"`` (the smallest mean of |⟨x, g⟩|, by which the loss would
            change to first order), ``"taylor2"``, ``"magnitude"`` (the smallest root mean square of the variables),
            ``"otov2"`` (the authors' score), ``"hesso"``, ``"blend"``, or a callable that takes a sequence of
            ``ZIGStatistics`` and returns scores, larger = more redundant. In trainings from scratch none was found to
            be better than chance; of trained networks ``"taylor1"`` takes what is needed least
            (``benchmarks/README.md``).
        saliency_batches: steps whose gradients are scored, up to and including the one at which ZIGs are chosen (20).
        allocation: how many ZIGs of each family go: ``"uniform"``, the same share of each; ``"global"``, by the scores,
            compared over all families, as in the paper: such scores have no common unit, so that whole families may go
            but for ``min_kept``; or a callable that takes ``gm`` and returns the loss of some mini-batches, such as
            ``lambda gm: cross_entropy(gm(x), y)``: by the loss without 12.5 to 90% of each family, five calls for each,
            over what they save (two measurements for each, where that is latency), in eval mode, but batch
            normalizations with the batch's statistics. Trained networks
            should be asked so; in trainings from scratch the same share is as good (``benchmarks/README.md``).
        min_kept: how many ZIGs of a family are kept: a count (int) or a fraction (float), or a dict of these by glob of
            parameter or module names (1). 0 (int) lets all of a family go where a whole branch goes with it and outputs
            stay, such as the MLP of a layer or a residual block, and ``allocation`` is another than ``"uniform"``, by
            which all families would go at once. Of others at least one is kept.
        max_group_sparsity: largest fraction of a family to make zero, or a dict by glob (1.0).
        round_to: the channels left of each family are a multiple of this number, or all of them (1).
        uniform: globs of parameter or module names: the families that one of them matches, or one of several in a
            tuple, keep the same fraction of their ZIGs, as the layers of a transformer must, of which a configuration
            gives the width only once; ``config_limits`` finds them.
        unprunable: globs of parameter or module names whose families are left alone, as are families with a
            parameter that does not require gradients, or that make gradients of NaN once they are zero, as before
            ``x.var(2).sqrt()``, both with a warning; all of them count in the full model.
        prune_frozen: True prunes the latter, too, as of a frozen model under low-rank adapters: what is not trained is
            scored by its numbers, and moves by the pruning alone (False).
        progress: True shows a bar of the training's steps on stderr, with the group sparsity; None a bar of
            measurements of latency alone, and only where stderr is a terminal or in a notebook; False none. Twenty
            lines of a training go to the logger ``fx_oto`` at level INFO in any case.
        lam: λ > 0, in units of the gradient norm; None: for each family such that a ZIG of its redundant ones' mean
            norm would reach zero in two fifths of the period (time to zero ≈ ‖x‖/(αλ) steps), at whatever learning rate
            α the schedule gives.
        amplify: factor on the lower bound of λ_g, > 1 (2).
        hat: factor on λ, > 1: the largest λ_g that amplification may reach (10).
        epsilon: half-space parameter ε in [0, 1); the larger, the sooner ZIGs are projected. None: such that λ projects
            a ZIG once a fifth of that mean norm is left of it: 1 − 12.5 · stride/steps of the period, or 0 in periods
            that are shorter than that (0.94 in one of 200 steps; the authors' recipes give 0.9 to 0.95).
        stride: the dual step is taken every so many steps; the base's steps in between count as one, with x̂ at their
            end, and λ counts as often. None: a two-hundredth of the window, at least 1 and at most 16, for a dual step
            costs as much as some steps of the base, and reads one flag for each ZIG from the device.
        base_kwargs: arguments of the base class, such as ``lr=0.1, momentum=0.9``.

    Raises:
        SettingsError: a setting cannot work, or the target cannot be reached; nothing is changed.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, total_steps=20)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     gm(torch.randn(16, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> optimizer.reached()["group sparsity"]
        0.5
    """

    _END_AT = 0.4
    _PERIODS = 1
    _SALIENCY = "taylor1"
    _BATCHES = 20
    _ALLOCATION = "uniform"

    def __init__(
        self,
        gm: GraphModule,
        base: type[Optimizer] | Optimizer = torch.optim.SGD,
        *,
        lam: float | None = None,
        amplify: float = 2.0,
        hat: float = 10.0,
        epsilon: float | None = None,
        stride: int | None = None,
        **settings: Any,
    ) -> None:
        checked("amplify", amplify, lambda one: one > 1, "above 1")
        checked("hat", hat, lambda one: one > 1, "above 1")
        if epsilon is not None:
            text = "in [0, 1), or None to choose it from the window"
            checked("epsilon", epsilon, lambda one: 0 <= one < 1, text)
        if lam is not None:
            checked("lam", lam, lambda one: one > 0, "above 0, or None to choose it from the gradients")
        if stride is not None:
            text = "at least 1 (int), or None to choose it from the window"
            checked("stride", stride, lambda one: one > 0, text, int)
        self.lam, self.amplify, self.hat, self.epsilon = lam, amplify, hat, epsilon
        self.stride = stride
        super().__init__(gm, base, **settings)
        self._speeds = torch.zeros(len(self.zigs.families), dtype=torch.float64)

    def begin(self, rows: Rows, period: Period) -> None:
        """For each family, find αλ by which an active ZIG of mean norm reaches zero in two fifths of the period."""
        rows.remember()
        pairs = zip(rows.blocks, rows.before, strict=True)
        squares = rows.sums(1, (block.rows(x).flatten(1).square().sum(1)[None] for block, x in pairs))
        norms = squares[0].sqrt().cpu().double().split([len(mine) for mine in rows.active])
        means = torch.stack([mine.sum() / max(len(mine), 1) for mine in norms])
        self._speeds = means / (_PACE * (period.end - period.start))

    def prune(self, rows: Rows, period: Period, step: int) -> None:
        """The base's step; at the end of a stride, the dual half-space step of the active ZIGs."""
        taken = self._taken(period, step)
        if taken == 1:
            rows.remember()
        self.base.step()
        if rows.count and (taken == self._stride(period) or step + 1 == period.end):
            rows.keep_zero()  # entries that an active ZIG shares with one that is gone say nothing, NaN least of all
            self._correct(rows, period, taken, period.fade(step, taken))

    def _stride(self, period: Period) -> int:
        return self.stride or max(1, min(_LONGEST_STRIDE, (period.end - period.start) // _STRIDES))

    def _epsilon(self, period: Period) -> float:
        """ε as it was given, or such that ⟨x̃, x⟩ = ε‖x‖² where λ alone takes a stride from a small ZIG."""
        if self.epsilon is not None:
            return self.epsilon
        return max(0.0, 1 - self._stride(period) / _last_steps(period))

    def _taken(self, period: Period, step: int) -> int:
        """Steps of the current stride up to and including ``step``."""
        return (step - period.start) % self._stride(period) + 1

    def _correct(self, rows: Rows, period: Period, taken: int, fade: float) -> None:
        moved = rows.moved()
        rates = {
            id(block.tensor): self.param_groups[0]["lr"] for block in rows.blocks
        }  # of what the base does not hold
        rates |= {id(p): group["lr"] for group in self.param_groups for p in group["params"]}
        moments = _moments(rows, moved, rates)
        speeds = self._speeds.repeat_interleave(torch.tensor([len(mine) for mine in rows.active])).to(moments.square)
        small = _last_steps(period) * speeds
        lam, epsilon = self._lambda(moments, speeds) * taken, self._epsilon(period)
        dual = dual_step(moments, lam, self.amplify, self.hat, epsilon, small)
        shrink = torch.where(dual.project, 0.0, fade * dual.shrink)
        for block, values, step_taken in zip(rows.blocks, rows.before, moved, strict=True):
            scale = fade - block.per_row(shrink) * rates[id(block.tensor)]
            block.rows(values).mul_(scale).sub_(block.rows(step_taken), alpha=fade)  # fade · (x̂ − shrink · x)
            block.write(values)
        if not moments.square.isfinite().all():
            warn(
                "redundant ZIGs hold NaN or infinite values: the training diverged; restore a checkpoint, and lower "
                "the learning rate or clip the gradients. If gradients were clipped by their norm, and code divides "
                "weights by theirs: the gradient of sqrt(w.square().sum()) is NaN where a ZIG is zero, which clipping "
                "spreads to all; write sqrt(w.square().sum() + eps), or w.norm()"
            )
        rows.retire(self.base, dual.project)

    def _lambda(self, moments: Moments, speeds: Tensor) -> Tensor | float:
        """λ as it was given, or αλ over the mean learning rate, weighted by the variables' squares."""
        if self.lam is not None:
            return self.lam
        return speeds * moments.square.sum() / moments.scaled_square.sum().clamp_min(1e-30)

    def own_state(self) -> dict[str, Any]:
        """αλ of the current period by family, and inside a stride the active ZIGs as they were when it began.

        Where ``torch.distributed`` is used, there is a place for them at any step: its checkpoints fill what is there.
        """
        wanted = self._inside() or (is_distributed() and self._stride(self._longest()) > 1)
        return {"speeds": self._speeds, "before": self._rows.before_by_name() if wanted else {}}

    def settings(self) -> dict[str, str]:
        """With the stride, inside of which a state may be saved."""
        return {**super().settings(), "stride": f"stride={self._stride(self._longest())}"}

    def _longest(self) -> Period:
        return Period(0, -(-(self.schedule.end - self.schedule.start) // self.schedule.periods), 1.0)

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take up ``state``, what ``own_state()`` has returned.

        Raises:
            SettingsError: it was saved inside a stride, by a process that did not know that it holds a part only.
        """
        self._speeds = state["speeds"].cpu().double()
        if self._inside():
            if not state["before"]:
                raise SettingsError(
                    "this state was saved inside a stride, and does not tell where that began: call "
                    "torch.distributed.init_process_group before the state dict is made that a checkpoint is loaded "
                    "into, or train with stride=1"
                )
            self._rows.restore_before(state["before"])

    def _inside(self) -> bool:
        """Whether the next step continues a stride."""
        period = self.schedule.period(self._steps)
        return period is not None and self._taken(period, self._steps) > 1


def _last_steps(period: Period) -> float:
    """In how many steps λ alone brings a small ZIG to zero."""
    return _SMALL * _PACE * (period.end - period.start)


def _moments(rows: Rows, moved: list[Tensor], rates: dict[int, Any]) -> Moments:
    """Inner products of the active variables with their effective gradient (x − x̂)/α."""

    def parts() -> Iterator[Tensor]:
        for block, values, step in zip(rows.blocks, rows.before, moved, strict=True):
            rate = rates[id(block.tensor)]
            inverse = torch.as_tensor(rate, dtype=rows.dtype).reciprocal().nan_to_num(posinf=0.0)
            x, difference = block.rows(values).flatten(1), block.rows(step).flatten(1)
            square = torch.linalg.vector_norm(x, dim=1).square()
            gradient = (torch.linalg.vector_norm(difference, dim=1) * inverse).square()
            dot = torch.linalg.vecdot(x, difference)
            yield torch.stack((square, dot * inverse, gradient, dot, square * rate))

    return Moments(*rows.sums(5, parts()))
