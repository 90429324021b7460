"""Masks: one per family, which hide ZIGs from what reads a value, for trying out what a pruning would do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

__all__ = ["MASKS", "Masks", "drop_masks", "is_mask", "masks_of"]

MASKS = "zig_masks"


class Masks(nn.Module):
    """Hides ZIGs. Where none of a family is hidden it returns what it is given, so that training costs nothing more.

    The mask of family i is a buffer ``family_i`` of shape ``(num_zigs,)``: 1 for each ZIG that is seen and 0 for each
    that is hidden. Nothing of it is in a state dict, for what is gone for good is zero in the parameters.

    Args:
        sizes: how many ZIGs each family has.
        device: where the model's values are.

    Attributes:
        hiding: the families of which some ZIG is hidden.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device | None = None) -> None:
        super().__init__()
        for i, size in enumerate(sizes):
            self.register_buffer(f"family_{i}", torch.ones(size, device=device), persistent=False)
        self.hiding: set[int] = set()

    def forward(self, value: Tensor, family: int, dim: int, index: Tensor | None = None) -> Tensor:
        """Multiply a tensor by the mask of a family along one dimension.

        Args:
            value: any tensor.
            family: the family's position.
            dim: the dimension along which the family's ZIGs lie.
            index: for each index of ``dim``, one more than the position of its ZIG in the family, 0 if it has none;
                None if they coincide.
        """
        if family not in self.hiding:
            return value
        mask = self.of(family)
        if index is not None:
            mask = torch.cat([mask.new_ones(1), mask])[index]
        return (value.movedim(dim, -1) * mask.to(value)).movedim(-1, dim)  # of a model on several devices, too

    def of(self, family: int) -> Tensor:
        """The mask of a family."""
        return self.get_buffer(f"family_{family}")

    def hide(self, family: int, zigs: Tensor) -> None:
        """Hide these ZIGs of a family, by position."""
        mask = self.of(family)
        zigs = torch.as_tensor(zigs, device=mask.device)
        mask[zigs] = 0
        if zigs.numel():
            self.hiding.add(family)

    def open(self) -> None:
        """Hide none."""
        for family in self.hiding:
            self.of(family).fill_(1)
        self.hiding.clear()


def masks_of(module: nn.Module) -> Masks | None:
    """The masks of a GraphModule, or None where none were inserted."""
    masks = getattr(module, MASKS, None)
    return masks if isinstance(masks, Masks) else None


def is_mask(node: Node) -> bool:
    """Whether a node applies a mask."""
    return node.op == "call_module" and node.target == MASKS


def drop_masks(graph: Graph) -> None:
    """Take every mask out of a graph."""
    for node in filter(is_mask, list(graph.nodes)):
        node.replace_all_uses_with(node.args[0])
        for part in (node, *node.args[3:]):
            if not part.users:
                graph.erase_node(part)
