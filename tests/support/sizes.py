"""Inputs like the example's at other sizes, as many as the eager model takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from fx_oto.core.context import ExampleInputs
from support.seen import see

Place = tuple[int, int]  # the how manieth tensor of the inputs, which of its dimensions


@dataclass(frozen=True)
class Sized:
    """Inputs, and in which dimensions they are of another size than the example's."""

    inputs: ExampleInputs
    places: tuple[Place, ...] = ()

    @property
    def is_batch(self) -> bool:
        return bool(self.places) and all(dim == 0 for _, dim in self.places)

    def __str__(self) -> str:
        sizes = " and ".join("×".join(map(str, t.shape)) or "a number" for t in tensors_of(self.inputs))
        dims = sorted({dim for _, dim in self.places})
        return f"{sizes}, which differs from the example in dimensions {dims}" if dims else sizes


def tensors_of(inputs: ExampleInputs) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(leaf, Tensor)]


def resized(example: ExampleInputs, sizes: dict[Place, int]) -> Sized:
    """Random inputs like the example, with some dimensions of other sizes."""
    position = iter(range(len(tensors_of(example))))
    generator = torch.Generator().manual_seed(sum(sizes.values()))

    def like(tensor: Tensor) -> Tensor:
        place = next(position)
        shape = [sizes.get((place, dim), size) for dim, size in enumerate(tensor.shape)]
        if tensor.is_floating_point() or tensor.is_complex():
            precise = torch.float64 if tensor.is_floating_point() else torch.complex128
            return torch.randn(shape, generator=generator, dtype=precise).to(tensor)
        if tensor.numel() == 0:
            return tensor.clone()
        return torch.randint(0, int(tensor.max()) + 1, shape, generator=generator).to(tensor)

    args, kwargs = tree_map_only(Tensor, like, (example.args, example.kwargs))
    places = tuple(place for place, size in sizes.items() if tensors_of(example)[place[0]].size(place[1]) != size)
    return Sized(ExampleInputs(args, kwargs), places)


def beside(example: ExampleInputs, inputs: ExampleInputs) -> Sized:
    """Inputs, which have the form of the example's but may be of other sizes."""
    pairs = enumerate(zip(tensors_of(example), tensors_of(inputs), strict=True))
    places = ((i, dim) for i, (a, b) in pairs for dim in range(a.ndim) if a.size(dim) != b.size(dim))
    return Sized(inputs, tuple(places))


def rebatched(example: ExampleInputs, size: int) -> Sized:
    """Every tensor's first dimension of this size."""
    return resized(example, {(i, 0): size for i, tensor in enumerate(tensors_of(example)) if tensor.ndim})


def fresh(model: nn.Module, example: ExampleInputs, at_most: int) -> Iterator[Sized]:
    """Other lengths, heights and widths, and a batch of one: what the eager model takes, each kind once or twice."""
    found = 0
    for group in _groups(example):
        size = tensors_of(example)[group[0][0]].size(group[0][1])
        taken = 0
        for other in _others(size):
            if found < at_most and taken < 2 and other != size:
                sized = resized(example, dict.fromkeys(group, other))
                if takes(model, sized.inputs):
                    found, taken = found + 1, taken + 1
                    yield sized
    alone = rebatched(example, 1)
    if at_most > 1 and alone.places and takes(model, alone.inputs):
        yield alone


def _groups(example: ExampleInputs) -> Iterator[tuple[Place, ...]]:
    """Dimensions but the first: all of the same size together, then each of these alone."""
    alike: dict[int, list[Place]] = {}
    for i, tensor in enumerate(tensors_of(example)):
        for dim in range(1, tensor.ndim):
            alike.setdefault(tensor.size(dim), []).append((i, dim))
    yield from map(tuple, alike.values())
    for places in alike.values():
        if len(places) > 1:
            yield from ((place,) for place in places)


def _others(size: int) -> tuple[int, ...]:
    return (2 * size if size <= 16 else size + size // 2, size + 1, 1)


def takes(model: nn.Module, inputs: ExampleInputs, training: bool = False) -> bool:
    """Whether the eager model returns finite numbers for them."""
    try:
        outputs = see(model, inputs, training, gradients=False).outputs
    except Exception:  # whatever a model raises of inputs that it does not take
        return False
    return all(output.isfinite().all() for output in outputs)
