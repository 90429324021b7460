"""A growing union-find over atoms, vectorised over tensors of atoms.

An *atom* is an integer that stands for one index of one dimension of one parameter, buffer or created
tensor. Atoms of one class must be kept or removed together. Atom 0 is reserved: it stands for what is
frozen or unknown, and is never united with anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Atoms"]


class Atoms:
    """Disjoint sets of atoms; unions are collected and carried out together when a root is asked for."""

    def __init__(self) -> None:
        self._count = 1
        self._parent = torch.zeros(1, dtype=torch.int64)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        """Number of atoms handed out, the reserved atom 0 included."""
        return self._count

    def copy(self) -> Atoms:
        """The same classes, apart from now on."""
        self._settle()
        copy = Atoms()
        copy._count, copy._parent = self._count, self._parent.clone()
        return copy

    def fresh(self, count: int) -> Tensor:
        """Hand out ``count`` new atoms, each in a class of its own: int64, shape ``(count,)``."""
        first = self._count
        self._count += count
        return torch.arange(first, self._count)

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Unite two tensors of atoms elementwise, under broadcasting."""
        if left is right:
            return
        left, right = torch.broadcast_tensors(left, right)
        self._pending.append((left.reshape(-1), right.reshape(-1)))

    def find(self, atoms: Tensor) -> Tensor:
        """The smallest atom of each atom's class, in the shape of ``atoms``."""
        self._settle()
        root = self._root(atoms)
        self._parent[atoms] = root
        return root

    def roots(self) -> Tensor:
        """The root of every atom, indexed by atom."""
        self._settle()
        self._parent = self._root(torch.arange(self._count))
        return self._parent

    def _root(self, atoms: Tensor) -> Tensor:
        root = self._parent[atoms]
        while not torch.equal(above := self._parent[root], root):
            root = above
        return root

    def _settle(self) -> None:
        known = self._parent.numel()
        if known < self._count:
            self._parent = torch.cat([self._parent, torch.arange(known, self._count)])
        if self._pending:
            left, right = (torch.cat(side) for side in zip(*self._pending, strict=True))
            self._pending.clear()
            self._connect(left, right)

    def _connect(self, left: Tensor, right: Tensor) -> None:
        # Hook every larger root under the smallest root it touches, until both ends agree everywhere. A chain 1-2, 2-3,
        # 3-4 takes two rounds: first 2, 3 and 4 are hooked under 1, 2 and 3, then all have the root 1. The smallest
        # atom of a class is its root, whatever the order of the unions: names of classes do not depend on it.
        while True:
            atoms = torch.cat([left, right])
            root = self._root(atoms)
            self._parent[atoms] = root
            left, right = root.chunk(2)
            low, high = torch.minimum(left, right), torch.maximum(left, right)
            apart = low != high
            if not apart.any():
                return
            left, right = low[apart], high[apart]
            self._parent.scatter_reduce_(0, right, left, "amin")
