"""Nodes that stay in the compact graph, whose values must stay rectangles of sizes that they can compute with."""

from __future__ import annotations

from collections.abc import Collection

from torch.fx import Node

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.findings import Values
from fx_oto.core.fx_utils import op_name, tensor_leaves

__all__ = ["keep_rectangles"]


def keep_rectangles(p: Propagation, nodes: Collection[Node], values: Values, gathers: Collection[str]) -> None:
    """A grid may lose any shape only if all that reads it is replaced, at the end of a chain of movement.

    Args:
        p: the engine.
        nodes: all nodes of the graph, in order.
        values: the layers of each tensor in their values, by name.
        gathers: those that are replaced by a selection from the beginning of such a chain, by name.
    """
    passing: set[Node] = set()
    for node in reversed(list(nodes)):
        readers = [user for user in node.users if tensor_leaves(user.meta.get("val"))]
        if readers and all(user in passing or user.name in gathers for user in readers):
            passing.add(node)
            continue
        p.node = node.name
        if node.name not in gathers:
            _keep_pixels_whole(p, node, values)
        for layer in (layer for layers in values.get(node.name, ()) for layer in layers if len(layer.dims) > 1):
            p.rectangle(layer.labels)


def _keep_pixels_whole(p: Propagation, node: Node, values: Values) -> None:
    """Of the channels that become pixels, or were pixels, all go that belong to one channel on the other side."""
    direction = op_name(node).lower().replace("_", "")
    if direction not in ("pixelshuffle", "pixelunshuffle"):
        return
    ends = (node.all_input_nodes[0], node)
    deep, flat = ends if direction == "pixelshuffle" else ends[::-1]
    block = deep.meta["val"].size(-3) // flat.meta["val"].size(-3)
    for layer in (layer for layers in values[deep.name] for layer in layers):
        channels = layer.labels.ndim - 3
        if channels in layer.dims:
            grid = layer.labels.unflatten(channels, (-1, block))
            p.unite(grid, grid.narrow(channels + 1, 0, 1))
