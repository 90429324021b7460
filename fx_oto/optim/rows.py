"""The variables of the redundant ZIGs: read, written and kept at zero, a tensor for each slot and no loop over ZIGs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fx_oto.graph import tensor_names
from fx_oto.masks import mask_of
from fx_oto.optim.saliency import ZIGStatistics
from fx_oto.zigs import Family

__all__ = ["Rows"]


@dataclass(eq=False)
class _Block:
    """One slot's entries of some of its family's ZIGs.

    Attributes:
        tensor: the parameter.
        dim: the slot's axis.
        index: indices along it, ZIG by ZIG, shape ``(zigs · indices per ZIG,)``.
        zigs: the place of these ZIGs among all those that are looked at.
    """

    tensor: Tensor
    dim: int
    index: Tensor
    zigs: slice
    _written: int = -1

    @property
    def changed(self) -> bool:
        """Whether the parameter may differ from what was written last."""
        return bool(self.tensor._version != self._written)

    def read(self, source: Tensor, out: Tensor | None = None) -> Tensor:
        """Copy the entries of a tensor of the parameter's shape: at least float32, the parameter's axes."""
        if out is not None and out.dtype == source.dtype:
            return torch.index_select(source, self.dim, self.index, out=out)
        values = source.index_select(self.dim, self.index)
        return values.to(_arithmetic(values)) if out is None else out.copy_(values)

    def rows(self, values: Tensor) -> Tensor:
        """A view of what ``read`` returns, ``(zigs, …)``."""
        count = self.zigs.stop - self.zigs.start
        view: Tensor = values.unflatten(self.dim, (count, -1)).movedim(self.dim, 0)
        return view

    def per_zig(self, vector: Tensor) -> Tensor:
        """This block's part of a vector over all ZIGs, shaped to broadcast with ``rows``."""
        part = vector[self.zigs].to(self.tensor.device, non_blocking=True)
        return part.view(-1, *(1,) * self.tensor.ndim)

    def write(self, values: Tensor) -> None:
        """Put back what ``read`` returned."""
        self.tensor.index_copy_(self.dim, self.index, values.to(self.tensor.dtype))
        if values.dtype == self.tensor.dtype:  # else it was rounded
            self._written = self.tensor._version

    def clear(self, target: Tensor) -> None:
        """Set the entries of a tensor of the parameter's shape to zero."""
        target.index_fill_(self.dim, self.index, 0)


