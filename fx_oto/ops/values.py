"""Values of the nodes of a compact graph, derived from the traced values without running the graph."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map_only

from fx_oto.core.fakes import Fakes
from fx_oto.ops.editor import Cut, Editor

__all__ = ["ANALYSED", "note_values"]

ANALYSED = "analysed"  # in a node's meta: the name of the node of the analysed graph whose value it returns


def note_values(edit: Editor) -> None:
    """Give every node the value that it has in the compact graph, and the name of the node that it stands for."""
    fakes = Fakes.of_graph(edit.graph)
    changed: set[Node] = set()
    for node in edit.graph.nodes:
        before = node.meta.get("val")
        name = edit.analysed(node)
        node.meta[ANALYSED] = name
        cuts = edit.cuts.of_value(name) if name is not None else []
        touched = any(cuts) or not changed.isdisjoint(node.all_input_nodes)
        if name is None or (touched and _is_untold(node) and not node.meta.get("asks_values")):
            node.meta["val"] = _returned(edit, fakes, node)
        elif any(cuts):
            node.meta["val"] = _left_of(fakes, before, cuts)
        if node.meta["val"] is not before:
            changed.add(node)


def _is_untold(node: Node) -> bool:
    """Return whether the labels are not enough to tell what is left of a value.

    A number may be a size, an empty tensor has no labels, and one of several tensors may be read by nobody.
    """
    leaves = tree_leaves(node.meta.get("val"))
    return len(leaves) > 1 or any(
        isinstance(leaf, int) or (isinstance(leaf, Tensor) and not leaf.numel()) for leaf in leaves
    )


def _returned(edit: Editor, fakes: Fakes, node: Node) -> Any:
    if node.op == "get_attr":
        return fakes.of(attrgetter(str(node.target))(edit.gm))
    if node.op in ("call_function", "call_method", "call_module"):
        return fakes.called(edit.gm, node)
    if node.op == "output":
        return map_arg(node.args[0], lambda read: read.meta["val"])
    return node.meta.get("val")


def _left_of(fakes: Fakes, value: Any, cuts: list[Cut | None]) -> Any:
    remaining = iter(cuts)

    def cut(tensor: Tensor) -> Tensor:
        sizes = {dim: len(index) for dim, index in (next(remaining) or {}).items()}
        return fakes.resized(tensor, sizes) if sizes else tensor

    return tree_map_only(Tensor, cut, value)
