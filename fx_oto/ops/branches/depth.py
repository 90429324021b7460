"""What goes with whole families, of a prepared model: found when it is asked for, and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fx_oto.analysis.dependencies import Dependencies
from fx_oto.core.fx_utils import tensor_names
from fx_oto.core.unused import parameters_of_graph
from fx_oto.ops.branches.finding import find_branches
from fx_oto.ops.branches.gone import Gone
from fx_oto.ops.branches.results import Branches
from fx_oto.zigs.families import Family

__all__ = ["BranchDepth"]


class BranchDepth:
    """Answers as ``Depth`` asks.

    Args:
        gm: the GraphModule as it was analysed.
        found: its dependencies.
        families: of its partition.
    """

    def __init__(self, gm: GraphModule, found: Dependencies, families: Sequence[Family]) -> None:
        self._gm, self._found, self._families = gm, found, tuple(families)
        self._known: dict[frozenset[int], Branches] = {}
        self._left: dict[tuple[str, frozenset[int]], Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> BranchDepth:
        """Share what is found: it does not depend on the numbers in the model."""
        return self

    def _without(self, gone: frozenset[int]) -> Branches:
        if gone not in self._known:
            classes = [self._families[i].classes for i in sorted(gone)]
            self._known[gone] = find_branches(self._gm, Gone(self._found, classes))
        return self._known[gone]

    def params(self, gone: frozenset[int]) -> Tensor:
        """The fraction of each parameter that stays; shape ``(params,)``."""
        if ("params", gone) not in self._left:
            held = self._without(gone).held
            stays = [float(id(one) in held) for one in parameters_of_graph(self._gm).values()]
            self._left["params", gone] = torch.tensor(stays, dtype=torch.float64)
        return self._left["params", gone]

    def macs(self, gone: frozenset[int]) -> Tensor:
        """The fraction of each contraction that is still made; shape ``(contractions,)``."""
        if ("macs", gone) not in self._left:
            found = self._without(gone)
            nodes = {node.name: node for node in self._gm.graph.nodes}
            made = [found.left(nodes[work.node]) for work in self._found.works]
            self._left["macs", gone] = torch.tensor(made, dtype=torch.float64)
        return self._left["macs", gone]

    def may_go(self, wanted: Sequence[int]) -> frozenset[int]:
        """Those of some families that can go altogether, all at once; of those that exclude each other, the first."""
        found = [i for i in wanted if self._goes(i)]
        if not self._without(frozenset(found)).cut_off:
            return frozenset(found)
        chosen = frozenset[int]()
        for i in found:
            if not self._without(chosen | {i}).cut_off:
                chosen |= {i}
        return chosen

    def _goes(self, i: int) -> bool:
        """Whether outputs stay without a family, and none of its variables does."""
        found, tensors = self._without(frozenset((i,))), tensor_names(self._gm)
        return not found.cut_off and not any(
            id(tensors[slot.tensor]) in found.held for slot in self._families[i].variables
        )
