"""HESSO (arXiv 2409.09085), the authors' successor of DHSPG: progressive pruning on a fixed schedule."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

from fx_oto.optim.rows import Rows
from fx_oto.optim.saliency import ZIGStatistics
from fx_oto.optim.schedule import Period
from fx_oto.optim.sparsifier import GroupSparseOptimizer

__all__ = ["HESSO"]


class HESSO(GroupSparseOptimizer):
    """Hybrid efficient structured sparse optimizer: the base's step for all, then a fixed shrinkage of the redundant.

    In a period of D steps a share of the redundant ZIGs is chosen by the mean of five normalised scores, compared over
    all families, of the variables and the direction in which the base is about to go; after the base's step t of the
    period they are multiplied by (D − t − 1)/(D − t), so that they are zero at its end. There is no λ and nothing
    depends on the gradient but the choice. Of N ZIGs and a ``target_group_sparsity`` s, K = ⌊sN⌋ go, ⌊K/P⌋ in each of P
    periods and the rest in the last.

    Arguments and errors are those of ``DHSPG``, without ``lam``, ``amplify``, ``hat``, ``epsilon`` and ``stride``.
    Defaults are the authors': ten periods from a tenth to a quarter of the steps, ``saliency="hesso"``,
    ``allocation="global"``, one mini-batch. When it chooses, it holds a copy of the parameters and the base's state for
    the length of a step. It differs from their code in that any base can be used, of which the step
    (x − x̂)/α is scored, for AdamW with its weight decay; other targets than group sparsity can be set; and what must
    not go is made up for by others, so that the target is met.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> optimizer = fx_oto.HESSO(gm, torch.optim.SGD, lr=0.1, target_params=0.6, total_steps=20)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     gm(torch.randn(16, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> optimizer.reached()["params"] <= 0.6
        True
    """

    _END_AT = 0.25
    _PERIODS = 10
    _SALIENCY = "hesso"
    _BATCHES = 1
    _ALLOCATION = "global"

    def left_after(self, period: Period) -> float:
        """As the authors round it, where group sparsity is asked for."""
        if self.target.name != "group sparsity":
            return super().left_after(period)
        everything, periods = self.zigs.num_zigs, self.schedule.periods
        wanted, number = int(everything * (1 - self.target.left) + 1e-9), round(period.done * periods)
        return 1 - (wanted if number == periods else wanted // periods * number) / everything

    def statistics(self) -> list[ZIGStatistics]:
        """Of the direction in which the base is about to go."""
        with _step_as_gradient(self.base):
            return self._rows.statistics({})

    def prune(self, rows: Rows, period: Period, step: int) -> None:
        """The base's step, then the shrinkage."""
        self.base.step()
        rows.scale(period.fade(step, start=0.0))


@contextmanager
def _step_as_gradient(base: Optimizer) -> Iterator[None]:
    """Show, in the place of gradients, the direction (x − x̂)/α of the base's next step, which is not taken."""
    rates = {p: group["lr"] for group in base.param_groups for p in group["params"] if p.grad is not None}
    settings = [{key: value for key, value in group.items() if key != "params"} for group in base.param_groups]
    before = [(p, p.detach().clone(), p.grad) for p in rates]
    state = {p: {key: _copied(value) for key, value in held.items()} for p, held in base.state.items()}
    try:
        base.step()
        moved = [x - p for p, x, _ in before]
    finally:
        for p, x, _ in before:
            p.copy_(x)
        base.state.clear()
        base.state.update(state)
        for group, held in zip(base.param_groups, settings, strict=True):
            group.update(held)
    try:
        for (p, _, gradient), way in zip(before, moved, strict=True):
            p.grad = way / rates[p] if rates[p] else gradient
        yield
    finally:
        for p, _, gradient in before:
            p.grad = gradient


def _copied(value: object) -> object:
    return value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
