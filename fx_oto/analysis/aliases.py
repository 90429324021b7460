"""Where a view lies in the memory that it is a part of: along which dimensions, from where on, in which steps.

A view of every other channel is a part of it; one in which two dimensions are merged is not described so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fx_oto.analysis.labels import UNKNOWN, Layer, laid_along, worth_along

__all__ = ["Part", "meet", "overwritten", "part_of", "taken"]


@dataclass(frozen=True, slots=True)
class Part:
    """What a view takes along one dimension of what it is a view of.

    Attributes:
        start: the first index.
        step: from each index to the next.
        count: how many there are.
        dim: the dimension of the view that runs over them; None if it has none that does.
    """

    start: int
    step: int
    count: int
    dim: int | None

    @property
    def leaves_out(self) -> bool:
        """Whether it leaves out indices between those that it takes."""
        return self.step > 1 and self.count > 1

    @property
    def places(self) -> range:
        """The indices."""
        return range(self.start, self.start + self.step * (self.count - 1) + 1, self.step)


def part_of(view: Tensor, whole: Tensor) -> tuple[Part, ...] | None:
    """What a view takes along each dimension of another tensor of the same memory; None if it is no such part.

    Of ``x``, ``(4, 16)``, ``x[:, 9::2]`` lies from element 9 on, in steps of 16 and 2: it takes all of dimension 0,
    and along dimension 1 every second from 9 on.
    """
    if view.numel() == 0 or whole.numel() == 0 or view.dtype != whole.dtype:
        return None
    units = whole.stride()
    order = sorted((dim for dim, size in enumerate(whole.shape) if size > 1), key=lambda dim: -units[dim])
    if any(units[outer] < units[inner] * whole.size(inner) for outer, inner in pairwise(order)):
        return None  # elements overlap
    rest = int(view.storage_offset()) - int(whole.storage_offset())
    found = [Part(0, 1, 1, None)] * whole.ndim
    steps = {dim: view.stride(dim) for dim, size in enumerate(view.shape) if size > 1}
    for dim in order:
        if (unit := units[dim]) == 0:
            return None
        start, rest = divmod(rest, unit)
        along = [one for one, step in steps.items() if step >= unit]
        if len(along) > 1 or any(steps[one] % unit for one in along):
            return None
        step, count = (steps.pop(along[0]) // unit, view.size(along[0])) if along else (1, 1)
        found[dim] = Part(start, step, count, along[0] if along else None)
        if start < 0 or start + step * (count - 1) >= whole.size(dim):
            return None
    return None if rest or steps else tuple(found)


def meet(left: Sequence[Part], right: Sequence[Part]) -> bool:
    """Whether two parts of one tensor may have elements in common."""
    pairs = zip(left, right, strict=True)
    return all(any(place in other.places for place in one.places) for one, other in pairs)


def taken(layers: Sequence[Layer], parts: Sequence[Part], ndim: int) -> list[Layer]:
    """The layers of a view of ``ndim`` dimensions of what has these layers, each along one dimension."""
    found = []
    for layer in layers:
        (dim,), part = layer.dims, parts[layer.dims[0]]
        if part.dim is not None:
            places = list(part.places)
            lines = _line(layer.labels, dim)[places], _worths(layer, dim)[places]
            found.append(Layer(*(laid_along(line, part.dim, ndim) for line in lines)))
    return found


def overwritten(layer: Layer, parts: Sequence[Sequence[int]], shape: Sequence[int], new: Layer | None) -> Layer:
    """A layer along one dimension once another one has been written at a part of it.

    Args:
        layer: the layer.
        parts: at which indices something has been written, along each dimension.
        shape: of the value that has the layer.
        new: the layer of what has been written, along the dimension that runs over the same indices.
    """
    (dim,) = layer.dims
    places, worth = list(parts[dim]), _worths(layer, dim).clone()
    now = UNKNOWN if new is None else _worths(new, new.dims[0])
    everywhere = all(
        len(set(part)) == size for one, (part, size) in enumerate(zip(parts, shape, strict=True)) if one != dim
    )
    worth[places] = now if everywhere else torch.where(worth[places] == now, now, UNKNOWN)
    return Layer(layer.labels, laid_along(worth, dim, layer.labels.ndim))


def _line(tensor: Tensor, dim: int) -> Tensor:
    return tensor.movedim(dim, 0).reshape(-1)


def _worths(layer: Layer, dim: int) -> Tensor:
    """What each index is worth, as far as that is the same along all other dimensions."""
    return _line(worth_along(layer.removed, {dim}), dim).expand(layer.labels.size(dim))
