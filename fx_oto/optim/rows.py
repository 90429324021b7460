"""The variables of the redundant ZIGs: read, written and kept at zero, a tensor for each slot and no loop over ZIGs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fx_oto.core.errors import SettingsError
from fx_oto.core.fx_utils import tensor_names
from fx_oto.optim.saliency import ZIGStatistics
from fx_oto.zigs.families import Family

__all__ = ["Rows"]

# The integers of the same width as numbers.
_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
_NONE = torch.zeros(0, dtype=torch.int64, device="cpu")


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
    _kept: Tensor | None = None

    @property
    def changed(self) -> bool:
        """Whether the parameter may differ from what was written last."""
        return bool(self.tensor._version != self._written)

    def read(self, source: Tensor, out: Tensor | None = None) -> Tensor:
        """Gather this block's entries of ``source``, in at least float32."""
        source = _real(source)
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
        return part.view(-1, *(1,) * _real(self.tensor).ndim)

    def write(self, values: Tensor) -> None:
        """Put back what ``read`` returned."""
        real = _real(self.tensor)
        real.index_copy_(self.dim, self.index, values.to(real.dtype))
        if values.dtype == real.dtype:  # else it was rounded
            self._written = self.tensor._version

    def clear(self, target: Tensor) -> None:
        """Set the entries of a tensor of the parameter's shape to zero."""
        bits = _BITS.get(target.dtype)
        if bits is None or 4 * len(self.index) < target.size(self.dim):
            target.index_fill_(self.dim, self.index, 0)
            return
        # Where many go, one pass over all in a row is three times as fast as the indices; and unlike a product with 0,
        # bits that are masked out are 0 of NaN and of infinity, too.
        if self._kept is None or self._kept.dtype != bits or self._kept.device != target.device:
            self._kept = torch.full((target.size(self.dim),), -1, dtype=bits, device=target.device)
            self._kept.index_fill_(0, self.index, 0)
        shape = [1] * target.ndim
        shape[self.dim] = -1
        target.view(bits).bitwise_and_(self._kept.view(shape))


