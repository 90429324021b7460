"""Two dimensions that lie in one: of inputs by basis functions, flattened, rows can go, and columns can.

Labels of rows and columns of ``(3, 2)`` in one are ``0 0 1 1 2 2`` and ``7 8 7 8 7 8``: two layers along one dimension.
What has the same two, such as a weight that was flattened as well, meets each of them by itself. What has one label for
each of the 6, such as the columns of a linear layer, would tie all rows and all columns to one group. So the longer of
the two is left to go, and the other one is kept whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fx_oto.analysis.atoms import Atoms
from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.labels import Layer

__all__ = ["Member", "one_line", "partner", "taken_apart"]

# The position of an operand, and a layer of it.
Member = tuple[int, Layer]
_ONE_OF_TWO = "it lies in one dimension with another, of which more can go, and what reads both ties them together"


def taken_apart(p: Propagation, dims: set[int], members: list[Member]) -> list[tuple[set[int], list[Member]]]:
    """Layers of operands that are combined, those together that are united.

    Args:
        p: the engine.
        dims: the dimensions along which they vary.
        members: the layers, each with the position of its operand.

    Returns:
        Some of them, each time with ``dims``: all if no operand has several layers along one dimension.
    """
    positions = {position for position, _ in members}
    if len(dims) > 1 or len(positions) == len(members):
        return [(dims, members)]
    alike: dict[tuple[int, ...], list[Member]] = {}
    for member in members:
        alike.setdefault(tuple(_pattern(member[1].labels).tolist()), []).append(member)
    parts = [mine for mine in alike.values() if {position for position, _ in mine} == positions]
    if not parts:
        if _classes([layer.labels for _, layer in members]) > 1:
            return [(dims, members)]
        parts = [_longest(members, alike)]
    kept = [member for part in parts for member in part]
    for member in members:
        if member not in kept:
            p.freeze(member[1].labels, _ONE_OF_TWO)
    return [(dims, part) for part in parts]


def one_line(p: Propagation, layers: Sequence[Layer]) -> list[Layer]:
    """Of several layers along one dimension, the longest, for an op that has something for each index of it."""
    kept: list[Layer] = []
    for layer in sorted(layers, key=lambda one: -len(one.labels.unique())):
        other = next((one for one in kept if one.dims == layer.dims and len(layer.dims) == 1), None)
        if other is None:
            kept.append(layer)
        elif torch.equal(_pattern(layer.labels), _pattern(other.labels)):
            p.unite(layer.labels, other.labels)
        else:
            p.freeze(layer.labels, _ONE_OF_TWO)
    return [layer for layer in layers if layer in kept]


def _longest(members: Sequence[Member], alike: dict[tuple[int, ...], list[Member]]) -> list[Member]:
    """The layers that most operands have alike, of as many labels as can be; and those of operands with one layer."""
    positions = [position for position, _ in members]
    several = {position for position in positions if positions.count(position) > 1}
    crossing = [mine for mine in alike.values() if several.intersection(position for position, _ in mine)]
    best = max(crossing, key=lambda mine: (len(mine), len(mine[0][1].labels.unique())))
    return best + [member for member in members if member[0] not in several and member not in best]


def _pattern(labels: Tensor) -> Tensor:
    """For each label in a row, the first place at which it is; of the same length."""
    _, index = labels.reshape(-1).unique(return_inverse=True)
    places = torch.arange(len(index))
    return torch.full_like(places, len(index)).scatter_reduce(0, index, places, "amin")[index]


def _classes(rows: Sequence[Tensor]) -> int:
    """How many classes there would be, were all these united."""
    trial, first = Atoms(), torch.cat([_pattern(row) + i * row.numel() for i, row in enumerate(rows)])
    atoms = trial.fresh(len(first))[first].split([row.numel() for row in rows])
    for other in atoms[1:]:
        trial.unite(atoms[0], other)
    return len(trial.find(atoms[0]).unique())


def partner(layers: Sequence[Layer], layer: Layer) -> Layer | None:
    """Of several layers, the one that is along the dimensions of another, and alike where the same ones are."""
    along = [one for one in layers if one.dims == layer.dims]
    alike = [one for one in along if torch.equal(_pattern(one.labels), _pattern(layer.labels))] if along[1:] else along
    return next(iter(alike or along), None)
