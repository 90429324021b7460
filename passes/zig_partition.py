"""Partition of the trainable variables into zero-invariant groups (OTOv2, algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fx_oto.context import Context
from fx_oto.dependencies import Axis, Dependencies, Reason
from fx_oto.errors import SettingsError
from fx_oto.graph import tensor_names
from fx_oto.pipeline import Analysis
from fx_oto.zigs import Family, FrozenAxis, Partition, Slot

__all__ = ["ZIGPartition"]


@dataclass(frozen=True)
class ZIGPartition(Analysis):
    """Gather the classes of atoms into families of ZIGs; provides ``Partition``.

    Attributes:
        unprunable: glob patterns of parameter or module names that are kept whole.
    """

    name: ClassVar[str] = "zig-partition"

    unprunable: tuple[str, ...] = ()

    def analyse(self, gm: GraphModule, context: Context) -> Partition:
        """Sort every class into a family, or list its axes as frozen.

        Raises:
            SettingsError: a pattern in ``unprunable`` matches nothing.
        """
        return _Partitioner(gm, context.get(Dependencies), self.unprunable).run()


class _Partitioner:
    def __init__(self, gm: GraphModule, found: Dependencies, unprunable: tuple[str, ...]) -> None:
        self.found = found
        self.tensors = tensor_names(gm)
        self.parameters = set(dict(gm.named_parameters()))
        atoms = torch.arange(1, found.num_axis_atoms)
        self.atoms, self.classes = atoms, found.roots[atoms]
        self.axis = found.axis_of(atoms)
        self.starts = torch.tensor([axis.start for axis in found.axes], dtype=torch.int64)
        self.reasons = dict(found.reasons) | self._excluded(gm, unprunable) if unprunable else dict(found.reasons)

    def _excluded(self, gm: nn.Module, patterns: tuple[str, ...]) -> dict[int, Reason]:
        names = list(tensor_names(gm)) + [name for name, _ in gm.named_modules() if name]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise SettingsError(
                    f"the pattern {pattern!r} in unprunable matches no parameter or module; "
                    f"names look like {', '.join(map(repr, names[:3]))}"
                )
        excluded: dict[int, Reason] = {}
        for position, axis in enumerate(self.found.axes):
            prefixes = [axis.tensor, *_prefixes(axis.tensor)]
            hit = next((p for p in patterns if any(fnmatchcase(name, p) for name in prefixes)), None)
            if hit is not None:
                mine = self.classes[(self.axis == position) & self.found.produced[self.atoms]]
                excluded |= dict.fromkeys(mine.tolist(), Reason(f"unprunable: its name matches {hit!r}"))
        return excluded

    def run(self) -> Partition:
        is_parameter = torch.tensor([axis.tensor in self.parameters for axis in self.found.axes] or [False])
        variable = self.found.produced[self.atoms] & is_parameter[self.axis]
        driven = torch.zeros(len(self.found.roots), dtype=torch.bool)
        driven[self.classes[variable]] = True
        frozen = torch.zeros_like(driven)
        frozen[list(self.reasons)] = True
        prunable = driven & ~frozen
        return Partition(tuple(self._families(prunable)), tuple(self._frozen_axes(frozen)))

    def _families(self, prunable: Tensor) -> Iterator[Family]:
        """Classes with the same number of indices in the same axes make a family."""
        chosen = prunable[self.classes]
        classes, axis, atoms = self.classes[chosen], self.axis[chosen], self.atoms[chosen]
        order = torch.argsort(classes, stable=True)
        members: dict[tuple[tuple[int, int], ...], list[tuple[int, Tensor]]] = {}
        names, counts = classes[order].unique_consecutive(return_counts=True)
        axes, atoms = axis[order], atoms[order]
        signatures = _signatures(axes, counts)
        for name, signature, mine in zip(names.tolist(), signatures, atoms.split(counts.tolist()), strict=True):
            members.setdefault(signature, []).append((name, mine))
        for signature, group in members.items():
            yield self._family(signature, group)

    def _family(self, signature: tuple[tuple[int, int], ...], group: list[tuple[int, Tensor]]) -> Family:
        table = torch.stack([atoms for _, atoms in group])
        slots, column = [], 0
        for position, count in signature:
            slots.append(self._slot(position, table[:, column : column + count]))
            column += count
        name = next(slot.tensor for slot in slots if slot.variable)
        macs = float(self.found.macs[table].sum()) / len(group)
        return Family(name, torch.tensor([name for name, _ in group]), tuple(slots), macs)

    def _slot(self, position: int, atoms: Tensor) -> Slot:
        axis: Axis = self.found.axes[position]
        produced = bool(self.found.produced[atoms].all()) and axis.tensor in self.parameters
        numel = self.tensors[axis.tensor].numel() // axis.size if axis.tensor in self.parameters else 0
        return Slot(axis.tensor, axis.dim, atoms - axis.start, produced, numel)

    def _frozen_axes(self, frozen: Tensor) -> Iterator[FrozenAxis]:
        kept = frozen[self.classes]
        for position in self.axis[kept].unique().tolist():
            axis = self.found.axes[position]
            if axis.tensor not in self.parameters:
                continue
            classes = self.classes[kept & (self.axis == position)]
            by_reason: dict[Reason, int] = {}
            for root in classes.tolist():
                reason = self.reasons[root]
                by_reason[reason] = by_reason.get(reason, 0) + 1
            for reason, size in by_reason.items():
                yield FrozenAxis(axis.tensor, axis.dim, size, reason)


def _signatures(axes: Tensor, counts: Tensor) -> list[tuple[tuple[int, int], ...]]:
    """For each class, the axes it has a part in, each with the number of its indices there."""
    class_of = torch.arange(len(counts)).repeat_interleave(counts)
    width = int(axes.max()) + 1 if axes.numel() else 1
    keys, sizes = (class_of * width + axes).unique_consecutive(return_counts=True)
    found: list[list[tuple[int, int]]] = [[] for _ in range(len(counts))]
    for key, size in zip(keys.tolist(), sizes.tolist(), strict=True):
        found[key // width].append((key % width, size))
    return [tuple(pairs) for pairs in found]


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]
