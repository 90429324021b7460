"""A graph of the user's code, in which nodes are called as in the graph that was analysed.

Numbers that remember the attributes that they come from are computed by nodes that were none before, and names count
those; or sizes stay free by them that were fixed.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import count

from torch.fx import Graph

__all__ = ["name_as_analysed"]

_READING = ("placeholder", "get_attr")
_NUMBER = re.compile(r"_\d+$")


def name_as_analysed(graph: Graph, names: list[str]) -> set[str]:
    """Name nodes as those of the analysed graph that they are like, in order; returns the names that are there.

    Args:
        graph: the graph.
        names: those of the nodes of the analysed one, in order.
    """
    if [node.name for node in graph.nodes] == names:
        return set(names)
    # What the model holds may be read earlier, or later.
    found = {node: node.name for node in graph.nodes if node.op in _READING and node.name in names}
    nodes, read = [node for node in graph.nodes if node not in found], set(found.values())
    left = [name for name in names if name not in read]
    mine, theirs = ([_NUMBER.sub("", one) for one in part] for part in ((node.name for node in nodes), left))
    for at, other, length in SequenceMatcher(None, mine, theirs, autojunk=False).get_matching_blocks():
        found.update(zip(nodes[at : at + length], left[other : other + length], strict=True))
    others = (name for number in count() if (name := f"not_analysed_{number}") not in names)
    for node in nodes:
        node.name = found[node] if node in found else next(others)
    return set(found.values())
