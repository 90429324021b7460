"""Copies of a GraphModule that are to be changed before anybody runs them."""

from __future__ import annotations

import copy
from typing import Any

from torch.fx import Graph, GraphModule, Node

from fx_oto.core.fx_utils import with_modes_of

__all__ = ["assembled", "copied_graph", "draft_of"]


def draft_of(gm: GraphModule) -> GraphModule:
    """As ``graph_copy``, but without code: it does not run before it is recompiled, which the framework does."""
    new = with_modes_of(assembled(gm, copied_graph(gm), gm.__class__.__name__), gm)
    new.meta = dict(gm.meta)
    return new


def copied_graph(gm: GraphModule) -> Graph:
    """A graph of its own, whose nodes carry the same notes."""
    graph = Graph(tracer_cls=gm.graph._tracer_cls)
    renamed: dict[Node, Node] = {}
    output = graph.graph_copy(gm.graph, renamed)
    old = gm.graph.output_node()
    renamed[old] = graph.output(output)
    for before, after in renamed.items():
        after.meta = dict(before.meta)
    graph.set_codegen(copy.copy(gm.graph._codegen))
    return graph


def _nothing(gm: GraphModule) -> Any:
    """In the place of a recompilation."""


def assembled(root: object, graph: Graph, name: str) -> GraphModule:
    """A GraphModule without code, as making it is most of the work, and vain where the graph is changed first."""
    new = GraphModule.__new__(GraphModule)
    kind = type(new)  # a class of its own, as every GraphModule has
    kind.recompile = _nothing  # type: ignore[method-assign,assignment]
    try:
        GraphModule.__init__(new, root, graph, name)  # type: ignore[arg-type]
    finally:
        del kind.recompile
    return new