class Rows:
    """Which ZIGs are redundant, and their variables.

    A redundant ZIG is *active* while it is driven to zero, *gone* once it is zero and stays so.

    Attributes:
        active: for each family, positions of the active ZIGs.
        gone: for each family, positions of those that are gone.
        zero: whether an active ZIG is zero already; bool, shape ``(active ZIGs of all families,)``.
        before: the active variables when they were last remembered, one tensor for each block.
    """

    def __init__(self, gm: nn.Module, families: Sequence[Family]) -> None:
        tensors = tensor_names(gm)
        self._families = families
        self._tensors = [[tensors[slot.tensor] for slot in family.variables] for family in families]
        self._masks = [mask_of(gm, i) for i in range(len(families))]
        nothing = [torch.zeros(0, dtype=torch.int64) for _ in families]
        self.restore(nothing, nothing, None)

    def named(self) -> dict[str, Tensor]:
        """Every variable tensor by name."""
        pairs = zip(self._families, self._tensors, strict=True)
        return {slot.tensor: t for family, tensors in pairs for slot, t in zip(family.variables, tensors, strict=True)}

    @property
    def device(self) -> torch.device:
        """Where vectors over ZIGs are kept."""
        return self._tensors[0][0].device

    def restore(self, active: Sequence[Tensor], gone: Sequence[Tensor], zero: Tensor | None) -> None:
        """Make these the active and the gone ZIGs."""
        self.active, self.gone = [part.cpu() for part in active], [part.cpu() for part in gone]
        count = sum(map(len, active))
        fresh = torch.zeros(count, dtype=torch.bool, device=self.device)
        self.zero = fresh if zero is None else zero.to(self.device).clone()
        self.blocks, self._dead = self._blocks(self.active), self._blocks(self.gone)
        self.before: list[Tensor] = []
        self._moved: list[Tensor] = []

    def activate(self, chosen: Sequence[Tensor]) -> None:
        """Make active those of the chosen ZIGs that are not gone yet."""
        fresh = [new[~torch.isin(new, old)] for new, old in zip(chosen, self.gone, strict=True)]
        self.restore(fresh, self.gone, None)

    def retire(self, base: Optimizer) -> None:
        """Set what is active to zero, and count it as gone."""
        self.zero.fill_(True)
        self.retire_zero(base)

    def retire_zero(self, base: Optimizer) -> None:
        """Count the active ZIGs that are zero as gone: set their part of the base's state to zero too."""
        if not self.zero.any():
            return
        flags = self.zero.cpu().split([len(mine) for mine in self.active])
        for block in self._blocks([mine[flag] for mine, flag in zip(self.active, flags, strict=True)]):
            for target in (block.tensor, *_buffers(base, block.tensor)):
                block.clear(target)
        self._write_masks()
        both = zip(self.gone, self.active, flags, strict=True)
        gone = [torch.cat((old, mine[flag])).sort().values for old, mine, flag in both]
        self.restore([mine[~flag] for mine, flag in zip(self.active, flags, strict=True)], gone, None)

    def keep_zero(self) -> None:
        """Undo what the base's step did to the ZIGs that are gone."""
        for block in self._dead:
            block.clear(block.tensor)

    def count_zero(self) -> Tensor:
        """How many ZIGs are zero: int64, without shape."""
        return self.zero.sum() + sum(map(len, self.gone))

    # -- the active ZIGs -------------------------------------------------------------------------------

    def remember(self) -> None:
        """Keep the active variables as they are now in ``before``; they may be overwritten and written back."""
        self.before = self.before or [block.read(block.tensor) for block in self.blocks]
        for block, values in zip(self.blocks, self.before, strict=True):
            if block.changed:
                block.read(block.tensor, out=values)

    def restore_before(self, before: Sequence[Tensor]) -> None:
        """Take up ``before`` from a checkpoint."""
        self.before = [values.to(block.tensor.device) for block, values in zip(self.blocks, before, strict=False)]

    def moved(self) -> list[Tensor]:
        """``before`` less the active variables as they are now."""
        self._moved = self._moved or [torch.empty_like(values) for values in self.before]
        for block, before, out in zip(self.blocks, self.before, self._moved, strict=True):
            torch.sub(before, block.read(block.tensor, out=out), out=out)
        return self._moved

    def commit(self, project: Tensor) -> None:
        """Count these active ZIGs as zero from now on, in the masks too; bool, shape ``(active,)``."""
        self.zero |= project
        self._write_masks()

    def scale(self, factor: float) -> None:
        """Multiply the active variables."""
        for block in self.blocks:
            block.write(block.read(block.tensor) * factor)

    # -- all ZIGs --------------------------------------------------------------------------------------

    def statistics(self, sign: dict[int, float]) -> list[ZIGStatistics]:
        """Of every family, from the gradients that are there now.

        Args:
            sign: by ``id`` of a parameter, −1 where the loss is maximised.
        """
        found = []
        for family, tensors in zip(self._families, self._tensors, strict=True):
            dtype = _arithmetic(tensors[0])
            sums = torch.zeros(3, len(family), dtype=dtype, device=self.device)
            for slot, tensor in zip(family.variables, tensors, strict=True):
                block = _Block(tensor, slot.dim, slot.index.reshape(-1).to(tensor.device), slice(0, len(family)))
                x = block.rows(block.read(tensor)).flatten(1)
                g = torch.zeros_like(x)
                if tensor.grad is not None:
                    g = block.rows(block.read(tensor.grad)).flatten(1) * sign.get(id(tensor), 1.0)
                sums += torch.stack([(x * x).sum(1), (x * g).sum(1), (g * g).sum(1)]).to(sums)
            found.append(ZIGStatistics.of(sums[0], sums[1], sums[2], family))
        return found

    def _blocks(self, zigs: Sequence[Tensor]) -> list[_Block]:
        blocks, start = [], 0
        for family, tensors, mine in zip(self._families, self._tensors, zigs, strict=True):
            place = slice(start, start + len(mine))
            start = place.stop
            for slot, tensor in zip(family.variables, tensors, strict=True):
                if len(mine):
                    blocks.append(_Block(tensor, slot.dim, slot.index[mine].reshape(-1).to(tensor.device), place))
        return blocks

    def _write_masks(self) -> None:
        start = 0
        for mask, mine in zip(self._masks, self.active, strict=True):
            if mask is not None and len(mine):
                kept = ~self.zero[start : start + len(mine)]
                mask.index_copy_(0, mine.to(mask.device), kept.to(mask))
            start += len(mine)


def _arithmetic(tensor: Tensor) -> torch.dtype:
    """Half precision is summed in float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _buffers(base: Optimizer, tensor: Tensor) -> list[Tensor]:
    """What the base keeps for each entry of a parameter, such as momentum."""
    state: dict[str, Any] = base.state.get(tensor, {})
    values = [value for value in state.values() if isinstance(value, Tensor)]
    return [value for value in values if value.shape == tensor.shape and value.ndim]
