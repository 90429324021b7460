"""Pruning at once: the ZIGs that an optimizer would choose are set to zero, and nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from fx_oto.core.errors import InputError, SettingsError
from fx_oto.core.fx_utils import check_has_numbers, is_sharded
from fx_oto.core.preserve import evaluating
from fx_oto.core.warn import warn
from fx_oto.optim.allocation import Allocation, check_allocation, with_batch_statistics
from fx_oto.optim.choice import Choice
from fx_oto.optim.limits import PerFamily, Rules, Uniform
from fx_oto.optim.rows import Rows
from fx_oto.optim.saliency import Criterion, ZIGStatistics, criterion
from fx_oto.optim.targets import find_target, reached
from fx_oto.zigs.partition import partition

__all__ = ["prune"]

LossOfBatch = Callable[[GraphModule, Any], Tensor]


def prune(  # noqa: PLR0913 - the settings of an optimizer
    gm: GraphModule,
    *,
    target_group_sparsity: float | None = None,
    target_params: float | None = None,
    target_macs: float | None = None,
    target_latency: float | None = None,
    saliency: str | Criterion | None = None,
    allocation: Allocation = "uniform",
    data: Iterable[Any] = (),
    loss: LossOfBatch | None = None,
    min_kept: PerFamily = 1,
    max_group_sparsity: PerFamily = 1.0,
    round_to: int = 1,
    uniform: Uniform = (),
    unprunable: Iterable[str] = (),
    prune_frozen: bool = False,
) -> dict[str, float]:
    """Set the most redundant ZIGs to zero at once, as many as a target asks for: one-shot pruning.

    ``compress`` then cuts them out, and the compact model is trained on. Where much goes, to train while the ZIGs
    become zero, by ``DHSPG``, keeps more.

    Args:
        gm: a prepared GraphModule; its parameters, which are the model's, are changed in place.
        target_group_sparsity: fraction of the prunable ZIGs to make zero. Of the four targets one is given, in (0, 1).
        target_params: fraction of the parameters to be left in the compact model.
        target_macs: fraction of the multiply-adds to be left, on the example inputs.
        target_latency: fraction of the latency to be left, measured on the example inputs and the model's device.
        saliency: which ZIGs of a family go, one of the optimizers' saliencies or a callable, see ``DHSPG``. Those that
            read gradients need ``data`` and ``loss``. None: ``"taylor1"`` with a loss, else ``"magnitude"``.
        allocation: how many of each family, see ``DHSPG``.
        data: batches, such as a list or a loader. If there are any, running statistics of batch normalizations are
            estimated anew from them afterwards; the more, the better: some thousands of samples.
        loss: called with ``gm`` and a batch, returns the loss whose gradients are scored. Without it, a batch, or the
            first part of one that is a list or a tuple, or a dict of keywords, is given to ``gm``.
        min_kept: as for ``DHSPG``, as are all that follow.
        max_group_sparsity: largest fraction of a family to make zero.
        round_to: the channels left of each family are a multiple of this number, or all of them.
        uniform: globs of families that keep the same fraction of their ZIGs.
        unprunable: globs of families that are left alone.
        prune_frozen: whether families with a parameter that does not require gradients are pruned.

    Returns:
        What was reached: group sparsity, and fractions of params and MACs that are left, as of an optimizer.

    Raises:
        SettingsError: a setting cannot work, the target cannot be reached, or gradients are asked for without a loss.
            Whatever fails, also in the model or the loss on a batch, leaves the weights as they were.
        InputError: ``gm`` is on the meta device, or sharded.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> fx_oto.prune(gm, target_params=0.6)
        {'group sparsity': 0.5, 'params': 0.5172413793103449, 'macs': 0.5}
        >>> fx_oto.compress(gm)(torch.randn(2, 4)).shape
        torch.Size([2, 2])
    """
    zigs = partition(gm)
    check_has_numbers(gm, "prune")
    if isinstance(data, Tensor | str) or not isinstance(data, Iterable):
        found = type(data).__name__
        raise SettingsError(f"data must be batches, such as a list or a loader; found {found}: is it [batch]?")
    if any(map(is_sharded, gm.parameters())):
        raise InputError("prune expects whole parameters, found sharded ones: prune before the model is sharded")
    wanted = {"group sparsity": target_group_sparsity, "params": target_params, "macs": target_macs}
    target = find_target(gm, zigs, {**wanted, "latency": target_latency})
    rules = Rules.of(
        min_kept=min_kept,
        max_group_sparsity=max_group_sparsity,
        round_to=round_to,
        uniform=uniform,
        unprunable=unprunable,
        prune_frozen=prune_frozen,
    )
    saliency = saliency or ("magnitude" if loss is None else "taylor1")
    graded = loss is not None and saliency != "magnitude"
    choice = Choice(gm, zigs, target, criterion(saliency), check_allocation(allocation), rules)
    if isinstance(saliency, str) and saliency != "magnitude" and not graded:
        raise SettingsError(
            f"saliency={saliency!r} reads gradients: give data, and loss(gm, batch), or use saliency='magnitude'"
        )
    batches = data if not graded or isinstance(data, Sequence) or hasattr(data, "__len__") else list(data)
    rows = Rows(gm, zigs.families, [zero.nonzero().flatten() for zero in zigs.zeros()])
    for statistics in _observed(rows, gm, batches, loss) if loss and graded else [rows.statistics({})]:
        choice.observe(statistics)
    if not choice.observed:
        raise SettingsError(
            "data held no batch, so there are no gradients to score: give a list of batches, or a loader"
        )
    choice.make(rows, target.left, 0, late=True, graded=graded)
    with torch.no_grad():
        rows.remember()
    try:
        for i, chosen in enumerate(rows.active):
            zigs.zero_zigs_(i, chosen)
        _estimate_statistics(gm, batches, loss)
    except BaseException:  # a batch that does not fit must not cost the weights
        rows.put_back()
        raise
    return reached(target, zigs, zigs.removed())


def _observed(rows: Rows, gm: GraphModule, data: Iterable[Any], loss: LossOfBatch) -> Iterator[list[ZIGStatistics]]:
    """What each batch says of the ZIGs, by gradients in eval mode; the parameters' own gradients stay."""
    before = [(p, p.grad) for p in gm.parameters()]
    try:
        with evaluating(gm):
            for batch in data:
                for p, _ in before:
                    p.grad = None
                with torch.enable_grad():
                    _backward(loss(gm, batch))
                yield rows.statistics({})
    finally:
        for p, gradient in before:
            p.grad = gradient


