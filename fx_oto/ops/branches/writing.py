"""Writing into a graph what is left of its branches."""

from __future__ import annotations

from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from fx_oto.nn.modes import says_in_place
from fx_oto.ops.branches.aliases import Aliases
from fx_oto.ops.branches.elementwise import out_of_place
from fx_oto.ops.branches.known import Writer
from fx_oto.ops.branches.results import Branches, Sink
from fx_oto.ops.branches.sizes import Size

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
    now: dict[Node, Node] = {}  # of two branches in a row, the first may have gone
    for reader, (before, twin) in found.twins.items():
        reader.replace_input_with(before, twin)
    for reader, size in found.sizes.items():
        _read_elsewhere(found, reader, size)
    for node, sink in found.sinks.items():
        if node not in found.live:
            continue
        like = now.get(sink.like, sink.like)
        if sink.passes:
            now[node] = _pass_on(found, node, like, copied=bool({node, like} & written) or node in shown)
        else:
            early = {one for one in aliases.order if aliases.order[one] > aliases.order[sink.like]}
            now[node] = _read_thin(found, sink, Writer(graph, node, like, made, early))
    for node in reversed(found.dead):
        if node.op != "placeholder" and not node.users:
            graph.erase_node(node)


def _read_elsewhere(found: Branches, reader: Node, size: Size) -> None:
    if isinstance(size, tuple):
        reader.args = size
        return
    for user in list(reader.users):
        user.args, user.kwargs = map_arg((user.args, user.kwargs), lambda one: size if one is reader else one)
    found.live.discard(reader)


def _pass_on(found: Branches, node: Node, value: Node, copied: bool) -> Node:
    """Let the readers of ``x + 0`` read x, or a copy where one of the two is written into, or returned."""
    if copied and not (says_in_place(node) and node.args[0] is value):
        with node.graph.inserting_before(node):
            copy = node.graph.call_method("clone", (value,))
        copy.meta["val"] = node.meta["val"]
        found.live.add(copy)
        value = copy
    node.replace_all_uses_with(value)
    found.live.discard(node)
    return value


def _read_thin(found: Branches, sink: Sink, writer: Writer) -> Node:
    """Let a sink read what is known by thin values."""
    node = sink.node
    thin = {one: writer.of(known) for one, known in sink.known.items() if known.write is not None}
    args, kwargs = map_arg((node.args, node.kwargs), lambda one: thin.get(one, one))
    if not (says_in_place(node) and node.args[0] in thin):
        node.args, node.kwargs = args, kwargs
        return node
    new = out_of_place(writer, node, args, kwargs)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    found.live.add(new)
    found.live.discard(node)
    return new
