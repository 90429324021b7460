"""Parameters that are sharded over processes, as by ``fully_shard``: which part is here, and sums over all parts.

Two processes that share a weight of shape ``(5, 3)`` by its first axis hold the boxes ``(0, 3), (0, 3)`` and
``(3, 2), (0, 3)``: of each axis the first index, and how many. Rows 2 and 3 of the weight lie in different processes,
so each sums up what it has, and the sums are added; each holds its part of column 1.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.fx import GraphModule

from fx_oto.core.context import Context
from fx_oto.core.errors import InputError
from fx_oto.core.fx_utils import clone_module, graph_copy, is_sharded

__all__ = ["Shards", "local", "stand_in"]

Box = tuple[tuple[int, int], ...]


class Shards:
    """Which part of each of a model's tensors this process holds, and sums over the parts of all processes.

    Of whole tensors each process holds all, and nothing is communicated. Where some are sharded, each process of
    the training makes one of these at the same time.

    Args:
        tensors: the model's parameters and buffers, by name.

    Attributes:
        here: whether some are sharded.

    Raises:
        InputError: the processes do not hold the parts of one model.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        sharded = [tensor for tensor in tensors.values() if is_sharded(tensor)]
        self.here = bool(sharded)
        self._boxes = {id(tensor): _box(tensor) for tensor in tensors.values()}
        self._elsewhere: set[int] = set()
        if self.here:
            self._device = sharded[0].device_mesh.device_type  # type: ignore[attr-defined]
            everywhere: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everywhere, {name: self._boxes[id(tensor)] for name, tensor in tensors.items()})
            _check_complete(tensors, everywhere)
            earlier = everywhere[: dist.get_rank()]
            for name, tensor in tensors.items():
                if any(boxes[name] == self._boxes[id(tensor)] for boxes in earlier):
                    self._elsewhere.add(id(tensor))

    def span(self, tensor: Tensor, dim: int) -> tuple[int, int]:
        """The first index of an axis that this process holds, and how many follow it."""
        box = self._boxes.get(id(tensor)) or _box(tensor)
        return box[dim]

    def counts(self, tensor: Tensor) -> bool:
        """Whether this process adds its part to the sums: of those that hold the same, as replicas, one does."""
        return id(tensor) not in self._elsewhere

    def sum(self, sums: Tensor) -> Tensor:
        """Add up what the processes have, the same on each of them to the last bit."""
        if not self.here:
            return sums
        total = sums.to(self._device)
        dist.all_reduce(total)
        return total.to(sums.device)


def local(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """What this process holds of a tensor, without a copy; of a gradient, in the layout of its parameter, ``like``."""
    if not is_sharded(tensor):
        return tensor
    given: Any = tensor
    if like is not None and given.placements != like.placements:  # type: ignore[attr-defined]
        given = given.redistribute(placements=like.placements)  # type: ignore[attr-defined]
    part: Tensor = given.to_local()
    return part


def stand_in(gm: GraphModule) -> GraphModule:
    """A whole copy of a sharded model, with numbers that mean nothing, to be measured: no process holds all numbers."""
    made: dict[int, Tensor] = {}

    def whole(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            new = torch.full(tensor.shape, 0.01, dtype=tensor.dtype, device=tensor.device)
            if not is_sharded(tensor):
                new.copy_(tensor)
            made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        return made[id(tensor)]

    context = copy.deepcopy(Context.of(gm))
    new = clone_module(graph_copy(gm, coded=False), whole)
    assert isinstance(new, GraphModule)
    new.recompile()
    if context.original is not None:
        context.original.strip(new)
    return context.attach(new)


def _box(tensor: Tensor) -> Box:
    if not is_sharded(tensor):
        return tuple((0, size) for size in tensor.shape)
    given: Any = tensor
    (chunk,) = given.__create_chunk_list__()  # by which torch's checkpoints know what lies where
    return tuple(zip(chunk.offsets, chunk.sizes, strict=True))


def _check_complete(tensors: Mapping[str, Tensor], everywhere: Sequence[Mapping[str, Box]]) -> None:
    """Each parameter must lie in the processes as a whole: the different boxes fill it."""
    for rank, boxes in enumerate(everywhere):
        if boxes.keys() != tensors.keys():
            lost = sorted(boxes.keys() ^ tensors.keys())[0]
            raise InputError(
                f"process {rank} holds other parameters than this one, such as {lost!r}: all processes of the group "
                "must train one model"
            )
    for name, tensor in tensors.items():
        parts = {boxes[name] for boxes in everywhere}
        if sum(torch.Size(size for _, size in box).numel() for box in parts) != tensor.numel():
            raise InputError(
                f"{name!r} of shape {tuple(tensor.shape)} is placed over processes in a way that fx_oto does not "
                f"follow: {getattr(tensor, 'placements', 'whole')}, in parts {sorted(parts)}"
            )
