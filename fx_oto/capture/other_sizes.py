"""Sizes that cannot be tried, for two inputs must fit: code that does not let them remember is shown other numbers.

The tensors stay as they are. Where the graph is the same, nothing that such code does depends on the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch._ops import OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from fx_oto.analysis.tape import DIMS
from fx_oto.capture.numbers import Origin

__all__ = ["NEAR_AND_FAR", "OtherSizes", "is_given_numbers"]

NEAR_AND_FAR: tuple[Callable[[int], int], ...] = (lambda size: size + 1, lambda size: 13 * size + 101)


class OtherSizes:
    """Numbers in the place of sizes of which nobody knows what becomes of them; no two sizes have the same by chance.

    Args:
        known: the nodes, by name, and the dimensions of which that is known.
        change: another number in the place of one.
    """

    def __init__(self, known: Collection[tuple[str, int]], change: Callable[[int], int]) -> None:
        self._known, self._change, self._asked = known, change, dict[Any, int]()

    def __call__(self, size: int, origin: Origin) -> int:
        """A size, or the number in its place."""
        node, *dims = origin.args
        if origin.function == "size" and (node.name, *dims) in self._known:
            return size
        return self._change(size) + self._asked.setdefault((node.name, *dims), len(self._asked))


def is_given_numbers(node: Node) -> bool:
    """Whether it is an ATen call, as under ``vmap``, which is given plain sizes, and not what they are made of."""
    if not isinstance(node.target, OpOverload):
        return False
    named = {**dict(zip((one.name for one in node.target._schema.arguments), node.args, strict=False)), **node.kwargs}
    given = tree_leaves([value for name, value in named.items() if name not in DIMS])
    return any(isinstance(one, int | float) and not isinstance(one, bool) for one in given)
