"""Dropping what no output depends on: branches of which every ZIG is gone, and dead weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import GraphModule

from fx_oto.analysis.dependencies import Dependencies
from fx_oto.core.context import Context
from fx_oto.core.fx_utils import graph_copy, is_sharded, tensor_names
from fx_oto.core.masks import is_mask
from fx_oto.core.tables import Tabular, counted, table
from fx_oto.framework.stages import Pass
from fx_oto.framework.trajectory import Trajectory
from fx_oto.ops.branches import Gone, drop, find_branches
from fx_oto.passes.physical_slicing import SlicingPlan
from fx_oto.zigs.partition import Partition, partition

__all__ = ["DropBranches", "DroppedBranches"]

_COLUMNS = ("tensor", "shape")


@dataclass(frozen=True, eq=False, repr=False)
class DroppedBranches(Tabular):
    """What ``DropBranches`` took out; ``str()`` is a table, a notebook shows it as HTML.

    Attributes:
        families: names of the families of which every ZIG was zero, and whose branch is gone.
        nodes: names of the nodes that are gone.
        tensors: the parameters and buffers that are gone, by name, with the shape that slicing had left.

    Example:
        >>> import torch, fx_oto
        >>> class Residual(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.down, self.head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4), torch.nn.Linear(4, 2)
        ...     def forward(self, x):
        ...         return self.head(x + self.down(self.up(x).relu()))
        >>> gm = fx_oto.prepare(Residual(), torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_zigs_(0, torch.arange(8))
        >>> fx_oto.Context.of(fx_oto.compress(gm)).get(fx_oto.DroppedBranches).tensors
        {'up.weight': (1, 4), 'up.bias': (1,), 'down.weight': (4, 1)}
    """

    provided_by: ClassVar[str] = "drop-branches"

    families: tuple[str, ...]
    nodes: tuple[str, ...]
    tensors: dict[str, tuple[int, ...]]

    @property
    def _summary(self) -> str:
        families = counted(len(self.families), "family", "families")
        return f"{counted(len(self.nodes), 'node', 'nodes')} dropped, with all of {families}"

    def to_dict(self) -> dict[str, Any]:
        """``families``, ``nodes``, and of the ``tensors`` name and shape."""
        tensors = [{"tensor": name, "shape": list(shape)} for name, shape in self.tensors.items()]
        return {"families": list(self.families), "nodes": list(self.nodes), "tensors": tensors}

    def _tables(self, style: str) -> tuple[str, ...]:
        rows = [(name, "×".join(map(str, shape))) for name, shape in self.tensors.items()]
        return (
            table([(name,) for name in self.families], ("family",), style),
            table(rows, _COLUMNS, style, _COLUMNS[1:]),
        )


@dataclass(frozen=True)
class DropBranches(Pass):
    """Take out what no output depends on, after slicing: nodes, modules, parameters and buffers.

    Where every ZIG of the inner width of a branch is zero, such as all heads of attention, the branch computes the same
    for every input: the bias of its last layer, or zero. That is added instead, broadcast, and remains trainable. A
    BatchNorm after the last layer stays, and is given two examples of what it would be given everywhere, so that in
    both modes it returns, and remembers, what it did. Dropout of a bias, and stochastic depth, go on drawing.

    Nodes that no output depends on go as well, with the random numbers that they would draw. Provides
    ``DroppedBranches`` if something was dropped.

    Example:
        >>> import torch, fx_oto
        >>> class Residual(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.down, self.head = (torch.nn.Linear(4, 4) for _ in range(3))
        ...     def forward(self, x):
        ...         return self.head(x + self.down(self.up(x).relu()))
        >>> gm = fx_oto.prepare(Residual(), torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_zigs_(0, torch.arange(4))
        >>> small = fx_oto.compress(gm)
        >>> sorted(name for name, _ in small.named_parameters())
        ['down.bias', 'head.bias', 'head.weight']
        >>> fx_oto.Context.of(small).get(fx_oto.DroppedBranches).families
        ('up.weight',)
    """

    name: ClassVar[str] = "drop-branches"
    requires: ClassVar[tuple[type, ...]] = (SlicingPlan,)
    provides: ClassVar[tuple[type, ...]] = ()
    preserves: ClassVar[tuple[type, ...]] = (SlicingPlan, Trajectory)

    @staticmethod
    def finds_any(gm: GraphModule) -> bool:
        """Whether there will be something to drop once a GraphModule is sliced.

        Args:
            gm: a prepared GraphModule.
        """
        results = Context.of(gm).results
        unread = any(one.is_meta or is_sharded(one) for one in gm.parameters())
        if unread or Dependencies not in results or Partition not in results:
            return False  # slicing says why not
        found, zigs = results[Dependencies], partition(gm)
        gone = [family.classes for family, zero in zip(zigs.families, zigs.zeros(), strict=True) if zero.all()]
        return any(not is_mask(node) for node in find_branches(gm, Gone(found, gone)).dead)

    def transform(self, gm: GraphModule, context: Context) -> GraphModule | None:
        """Drop what is not needed; None where all is."""
        plan = context.get(SlicingPlan)
        found = find_branches(gm, Gone(plan.cuts.found, list(plan.gone.values()), compact=True))
        dead = tuple(node.name for node in found.dead)
        if not dead:
            return None
        before = tensor_names(gm)
        drop(found)
        new = graph_copy(gm)  # with the tensors alone that are read
        left = {id(tensor) for tensor in tensor_names(new).values()}
        tensors = {name: tuple(one.shape) for name, one in before.items() if id(one) not in left}
        families = tuple(name for name in plan.gone if id(before.get(name)) not in left)
        return context.provide(DroppedBranches(families, dead, tensors)).attach(new)

    def refusals(self, gm: GraphModule, context: Context) -> Iterator[str]:
        """Families of which every ZIG is zero, and one is kept all the same."""
        left = tensor_names(gm)
        for name in context.get(SlicingPlan).gone:
            if name in left:
                yield f"all ZIGs of {name!r} are zero; one stays, for what is left is read where its size is needed"
