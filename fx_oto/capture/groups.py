"""Dimensions of example inputs that have one size, and inputs of other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from fx_oto.core.context import ExampleInputs
from fx_oto.core.layouts import by_way_of_dense

__all__ = ["Group", "groups_of", "resized"]

_FAR, _TIMES = 2048, (16, 8, 4, 2)
_MOST_ELEMENTS = 2**23


@dataclass(frozen=True)
class Group:
    """Dimensions of the inputs that have one size, and are changed together.

    Attributes:
        dims: of each the number of the tensor among the inputs and the dimension.
        size: theirs.
        is_batch: whether it is the first dimension of the first input.
    """

    dims: tuple[tuple[int, int], ...]
    size: int
    is_batch: bool = False

    def holds(self, other: Group) -> bool:
        """Whether the other's dimensions are among these."""
        return set(other.dims) <= set(self.dims)

    def others(self) -> tuple[int, ...]:
        """Sizes to try instead, the likeliest to be taken first."""
        if self.size == 1:
            return (3, 2) if self.is_batch else (5, 2)
        # A multiple is taken by most models; what holds at multiples alone, such as ``size // 4 * 4 == size``, does not
        # at a neighbour, which comes next where the first one leaves a doubt.
        near, (far, farther) = (self.size + 1, self.size + 2), (3 * self.size, 2 * self.size)
        if self.is_batch:
            return (*near, far, farther)
        # Of 16, or 1 + 16, patches of a square image code may ask for the side: four times as many are a square, too.
        rest = next((rest for rest in (0, 1) if isqrt(self.size - rest) ** 2 == self.size - rest), None)
        squares = () if rest is None else (4 * (self.size - rest) + rest,)
        # Where layers meet at corners, sizes are 1 more than a multiple of 8, or of another power of 2.
        return (far, *near, farther, *squares, self.size + 32)

    def far(self, inputs: ExampleInputs) -> int | None:
        """A multiple beyond the lengths in which code cuts its work, such as ``range(0, length, 512)``.

        Less where inputs would be too large to be tried, and None where those twice as long would be.
        """
        times = (max(2, -(-_FAR // self.size)), *_TIMES)
        return next((self.size * one for one in times if self.can_be(self.size * one, inputs)), None)

    def can_be(self, size: int, inputs: ExampleInputs) -> bool:
        """Whether inputs of a size are not too large to be tried."""
        return self._elements(inputs, size) <= _MOST_ELEMENTS

    def _elements(self, inputs: ExampleInputs, size: int) -> int:
        """How many elements the largest input has at a size."""
        tensors = tree_leaves((inputs.args, inputs.kwargs))
        largest = 0
        for number, tensor in enumerate(leaf for leaf in tensors if isinstance(leaf, Tensor)):
            times = sum(place == number for place, _ in self.dims)
            largest = max(largest, tensor.numel() * size**times // self.size**times)
        return largest

    def apart(self) -> list[Group]:
        """Each dimension alone."""
        return [Group((dim,), self.size) for dim in self.dims] if len(self.dims) > 1 else []


def groups_of(inputs: ExampleInputs) -> list[Group]:
    """The sizes of example inputs: the batch, then others; dimensions of size 1 one by one, for most are no size."""
    tensors = [leaf for leaf in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(leaf, Tensor)]
    sized: dict[Any, list[tuple[int, int]]] = {}
    batch = next((tensor.size(0) for tensor in tensors if tensor.ndim), None)
    for number, tensor in enumerate(tensors):
        for dim, size in enumerate(tensor.shape):
            if dim == 0 and size == batch:
                key: Any = "batch"
            else:
                key = (size, number, dim) if size == 1 else size
            if size:
                sized.setdefault(key, []).append((number, dim))
    return [Group(tuple(dims), tensors[dims[0][0]].size(dims[0][1]), key == "batch") for key, dims in sized.items()]


def resized(inputs: ExampleInputs, sizes: Mapping[Group, int]) -> ExampleInputs:
    """Example inputs of other sizes: elements are repeated."""
    changes: dict[int, list[tuple[int, int]]] = {}
    for group, size in sizes.items():
        for number, dim in group.dims:
            changes.setdefault(number, []).append((dim, size))
    numbers = count()

    def change(tensor: Tensor) -> Tensor:
        for dim, size in changes.get(next(numbers), ()):
            index = torch.arange(size, device=tensor.device) % tensor.size(dim)
            tensor = by_way_of_dense(partial(torch.index_select, dim=dim, index=index), tensor.detach())
            if tensor.is_floating_point():  # what depends on the numbers, such as how many are positive, changes, too
                tensor = -tensor
        return tensor

    args, kwargs = tree_map_only(Tensor, change, (inputs.args, inputs.kwargs))
    return ExampleInputs(args, kwargs)
