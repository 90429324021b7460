"""Writing into a graph what is left of its branches."""

from __future__ import annotations

from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from fx_oto.nn.modes import says_in_place
from fx_oto.ops.branches.aliases import Aliases
from fx_oto.ops.branches.finding import Branches, Sink
from fx_oto.ops.branches.known import Writer
from fx_oto.ops.branches.rules import out_of_place

__all__ = ["drop"]


def drop(found: Branches) -> None:
    """Let each sink read what is left of its branches, and erase what nothing needs; the graph is changed.

    Args:
        found: what goes of a graph.
    """
    graph, aliases = found.gm.graph, Aliases(found.gm)
    shown = set(aliases.chain(graph.output_node())) | {
        one for output in graph.output_node().all_input_nodes for one in aliases.chain(output)
    }
    written = {one for writer in aliases.writers if writer in found.live for one in aliases.written(writer)}
    made: dict[Any, Node] = {}
    for reader, (before, twin) in found.twins.items():
        reader.replace_input_with(before, twin)
    for node, sink in found.sinks.items():
        if node not in found.live:
            continue
        if sink.passes:
            _pass_on(found, sink, copied=node in shown or node in written or not written.isdisjoint({sink.like}))
        else:
            _read_thin(found, sink, made)
    for node in reversed(found.dead):
        if node.op != "placeholder" and not node.users:
            graph.erase_node(node)


def _pass_on(found: Branches, sink: Sink, copied: bool) -> None:
    """Let the readers of ``x + 0`` read x, or a copy where one of the two is written into, or returned."""
    graph, node, value = found.gm.graph, sink.node, sink.like
    if copied and not (says_in_place(node) and node.args[0] is value):
        with graph.inserting_before(node):
            value = graph.call_method("clone", (value,))
        value.meta["val"] = node.meta["val"]
        found.live.add(value)
    node.replace_all_uses_with(value)
    found.live.discard(node)


def _read_thin(found: Branches, sink: Sink, made: dict[Any, Node]) -> None:
    node, graph = sink.node, found.gm.graph
    writer = Writer(graph, node, sink.like, made)
    thin = {one: writer.of(known) for one, known in sink.known.items() if known.write is not None}
    args, kwargs = map_arg((node.args, node.kwargs), lambda one: thin.get(one, one))
    if not (says_in_place(node) and node.args[0] in thin):
        node.args, node.kwargs = args, kwargs
        return
    new = out_of_place(writer, node, args, kwargs)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    found.live.add(new)
    found.live.discard(node)
