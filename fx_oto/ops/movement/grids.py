"""Grids that a movement makes of a line of labels, and lines that it makes of grids: where a region begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import Layer, Region, compress

__all__ = ["Move", "continue_region", "is_grid", "is_one_line", "open_region"]

Move = Callable[[Tensor], list[Tensor]]


def is_grid(results: list[Layer]) -> bool:
    """Whether a result of a movement has labels that vary along several dimensions."""
    return any(len(layer.dims) > 1 for layer in results)


def is_one_line(layer: Layer, results: list[Layer], move: Move) -> bool:
    """Whether indices differ along the same dimensions as the labels do.

    Where ``(B * 8, H)``, 8 channels of each example in one line, becomes ``(B, 2, 4, H)``, they differ along B as well.
    """
    indices = torch.arange(layer.labels.numel()).view(layer.labels.shape)
    return [compress(moved).shape for moved in move(indices)] == [result.labels.shape for result in results]


def open_region(p: Propagation, source: Tensor, layers: Sequence[Layer], chosen: int) -> tuple[Region, list[Layer]]:
    """Give the split dimension fresh atoms, so that each index can be told from every other."""
    layer = layers[chosen]
    dim = layer.dims[0]
    atoms = p.atoms.fresh(source.size(dim))
    fresh = atoms.view(layer.labels.shape)
    p.unite(fresh, layer.labels)
    renamed = [Layer(fresh, layer.removed) if i == chosen else other for i, other in enumerate(layers)]
    return Region.begin(source, dim, atoms), renamed


def continue_region(p: Propagation, source: Tensor, out: Tensor, region: Region) -> None:
    """Find out whether a region goes on behind another movement, or how it ends."""
    # Still a grid: the region goes on. A line of the length at the beginning: it ends, and is a selection. A line of
    # another length, such as after a part was taken: what was removed must have left rectangles all the way.
    inside = [layer for layer in p.layers(out) if region.holds(layer)]
    if any(len(layer.dims) > 1 for layer in inside):
        p.put_region(out, region)
        return
    if inside and region.ends_in(out):
        positions = inside[0].labels.reshape(-1) - region.atoms[0]
        p.put_gather(out, region.entry, region.dim, positions)
        return
    for layer in (*p.layers(source), *inside):
        if region.holds(layer):
            p.rectangle(layer.labels)
