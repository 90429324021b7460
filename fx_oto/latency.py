"""Measured latency of the compact model, as a quantity that a target can be set on."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_map_only

from fx_oto.context import Context
from fx_oto.errors import FxOtoWarning
from fx_oto.graph import evaluating
from fx_oto.zigs import partition
from passes.physical_slicing import PhysicalSlicing

__all__ = ["Latency"]


class Latency:
    """Time of a forward pass on the example inputs, in eval mode, on the model's device, over that of the full model.

    What is left is measured: a copy is cut, and the two models take turns; the ratio of the medians counts. Each
    measurement is made once and remembered, so that a search sees one value for one width.

    Args:
        gm: a prepared GraphModule.
        rounds: how often the two models take turns, after one warm-up each.
    """

    def __init__(self, gm: GraphModule, rounds: int = 15) -> None:
        self._gm, self._rounds = gm, rounds
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
        cut = copy.deepcopy(self._gm)
        zigs = partition(cut)
        for i, (zero, count) in enumerate(zip(zigs.zeros(), removed, strict=True)):
            zigs.zero_zigs_(i, zero.int().argsort(descending=True, stable=True)[:count])  # what is zero already first
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FxOtoWarning)  # of widths that are only tried
            models = [self._gm, PhysicalSlicing()(cut).graph_module]
        device = next(self._gm.parameters()).device
        inputs = Context.of(self._gm).inputs
        args, kwargs = tree_map_only(Tensor, lambda t: t.to(device), (inputs.args, inputs.kwargs))
        times: list[list[float]] = [[], []]
        with evaluating(models[0]), evaluating(models[1]):
            for _ in range(self._rounds + 1):
                for model, mine in zip(models, times, strict=True):
                    mine.append(_seconds(model, args, kwargs, device))
        full, compact = (statistics.median(mine[1:]) for mine in times)
        return compact / full


def _seconds(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    model(*args, **kwargs)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
