"""How many ZIGs of each family go: scores compared over all families, the same share of each, or the measured loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fx_oto.core.errors import SettingsError
from fx_oto.core.fx_utils import is_sharded
from fx_oto.optim.arguments import number_of
from fx_oto.optim.limits import Limits
from fx_oto.optim.selection import Ranked, select
from fx_oto.optim.targets import Target
from fx_oto.optim.whatif import sensitivity
from fx_oto.zigs.partition import Partition

__all__ = ["Allocation", "check_allocation", "priorities", "with_batch_statistics"]

Allocation = str | Callable[[GraphModule], Tensor | float]
"""``"uniform"``, ``"global"``, or a callable that returns the loss of the GraphModule that it is given."""

_NAMES = ("uniform", "global")
_FRACTIONS = (0.125, 0.25, 0.5, 0.75, 0.9)


def check_allocation(allocation: Any) -> Allocation:
    """What was given for ``allocation``, if it can be used.

    Raises:
        SettingsError: it is neither a name that is known nor callable.
    """
    if callable(allocation) or allocation in _NAMES:
        return allocation  # type: ignore[no-any-return]
    raise SettingsError(
        f"allocation must be {' or '.join(map(repr, _NAMES))}, or a callable that takes the prepared model and returns "
        f"the loss of some mini-batches; found {allocation!r}"
    )


def priorities(
    allocation: Allocation,
    gm: GraphModule,
    zigs: Partition,
    ranked: Sequence[Ranked],
    limits: Limits,
    target: Target,
    left: float,
) -> list[Tensor]:
    """For each family, how early its k-th ZIG goes, larger = earlier: float64, shape ``(zigs,)``.

    - ``"global"``: by the score of that ZIG, as in the paper.
    - ``"uniform"``: by the share of the family that has gone before it.
    - measured: by the loss that it adds, over what it saves. The loss is that of the model without 12.5, 25, 50, 75 and
      90% of the family, the first in ``ranked``, made convex, so that what is dear does not hide behind noise; what
      it saves is taken at the widths that ``"uniform"`` would leave, for prices are products of widths.

    Args:
        allocation: see above.
        gm: the prepared model.
        zigs: its partition.
        ranked: for each family, its ZIGs in the order in which they go.
        limits: how many of each may go.
        target: what is saved.
        left: the fraction of it that is to be left.

    Raises:
        SettingsError: a loss is not finite, or is to be measured of a sharded model.
    """
    if allocation == "global":
        return [one.scores for one in ranked]
    shares = [-(torch.arange(len(family), dtype=torch.float64) + 1) / len(family) for family in zigs.families]
    if not callable(allocation):
        return shares
    chosen = select(ranked, shares, limits, target, left)
    prices = _prices(target, torch.tensor([len(one) for one in chosen]), torch.tensor([len(f) for f in zigs.families]))
    losses = _losses(gm, zigs, ranked, allocation)
    return [-loss / price for loss, price in zip(losses, prices, strict=True)]


def _prices(target: Target, at: Tensor, sizes: Tensor) -> list[float]:
    """What one ZIG of each family saves where ``at`` of each are gone."""
    found = []
    for i, size in enumerate(sizes.tolist()):
        none, most = at.clone(), at.clone()
        none[i], most[i] = 0, max(size - 1, 1)
        saved = (target.fraction(none) - target.fraction(most)) / int(most[i])
        found.append(max(saved, 1e-12))  # what saves nothing goes last
    return found


def _losses(gm: GraphModule, zigs: Partition, ranked: Sequence[Ranked], allocation: Any) -> list[Tensor]:
    """For each family, what its k-th ZIG adds to the loss: ascending, shape ``(zigs,)``."""
    if any(map(is_sharded, gm.parameters())):
        raise SettingsError(
            "the loss without parts of a family cannot be measured while parameters are sharded: give "
            "allocation='uniform', or the counts by min_kept and max_group_sparsity"
        )

    def evaluate(gm: GraphModule) -> float:
        with with_batch_statistics(gm), torch.no_grad():
            found = allocation(gm)
        if (loss := number_of(found)) is None:
            raise SettingsError(
                "allocation must return the loss of some mini-batches, a number or a tensor of one element; found "
                f"{found!r:.80}"
            )
        return loss

    order = [-one.indices.argsort().double() for one in ranked]
    found = sensitivity(gm, evaluate, fractions=_FRACTIONS, saliency=lambda _: order, progress=False)
    points: list[dict[int, float]] = [{0: 0.0} for _ in zigs.families]
    for trial in found:
        loss, base = trial.metrics["value"], found.baseline.metrics["value"]
        if not (math.isfinite(loss) and math.isfinite(base)):
            raise SettingsError(
                f"allocation must return a finite loss; found {loss} without {trial.removed} of the ZIGs of "
                f"{trial.family!r}, and {base} of the model as it is"
            )
        points[trial.position].setdefault(trial.removed, max(loss - base, 0.0))
    return [_marginal(sorted(one.items()), len(family)) for one, family in zip(points, zigs.families, strict=True)]


def _marginal(points: Sequence[tuple[int, float]], size: int) -> Tensor:
    """Slopes of the lower convex hull through ``(removed, loss)``, one for each ZIG; beyond it goes on as steeply."""
    hull: list[tuple[int, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    slopes = torch.zeros(size, dtype=torch.float64)
    for first, second in pairwise(hull):
        slopes[first[0] :] = _slope(first, second)
    return slopes + 1e-12 * torch.arange(size)  # where nothing is lost, all families in turn


def _slope(first: tuple[int, float], second: tuple[int, float]) -> float:
    return (second[1] - first[1]) / (second[0] - first[0])


@contextmanager
def with_batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch normalizations use the statistics of the batch for a while, whatever the mode of the model."""
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    before = [one.training for one in norms]
    try:
        for one in norms:
            one.training = True
        yield
    finally:
        for one, mode in zip(norms, before, strict=True):
            one.training = mode
