"""The variables of the redundant ZIGs: read, written and kept at zero, a tensor for each slot and no loop over ZIGs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fx_oto.core.errors import SettingsError
from fx_oto.core.fx_utils import is_sharded, tensor_names
from fx_oto.optim.saliency import ZIGStatistics
from fx_oto.optim.shards import Shards, local
from fx_oto.zigs.families import Family, Slot

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
    """One slot's entries of some of its family's ZIGs: those that this process holds.

    Of a whole parameter each ZIG has as many; and of one that is sharded along another axis, too. Along the slot's own
    axis some ZIGs may have none, for another process has them.

    Attributes:
        tensor: the parameter.
        dim: the slot's axis.
        index: indices along it, of what this process holds, ZIG by ZIG, shape ``(entries,)``.
        zigs: the place of these ZIGs among all those that are looked at.
        owner: of each index the position of its ZIG in that place, shape ``(entries,)``; None if each has as many.
    """

    tensor: Tensor
    dim: int
    index: Tensor
    zigs: slice
    owner: Tensor | None
    _written: int = -1
    _kept: Tensor | None = None

    @classmethod
    def of(cls, tensor: Tensor, slot: Slot, mine: Tensor, zigs: slice, shards: Shards) -> _Block:
        """The entries of the ZIGs ``mine``, by position in their family."""
        index, owner = slot.index[mine], None
        start, length = shards.span(tensor, slot.dim)
        if length < tensor.size(slot.dim):
            here = (index >= start) & (index < start + length)
            index, owner = index[here] - start, here.nonzero()[:, 0].to(tensor.device)
        return cls(tensor, slot.dim, index.reshape(-1).to(tensor.device), zigs, owner)

    @property
    def changed(self) -> bool:
        """Whether the parameter may differ from what was written last; of a part of it nobody counts the changes."""
        return is_sharded(self.tensor) or bool(self.tensor._version != self._written)

    def read(self, source: Tensor, out: Tensor | None = None) -> Tensor:
        """Gather this block's entries of ``source``, in at least float32."""
        source = _real(local(source, like=self.tensor))
        if out is not None and out.dtype == source.dtype:
            return torch.index_select(source, self.dim, self.index, out=out)
        values = source.index_select(self.dim, self.index)
        return values.to(_arithmetic(values)) if out is None else out.copy_(values)

    def rows(self, values: Tensor) -> Tensor:
        """A view of what ``read`` returns, ``(rows, …)``: a row for each ZIG, or for each entry that has an owner."""
        zigs = self.zigs.stop - self.zigs.start
        shape = (zigs, len(self.index) // zigs) if self.owner is None else (len(self.owner), 1)
        view: Tensor = values.unflatten(self.dim, shape).movedim(self.dim, 0)
        return view

    def per_row(self, vector: Tensor) -> Tensor:
        """This block's part of a vector over all ZIGs, shaped to broadcast with ``rows``."""
        part = vector[self.zigs].to(self.tensor.device, non_blocking=True)
        part = part if self.owner is None else part[self.owner]
        return part.view(-1, *(1,) * _real(local(self.tensor)).ndim)

    def add(self, sums: Tensor, parts: Tensor) -> None:
        """Add what belongs to the rows, ``(lines, rows)``, to sums over all ZIGs, ``(lines, zigs)``."""
        place, parts = sums[:, self.zigs], parts.to(sums)
        if self.owner is None:
            place += parts
        else:
            place.index_add_(1, self.owner.to(sums.device), parts)

    def write(self, values: Tensor) -> None:
        """Put back what ``read`` returned."""
        if self.put(values, self.tensor):  # else it was rounded
            self._written = self.tensor._version

    def put(self, values: Tensor, target: Tensor) -> bool:
        """Put what ``read`` returned into a tensor of the parameter's shape; says if it is there as it was."""
        real = _real(local(target))
        real.index_copy_(self.dim, self.index, values.to(real.dtype))
        return values.dtype == real.dtype

    def clear(self, target: Tensor) -> None:
        """Set the entries of a tensor of the parameter's shape to zero."""
        target = local(target)
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
        self._shards = Shards(tensors)
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

    @property
    def sharded(self) -> bool:
        """Whether this process holds but a part of some of the model's tensors."""
        return self._shards.here

    def restore(self, active: Sequence[Tensor], gone: Sequence[Tensor]) -> None:
        """Make these the active and the gone ZIGs."""
        self.active, self.gone = [part.cpu() for part in active], [part.cpu() for part in gone]
        self.count = sum(map(len, active))
        self.blocks, self._dead = self._blocks(self.active), self._blocks(self.gone)
        self.before: list[Tensor] = []
        self._moved: list[Tensor] = []

    def phases(self) -> list[Tensor]:
        """For each family 1 for the active ZIGs, 2 for those that are gone, 0 for all others: shape ``(zigs,)``."""
        none = [torch.zeros(len(family), dtype=torch.uint8) for family in self._families]
        return [
            phase.index_fill(0, active, 1).index_fill(0, gone, 2).to(self.device)
            for phase, active, gone in zip(none, self.active, self.gone, strict=True)
        ]

    def restore_phases(self, phases: Sequence[Tensor]) -> None:
        """Take up what ``phases`` has returned."""
        self.restore(*([(phase == which).nonzero()[:, 0] for phase in phases] for which in (1, 2)))

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

    def project(self, module: nn.Module | Mapping[str, Tensor]) -> None:
        """Set the ZIGs that are gone to zero in a module that has the model's parameters under their names.

        Args:
            module: the module, or a state dict of one.

        Raises:
            SettingsError: a parameter is missing, or has another shape.
        """
        if isinstance(module, nn.Module):
            tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
        elif isinstance(module, Mapping):
            tensors = {name: one for name, one in module.items() if isinstance(one, Tensor)}
        else:
            raise SettingsError(f"project expects a module or a state dict, found {type(module).__name__}")
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
        for block in self._blocks(self.gone, {id(one): tensors[prefix + name] for name, one in wanted.items()}):
            block.clear(block.tensor)

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

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the active variables the values that ``before`` has."""
        for block, values in zip(self.blocks, self.before, strict=True):
            block.write(values)

    def before_by_name(self) -> dict[str, Tensor]:
        """``before`` for a checkpoint, in tensors of the parameters' shapes and layouts, zero elsewhere."""
        named = {name: torch.zeros_like(tensor, requires_grad=False) for name, tensor in self.named().items()}
        names = {id(tensor): name for name, tensor in self.named().items()}
        for block, values in zip(self.blocks, self.before, strict=False):
            block.put(values, named[names[id(block.tensor)]])
        return named

    def restore_before(self, before: Mapping[str, Tensor]) -> None:
        """Take up what ``before_by_name`` has returned."""
        names = {id(tensor): name for name, tensor in self.named().items()}
        saved = [before[names[id(block.tensor)]].to(block.tensor.device) for block in self.blocks]
        if any(is_sharded(one) != is_sharded(block.tensor) for one, block in zip(saved, self.blocks, strict=True)):
            raise SettingsError(
                "this state is of whole tensors, and the parameters are sharded, or the other way round: load it by "
                "torch.distributed.checkpoint.state_dict.set_state_dict, with full_state_dict=True if it is whole"
            )
        self.before = [block.read(one) for one, block in zip(saved, self.blocks, strict=True)]

    def moved(self) -> list[Tensor]:
        """``before`` less the active variables as they are now."""
        self._moved = self._moved or [torch.empty_like(values) for values in self.before]
        for block, before, out in zip(self.blocks, self.before, self._moved, strict=True):
            torch.sub(before, block.read(block.tensor, out=out), out=out)
        return self._moved

    def sums(self, lines: int, parts: Iterable[Tensor]) -> Tensor:
        """Sums over the variables of each active ZIG, of all processes together: shape ``(lines, count)``.

        Args:
            lines: how many different sums.
            parts: of each block, what its rows add to them, shape ``(lines, rows)``.
        """
        return self._sums(self.blocks, self.count, lines, parts)

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
        everything = self._blocks([torch.arange(len(family)) for family in self._families])
        sizes = [len(family) for family in self._families]
        sums = self._sums(everything, sum(sizes), 3, self._products(everything, sign)).split(sizes, dim=1)
        families = zip(sums, self.alive(), self._families, strict=True)
        return [ZIGStatistics.of(mine[0], mine[1], mine[2], alive, family) for mine, alive, family in families]

    def _products(self, blocks: Iterable[_Block], sign: Mapping[int, float]) -> Iterator[Tensor]:
        """Of each block ‖x‖², ⟨x, g⟩ and ‖g‖² of its rows, g being the gradient: shape ``(3, rows)``."""
        for block in blocks:
            x = block.rows(block.read(block.tensor)).flatten(1)
            g = torch.zeros_like(x)
            if (gradient := block.tensor.grad) is not None:
                g = block.rows(block.read(self._of_the_living(block.tensor, gradient))).flatten(1)
                g = g * sign.get(id(block.tensor), 1.0)
            yield torch.stack([(x * x).sum(1), (x * g).sum(1), (g * g).sum(1)])

    def _of_the_living(self, tensor: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of a parameter, and 0 for what is gone, where it may be NaN."""
        dense = gradient if is_sharded(gradient) else gradient.to_dense()
        if dead := [block for block in self._dead if block.tensor is tensor]:
            dense = dense.clone()
            for block in dead:
                block.clear(dense)
        return dense

    @torch.no_grad()
    def keep_gone(self, gone: Sequence[Tensor]) -> None:
        """Make those of these ZIGs gone that are zero in every variable."""
        everything = self._blocks([torch.arange(len(family)) for family in self._families])
        sizes = [len(family) for family in self._families]
        counts = ((block.rows(block.read(block.tensor)).flatten(1) != 0).sum(1)[None] for block in everything)
        found = self._sums(everything, sum(sizes), 1, counts).cpu().split(sizes, dim=1)
        zero = [mine[0] == 0 for mine in found]
        self.restore(self.active, [part[flags[part]] for part, flags in zip(gone, zero, strict=True)])

    def anywhere(self, flag: bool) -> bool:
        """Whether a flag is set on any of the processes that hold the variables."""
        return bool(self._shards.sum(torch.tensor([float(flag)], device=self.device)).any())

    def _sums(self, blocks: Sequence[_Block], count: int, lines: int, parts: Iterable[Tensor]) -> Tensor:
        sums = torch.zeros(lines, count, dtype=self.dtype, device=self.device)
        for block, part in zip(blocks, parts, strict=True):
            if self._shards.counts(block.tensor):
                block.add(sums, part)
        return self._shards.sum(sums)

    def alive(self) -> list[Tensor]:
        """For each family, which ZIGs are not gone: bool, shape ``(zigs,)``."""
        kept = [torch.ones(len(family), dtype=torch.bool) for family in self._families]
        return [alive.index_fill(0, gone, False).to(self.device) for alive, gone in zip(kept, self.gone, strict=True)]

    def _blocks(self, zigs: Sequence[Tensor], instead: Mapping[int, Tensor] | None = None) -> list[_Block]:
        """Blocks of ZIGs, by position in their families; ``instead`` has other tensors, by ``id`` of the variables."""
        blocks, start = [], 0
        for family, tensors, mine in zip(self._families, self._tensors, zigs, strict=True):
            place = slice(start, start + len(mine))
            start = place.stop
            for slot, tensor in zip(family.variables, tensors, strict=True):
                if len(mine):
                    target = tensor if instead is None else instead[id(tensor)]
                    blocks.append(_Block.of(target, slot, mine, place, self._shards))
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
    alike = [value for value in values if value.shape == tensor.shape and value.ndim]
    return [value for value in alike if is_sharded(value) == is_sharded(tensor)]
