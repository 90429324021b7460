"""The choice of the redundant ZIGs: mini-batches are observed, ZIGs scored, and the most redundant taken in limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fx_oto.core.errors import SettingsError, TrainingError
from fx_oto.core.fx_utils import tensor_names
from fx_oto.core.tables import counted
from fx_oto.core.warn import warn
from fx_oto.optim.allocation import Allocation, priorities
from fx_oto.optim.checks import check_unchanged
from fx_oto.optim.limits import Limits, Rules
from fx_oto.optim.ranks import of_first_rank
from fx_oto.optim.rows import Rows
from fx_oto.optim.saliency import MEANS, Criterion, ZIGStatistics, magnitude, scores_of
from fx_oto.optim.selection import ranked, select
from fx_oto.optim.spared import explained, left_alone, warn_of_untrained
from fx_oto.optim.targets import Target, is_within, limits_for
from fx_oto.zigs.partition import Partition

__all__ = ["Choice"]


class Choice:
    """Chooses the redundant ZIGs of a model, on every process of a distributed training the same.

    Args:
        gm: the prepared model.
        zigs: its partition.
        target: what is asked.
        saliency: scores ZIGs, larger = more redundant.
        allocation: how many of each family go, see ``priorities``.
        rules: what may go.
        spared: for each family, whether it must stay, whatever the rules say; None: none must.

    Attributes:
        alone: for each family, whether it was left alone from the beginning.
        limits: how many ZIGs of each family may go.
        rules: what may go, as it was given.
        held: the families that the last choice had to do without, since they were frozen, if that was too few.
        waits: whether a choice is put off until families that are frozen for a while are trained again.

    Raises:
        SettingsError: the target is not within the limits.
    """

    def __init__(
        self,
        gm: GraphModule,
        zigs: Partition,
        target: Target,
        saliency: Criterion,
        allocation: Allocation,
        rules: Rules,
        spared: Sequence[bool] | None = None,
    ) -> None:
        self._spared = spared or [False] * len(zigs.families)
        self.held: list[str] = []
        self._gm, self._zigs, self._target = gm, zigs, target
        self._saliency, self._allocation, self.rules = saliency, allocation, rules
        self.alone = self._left_alone()
        self.limits = of_first_rank(lambda: self._limits(self.alone))
        warn_of_untrained(gm, zigs.families, self.alone, rules, target)
        self.waits = self._warned = False
        self._observed: list[Tensor] = []
        self._batches = 0

    @property
    def observed(self) -> bool:
        """Whether anything was observed since the last choice."""
        return self._batches > 0

    def observe(self, families: Sequence[ZIGStatistics]) -> None:
        """Add what one mini-batch says of each family."""
        fresh = [family.means() for family in families]
        if self._observed:
            fresh = [old + new for old, new in zip(self._observed, fresh, strict=True)]
        self._observed = fresh
        self._batches += 1

    def make(self, rows: Rows, left: float, step: int, late: bool, graded: bool = True) -> bool:
        """Make the redundant ZIGs active in ``rows``, by what was observed; False if that has to wait.

        Where families are frozen for a while, and the others are not enough, it waits until they are trained again:
        else the others would have to give all that they can, and the target would be missed all the same.

        Args:
            rows: the variables of the ZIGs.
            left: the fraction of the target's quantity that is to be left.
            step: the number of the step.
            late: whether there is no more time to wait.
            graded: whether a saliency that reads gradients must find some.

        Raises:
            TrainingError: NaN is met, nothing has a gradient, or processes hold different models.
            SettingsError: the target is not within the limits, or the saliency returns something else than scores.
        """
        check_unchanged(self._zigs, rows.named(), tensor_names(self._gm))
        alone, frozen = self._left_alone(), self._newly_frozen()
        must = not (frozen and late)
        try:
            self.limits = of_first_rank(lambda: self._limits(alone, must))
            self.waits = bool(frozen) and all(alone)
        except SettingsError:
            if not frozen:
                raise
            self.waits = True
        self.held = [] if is_within(self._target, self.limits) and not self.waits else frozen
        if self.waits:
            return False
        settled = [torch.cat(pair) for pair in zip(rows.gone, rows.active, strict=True)]
        scores = self._scores(rows, step, graded)
        order = of_first_rank(lambda: ranked(scores, settled))
        early = priorities(self._allocation, self._gm, self._zigs, order, self.limits, self._target, left)
        chosen, gone = of_first_rank(lambda: (select(order, early, self.limits, self._target, left), rows.gone))
        if not all(map(torch.equal, gone, rows.gone)):
            raise TrainingError(
                f"at step {step} this process has other zero ZIGs than the first one: they do not train one model. Let "
                "DistributedDataParallel average the gradients, and load the same state in each"
            )
        rows.activate(chosen)
        return True

    def _limits(self, alone: Sequence[bool], must: bool = True) -> Limits:
        told = explained(self._gm, self._zigs.families, alone, self.rules)
        return limits_for(self._target, self._zigs, alone, self.rules, told, must)

    def _left_alone(self) -> list[bool]:
        found = left_alone(self._gm, self._zigs.families, self.rules)
        return [one or mine for one, mine in zip(found, self._spared, strict=True)]

    def _newly_frozen(self) -> list[str]:
        """The families that were to be pruned from the beginning, and hold what is not trained now."""
        pairs = zip(self._zigs.families, self.alone, self._left_alone(), strict=True)
        return [family.name for family, before, now in pairs if now and not before]

    def look_for_frozen(self, step: int, start: int) -> None:
        """Warn, once, of what is frozen before the window begins at step ``start``."""
        frozen = [] if self._warned else self._newly_frozen()
        if frozen:
            self._warned = True
            warn(
                f"{counted(len(frozen), 'family is', 'families are')} not trained now, such as {frozen[0]!r}: their "
                "parameters have requires_grad=False, which they had not when the optimizer was made. The pruning "
                f"window begins at step {start} (this is step {step}), and what is frozen is not pruned before it is "
                "trained again: let the window begin then, by start_step, if it begins too early"
            )

    def _scores(self, rows: Rows, step: int, graded: bool) -> list[Tensor]:
        sums, batches, families = self._observed, self._batches, self._zigs.families
        self._observed, self._batches = [], 0
        zigs = [
            ZIGStatistics(**dict(zip(MEANS, mine / batches, strict=True)), alive=alive, family=family)
            for mine, alive, family in zip(sums, rows.alive(), families, strict=True)
        ]
        if not torch.cat([family.dot_square for family in zigs]).isfinite().all():
            raise TrainingError(
                f"the gradients, or the parameters, hold NaN or infinite values around step {step}, where ZIGs are to "
                "be chosen: lower the learning rate, clip the gradients, or use a GradScaler in half precision"
            )
        reads = graded and self._saliency is not magnitude
        if reads and not torch.cat([family.gradient for family in zigs]).any():
            raise TrainingError(
                "no ZIG has a gradient at the start of pruning: is the prepared model being trained? A loss that only "
                "compares it with a copy of itself is at its minimum, and says of no ZIG whether it is needed: add "
                "another one, such as that of the labels, or train with dropout. Behind layers that begin at zero, as "
                "the last ones of diffusion models do, others learn from the second step on: set a later start_step"
            )
        scores = torch.cat([score.detach() for score in scores_of(self._saliency, zigs)]).cpu()  # in one piece
        if scores.isnan().any():
            raise SettingsError("saliency must return a number for each ZIG, found NaN")
        return list(scores.split([len(family) for family in families]))

    def state(self, rows: Rows) -> dict[str, Any]:
        """What a checkpoint needs, in tensors of the same shapes at any step."""
        none = [torch.zeros(len(MEANS), len(f), dtype=rows.dtype, device=rows.device) for f in self._zigs.families]
        return {"observed": self._observed or none, "batches": self._batches, "waits": self.waits}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Take up ``state``, what ``state()`` has returned."""
        self._batches, self.waits = state["batches"], state["waits"]
        self._observed = [sums.to(device) for sums in state["observed"]] if self._batches else []
