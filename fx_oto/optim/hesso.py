"""HESSO (arXiv 2409.09085), the authors' successor of DHSPG: progressive pruning on a fixed schedule."""

from __future__ import annotations

from fx_oto.optim.rows import Rows
from fx_oto.optim.schedule import Period
from fx_oto.optim.sparsifier import GroupSparseOptimizer

__all__ = ["HESSO"]


class HESSO(GroupSparseOptimizer):
    """Hybrid efficient structured sparse optimizer: the base's step for all, then a fixed shrinkage of the redundant.

    In a period of D steps a share of the redundant ZIGs is chosen by the mean of five normalised scores; after the
    base's step t of the period they are multiplied by (D − t − 1)/(D − t), so that they are zero at its end. There is
    no λ and nothing depends on the gradient but the choice.

    Arguments and errors are those of ``DHSPG``, without ``lam``, ``amplify``, ``hat``, ``epsilon`` and ``stride``.
    Defaults are the authors': ten periods from a tenth to a quarter of the steps, ``saliency="hesso"``, one mini-batch.

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

    def prune(self, rows: Rows, period: Period, step: int) -> None:
        """The base's step, then the shrinkage."""
        self.base.step()
        rows.scale(period.fade(step, start=0.0))