def _backward(loss: Any) -> None:
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        loss.backward()
        return
    found = f"one of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r:.80}"
    if isinstance(loss, Tensor) and loss.numel() == 1:
        found = "one that depends on no parameter that is trained"
    raise SettingsError(
        f"loss(gm, batch) must return a tensor of one element, of which gradients can be taken; found {found}"
    )


def _estimate_statistics(gm: GraphModule, data: Iterable[Any], loss: LossOfBatch | None) -> None:
    """Batch normalizations' running statistics, anew, as means over the batches; as they were if there are none."""
    if not any(one.track_running_stats for one in gm.modules() if isinstance(one, _BatchNorm)):
        return
    batches = iter(data)
    for first in batches:
        with evaluating(gm), _settings_kept(gm):
            update_bn(((batch,) for batch in chain([first], batches)), _Run(gm, loss))
        return
    if loss is not None or not (isinstance(data, tuple) and not data):
        held = "could be read once only" if loss is not None else "held no batch"
        warn(
            f"data {held}, so running statistics of batch normalizations were not estimated anew: give a list of "
            "batches, or a loader that can be read again"
        )


@contextmanager
def _settings_kept(gm: GraphModule) -> Iterator[None]:
    """Put running statistics back as they were, and the momentum in any case, if a batch fails."""
    norms = [one for one in gm.modules() if isinstance(one, _BatchNorm)]
    before = [(one, one.momentum, [buffer.clone() for buffer in one.buffers()]) for one in norms]
    try:
        yield
    except BaseException:
        for one, momentum, buffers in before:
            one.momentum = momentum
            for buffer, value in zip(one.buffers(), buffers, strict=True):
                buffer.copy_(value)
        raise


class _Run(nn.Module):
    """Runs a model on a batch, in eval mode but for the statistics of batches."""

    def __init__(self, gm: GraphModule, loss: LossOfBatch | None) -> None:
        super().__init__()
        self.gm, self.loss = gm, loss

    def forward(self, batch: Any) -> None:
        with evaluating(self.gm), with_batch_statistics(self.gm):
            if self.loss is not None:
                self.loss(self.gm, batch)
            elif isinstance(batch, Mapping):
                self.gm(**batch)
            else:
                self.gm(batch[0] if isinstance(batch, list | tuple) else batch)
