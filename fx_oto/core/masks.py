"""Masks: one buffer per family, 1 for each ZIG that is kept and 0 for each that is gone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Graph

__all__ = ["MASKS", "Masks", "apply_mask", "drop_masks", "mask_of"]

MASKS = "zig_masks"


class Masks(nn.Module):
    """Holds the mask of every family as a buffer ``family_i`` of shape ``(num_zigs,)``."""

    def __init__(self, sizes: list[int], device: torch.device | None = None) -> None:
        super().__init__()
        for i, size in enumerate(sizes):
            self.register_buffer(f"family_{i}", torch.ones(size, device=device))


def mask_of(module: nn.Module, family: int) -> Tensor | None:
    """The mask of a family, or None where no masks were inserted."""
    masks = getattr(module, MASKS, None)
    return None if masks is None else masks._buffers.get(f"family_{family}")


def apply_mask(value: Tensor, dim: int, mask: Tensor, index: Tensor | None = None) -> Tensor:
    """Multiply a tensor by a family's mask along one dimension.

    Args:
        value: any tensor.
        dim: the dimension along which its ZIGs lie.
        mask: shape ``(num_zigs,)``.
        index: for each index of ``dim``, one more than the position of its ZIG in the family, 0 if it has none;
            None if they coincide.
    """
    if index is not None:
        mask = torch.cat([mask.new_ones(1), mask])[index]
    return (value.movedim(dim, -1) * mask.to(value.dtype)).movedim(-1, dim)


def drop_masks(graph: Graph) -> None:
    """Take every mask out of a graph."""
    for node in list(graph.nodes):
        if node.target is apply_mask:
            node.replace_all_uses_with(node.args[0])
            for part in (node, *node.args[2:]):
                if not part.users:
                    graph.erase_node(part)
