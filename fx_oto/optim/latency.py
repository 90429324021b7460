"""Measured latency of the compact model, as a quantity that a target can be set on."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor
from torch.fx import GraphModule

from fx_oto.core.context import Context
from fx_oto.core.errors import FxOtoWarning
from fx_oto.core.fx_utils import is_sharded
from fx_oto.optim.shards import stand_in
from fx_oto.passes.drop_branches import DropBranches
from fx_oto.passes.physical_slicing import PhysicalSlicing
from fx_oto.reports.timing import latency
from fx_oto.zigs.partition import partition

__all__ = ["Latency"]


class Latency:
    """Time of a forward pass on the example inputs, in eval mode, on the model's device, over that of the full model.

    What is left is measured: a copy is cut, and the two models take turns; the ratio of the medians counts. Each
    measurement is made once and remembered, so that a search sees one value for one width. In the place of a sharded
    model two whole ones of its sizes are made, for the time of a measurement.

    Args:
        gm: a prepared GraphModule.
        rounds: how often the two models take turns, after one warm-up each.
        progress: whether each measurement shows a bar; None: where stderr is a terminal, and in notebooks.
    """

    def __init__(self, gm: GraphModule, rounds: int = 15, progress: bool | None = None) -> None:
        self._gm, self._rounds, self._progress = gm, rounds, progress
        self._known: dict[tuple[int, ...], float] = {(0,) * len(partition(gm).families): 1.0}
        self.total = 1.0

    def left(self, removed: Tensor) -> float:
        """The fraction of the full model's latency once ``removed[i]`` ZIGs of family i are gone."""
        key = tuple(removed.tolist())
        if key not in self._known:
            self._known[key] = self._measure(key)
        return self._known[key]

    @torch.no_grad()
    def _measure(self, removed: tuple[int, ...]) -> float:
        sharded = any(map(is_sharded, self._gm.parameters()))
        full, cut = [stand_in(self._gm) for _ in range(2)] if sharded else (self._gm, copy.deepcopy(self._gm))
        zigs = partition(cut)
        for i, (zero, count) in enumerate(zip(zigs.zeros(), removed, strict=True)):
            zigs.zero_zigs_(i, zero.int().argsort(descending=True, stable=True)[:count])  # what is zero already first
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FxOtoWarning)  # of widths that are only tried
            sliced = PhysicalSlicing()(cut).graph_module
            models = {"full": full, "compact": DropBranches()(sliced, verify=False).graph_module}
        inputs = Context.of(self._gm).inputs
        found = latency(models, inputs, rounds=self._rounds, warmup=1, progress=self._progress)
        return found["compact"].ratio