class Rows:
    """Which ZIGs are redundant, and their variables.

    A redundant ZIG is *active* while it is driven to zero, *gone* once it is zero and stays so.

    Attributes:
        active: for each family, positions of the active ZIGs.
        gone: for each family, positions of those that are gone.
        count: number of active ZIGs.
        before: the active variables when they were last remembered, one tensor for each block.
    """

    def __init__(self, gm: nn.Module, families: Sequence[Family], gone: Sequence[Tensor] = ()) -> None:
        tensors = tensor_names(gm)
        self._families = families
        self._tensors = [[tensors[slot.tensor] for slot in family.variables] for family in families]
        none = [_NONE] * len(families)
        self.restore(none, gone or none)

    def named(self) -> dict[str, Tensor]:
        """Every variable tensor by name."""
        pairs = zip(self._families, self._tensors, strict=True)
        return {slot.tensor: t for family, tensors in pairs for slot, t in zip(family.variables, tensors, strict=True)}

    @property
    def device(self) -> torch.device:
        """Where vectors over ZIGs are kept."""
        return self._tensors[0][0].device

    @property
    def dtype(self) -> torch.dtype:
        """In which vectors over ZIGs are kept."""
        return _arithmetic(self._tensors[0][0])

    def restore(self, active: Sequence[Tensor], gone: Sequence[Tensor]) -> None:
        """Make these the active and the gone ZIGs."""
        self.active, self.gone = [part.cpu() for part in active], [part.cpu() for part in gone]
        self.count = sum(map(len, active))
        self.blocks, self._dead = self._blocks(self.active), self._blocks(self.gone)
        self.before: list[Tensor] = []
        self._moved: list[Tensor] = []

    def activate(self, chosen: Sequence[Tensor]) -> None:
        """Make active those of the chosen ZIGs that are not gone yet."""
        self.restore([new[~torch.isin(new, old)] for new, old in zip(chosen, self.gone, strict=True)], self.gone)

    def retire(self, base: Optimizer, which: Tensor) -> None:
        """Make some active ZIGs zero for good, in the parameters and the base's state.

        Args:
            base: the base optimizer.
            which: bool, shape ``(count,)``.
        """
        flags = which.cpu().split([len(mine) for mine in self.active])
        leaving = [mine[flag] for mine, flag in zip(self.active, flags, strict=True)]
        if not any(map(len, leaving)):
            return
        for block in self._blocks(leaving):
            for target in (block.tensor, *_buffers(base, block.tensor)):
                block.clear(target)
        gone = [torch.cat(pair).sort().values for pair in zip(self.gone, leaving, strict=True)]
        self.restore([mine[~flag] for mine, flag in zip(self.active, flags, strict=True)], gone)

    def project(self, module: nn.Module) -> None:
        """Set the ZIGs that are gone to zero in a module that has the model's parameters under their names.

        Raises:
            SettingsError: a parameter is missing, or has another shape.
        """
        tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
        wanted = self.named()
        first = next(iter(wanted))
        prefixes = sorted((name.removesuffix(first) for name in tensors if name.endswith(first)), key=len)
        fits = (p for p in prefixes if all(_alike(one, tensors.get(p + name)) for name, one in wanted.items()))
        if (prefix := next(fits, None)) is None:
            lost = next(name for name, one in wanted.items() if not _alike(one, tensors.get(name)))
            found = "has no such parameter" if lost not in tensors else f"has it as {tuple(tensors[lost].shape)}"
            raise SettingsError(
                f"project expects a copy of the model, with {lost!r} of shape {tuple(wanted[lost].shape)}; this "
                f"{type(module).__name__} {found}"
            )
        names = {id(tensor): name for name, tensor in wanted.items()}
        for block in self._dead:
            target = tensors[prefix + names[id(block.tensor)]]
            target.index_fill_(block.dim, block.index.to(target.device), 0)

    def keep_zero(self) -> None:
        """Undo what the base's step did to the ZIGs that are gone."""
        for block in self._dead:
            block.clear(block.tensor)

    @property
    def num_gone(self) -> int:
        """How many ZIGs are gone."""
        return sum(map(len, self.gone))

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
        for family, tensors, alive in zip(self._families, self._tensors, self.alive(), strict=True):
            sums = torch.zeros(3, len(family), dtype=self.dtype, device=self.device)
            for slot, tensor in zip(family.variables, tensors, strict=True):
                block = _Block(tensor, slot.dim, slot.index.reshape(-1).to(tensor.device), slice(0, len(family)))
                x = block.rows(block.read(tensor)).flatten(1)
                g = torch.zeros_like(x)
                if tensor.grad is not None:
                    g = block.rows(block.read(tensor.grad.to_dense())).flatten(1) * sign.get(id(tensor), 1.0)
                sums += torch.stack([(x * x).sum(1), (x * g).sum(1), (g * g).sum(1)]).to(sums)
            found.append(ZIGStatistics.of(sums[0], sums[1], sums[2], alive, family))
        return found

    def alive(self) -> list[Tensor]:
        """For each family, which ZIGs are not gone: bool, shape ``(zigs,)``."""
        kept = [torch.ones(len(family), dtype=torch.bool) for family in self._families]
        return [alive.index_fill(0, gone, False).to(self.device) for alive, gone in zip(kept, self.gone, strict=True)]

    def _blocks(self, zigs: Sequence[Tensor]) -> list[_Block]:
        blocks, start = [], 0
        for family, tensors, mine in zip(self._families, self._tensors, zigs, strict=True):
            place = slice(start, start + len(mine))
            start = place.stop
            for slot, tensor in zip(family.variables, tensors, strict=True):
                if len(mine):
                    blocks.append(_Block(tensor, slot.dim, slot.index[mine].reshape(-1).to(tensor.device), place))
        return blocks


def _alike(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and other.shape == tensor.shape


def _arithmetic(tensor: Tensor) -> torch.dtype:
    """Half precision is summed in float32, complex numbers as pairs."""
    return torch.promote_types(tensor.dtype.to_real(), torch.float32)


def _real(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, along one more axis: their squares and products add up alike."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _buffers(base: Optimizer, tensor: Tensor) -> list[Tensor]:
    """What the base keeps for each entry of a parameter, such as momentum."""
    state: dict[str, Any] = base.state.get(tensor, {})
    values = [value for value in state.values() if isinstance(value, Tensor)]
    return [value for value in values if value.shape == tensor.shape and value.ndim]
