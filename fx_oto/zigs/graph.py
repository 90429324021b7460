"""A partition as a networkx graph: parameter axes, joined where a family couples them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fx_oto.core.fx_utils import tensor_names
from fx_oto.zigs.families import Family, FrozenAxis

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["coupling_graph"]


def coupling_graph(families: Sequence[Family], frozen: Sequence[FrozenAxis], module: nn.Module | None) -> nx.Graph[str]:
    """See ``Partition.to_networkx``."""
    import networkx as nx  # noqa: PLC0415 - takes long to load, and few draw it

    graph: nx.Graph[str] = nx.Graph()
    shapes = {} if module is None else {name: t.shape for name, t in tensor_names(module).items()}
    for family in sorted(families, key=len):
        lead = str(family.variables[0])
        for slot in family.slots:
            known = _axis_node(graph, slot.tensor, slot.dim, shapes)
            known.update(variable=known["variable"] or slot.variable, frozen=False)
            known["prunable"] += slot.index.numel()
            if str(slot) != lead:
                graph.add_edge(lead, str(slot), family=family.name, zigs=len(family))
    for axis in frozen:
        known = _axis_node(graph, axis.tensor, axis.dim, shapes)
        known["kept"] += axis.size
        known.setdefault("reason", str(axis.reason))
    return graph


def _axis_node(graph: nx.Graph[str], tensor: str, dim: int, shapes: dict[str, torch.Size]) -> dict[str, Any]:
    """The attributes of an axis in the graph, which it is added to if it is new."""
    name = f"{tensor}[{dim}]"
    if name not in graph:
        size = {"size": shapes[tensor][dim]} if tensor in shapes else {}
        graph.add_node(name, tensor=tensor, dim=dim, variable=False, frozen=True, prunable=0, kept=0, **size)
    found: dict[str, Any] = graph.nodes[name]
    return found
