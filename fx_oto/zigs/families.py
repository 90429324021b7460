"""Families of alike zero-invariant groups, the slots that they fill, and what is kept whole."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fx_oto.analysis.dependencies import Reason
from fx_oto.core.patterns import matches
from fx_oto.core.tables import counted

__all__ = ["Family", "FrozenAxis", "Slot", "shortened", "zero_variables"]


@dataclass(frozen=True, eq=False)
class Slot:
    """The part of one axis of one parameter or buffer that belongs to a family.

    Attributes:
        tensor: name of the parameter or buffer.
        dim: the axis.
        index: indices along the axis, one row for each ZIG: int64, shape ``(num_zigs, indices per ZIG)``.
        variable: True if DHSPG drives these entries to zero; False if they are only cut out.
        numel: elements of the tensor at one index of the axis.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> slot = fx_oto.partition(gm).families[0].slots[2]
        >>> print(slot, tuple(slot.index.shape), slot.variable)
        2.weight[1] (8, 1) False
    """

    tensor: str
    dim: int
    index: Tensor = field(repr=False)
    variable: bool
    numel: int

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}]"

    def to_dict(self) -> dict[str, Any]:
        """``tensor``, ``dim``, ``variable``, and ``indices``: how many of the axis belong to the family."""
        return {"tensor": self.tensor, "dim": self.dim, "variable": self.variable, "indices": self.index.numel()}


@dataclass(frozen=True, eq=False)
class Family:
    """ZIGs of the same structure: they fill the same slots with the same number of indices.

    ``len()`` is the number of its ZIGs.

    Attributes:
        name: the first variable tensor, which tells the families apart.
        classes: the root atom of each ZIG: int64, shape ``(num_zigs,)``.
        slots: every axis that the ZIGs have a part in.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> print(fx_oto.partition(gm).families[0])
        0.weight: 8 ZIGs in 0.weight[0], 0.bias[0], 2.weight[1]
    """

    name: str
    classes: Tensor = field(repr=False)
    slots: tuple[Slot, ...]

    def __len__(self) -> int:
        """Number of ZIGs."""
        return len(self.classes)

    def __str__(self) -> str:
        return f"{self.name}: {counted(len(self), 'ZIG', 'ZIGs')} in {shortened(self.slots)}"

    @property
    def variables(self) -> tuple[Slot, ...]:
        """The slots that DHSPG drives to zero."""
        return tuple(slot for slot in self.slots if slot.variable)

    def matches(self, pattern: str) -> bool:
        """Whether a glob ``pattern`` matches the name of one of its variables, or of a module that holds one.

        One axis of a variable is named as in ``"embed.weight[0]"``.
        """
        return any(matches(slot.tensor, (pattern,), slot.dim) for slot in self.variables)

    def part(self, fraction: float) -> int:
        """How many of its ZIGs a ``fraction`` of them is: rounded down, and at least one is kept."""
        return min(math.floor(fraction * len(self) + 1e-9), len(self) - 1)


@dataclass(frozen=True)
class FrozenAxis:
    """Indices of a parameter's axis that are kept whole, and why.

    Attributes:
        tensor: name of the parameter.
        dim: the axis.
        size: how many of its indices.
        reason: why.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> print(fx_oto.partition(gm).frozen[1])
        2.weight[0]: it is part of the model's output (op output)
    """

    tensor: str
    dim: int
    size: int
    reason: Reason

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}]: {self.reason}"


def shortened(slots: tuple[Slot, ...]) -> str:
    """The first few of them, in one line."""
    return ", ".join(map(str, slots[:4])) + (" …" if len(slots) > 4 else "")


def zero_variables(family: Family, tensors: dict[str, Tensor]) -> Tensor:
    """Which ZIGs of a family are zero in every variable: bool, shape ``(num_zigs,)``, on the CPU."""
    zero = torch.ones(len(family), dtype=torch.bool)
    for slot in family.variables:
        tensor = tensors[slot.tensor].detach()
        dims = [dim for dim in range(tensor.ndim) if dim != slot.dim]
        empty = (torch.linalg.vector_norm(tensor, math.inf, dim=dims) if dims else tensor) == 0
        zero &= empty.cpu()[slot.index].all(1)
    return zero
