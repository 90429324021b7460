"""Values that need not be computed at full size, because they are constant along dimensions or zero."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

__all__ = ["Known", "Write", "Writer", "zero"]

Write = Callable[["Writer"], Node]


@dataclass(frozen=True, eq=False)
class Known:
    """A value that is that of a smaller tensor, broadcast: thin, where it is constant along a dimension; or zero.

    Example: a linear layer of which the input ``(N, L, 8)`` is zero returns its bias: of shape ``(1, 1, C)``, for a
    value of shape ``(N, L, C)``.

    Attributes:
        node: whose value it is.
        shape: of the small tensor: each size that of the value, or 1.
        write: makes a node that computes the small tensor; None for zero.
        parents: what it is computed from.
        reads: nodes of the graph that it is computed from as well.
        holds: names of the parameters that it reads.
        module: name of a module that it calls.
        whole: it must be computed at the size of the value, as dropout is, which draws a number for each element: the
            ``shape`` is that of the value, and it is made of a smaller one, expanded.
        once: it must not be computed beside the node itself, for it draws random numbers or writes into statistics.
    """

    node: Node
    shape: tuple[int, ...]
    write: Write | None = None
    parents: tuple[Known, ...] = ()
    reads: tuple[Node, ...] = ()
    holds: tuple[str, ...] = ()
    module: str | None = None
    whole: bool = False
    once: bool = False

    @property
    def is_zero(self) -> bool:
        """Whether every element is zero, whatever the inputs are."""
        return self.write is None

    def chain(self) -> list[Known]:
        """It, and all that it is computed from."""
        found: dict[Known, None] = {}
        waiting = [self]
        while waiting:
            one = waiting.pop()
            if one not in found:
                found[one] = None
                waiting.extend(one.parents)
        return list(found)


def zero(node: Node, ndim: int) -> Known:
    """The value of a node that is zero."""
    return Known(node, (1,) * ndim)


class Writer:
    """Writes known values into a graph, each once, before the node that reads it first.

    Args:
        graph: the graph.
        before: where to write at the latest.
        like: a node whose value has the full size.
        early: nodes that come after ``like``: what is known of them is written in their place, so that random numbers
            are drawn in the same order.
        made: what was written already; what has the full size, by that size.
    """

    def __init__(self, graph: Graph, before: Node, like: Node, made: dict[Any, Node], early: Collection[Node]) -> None:
        self.graph, self._end, self._like, self._made, self._early = graph, before, like, made, early
        self._place = self._before = before

    def of(self, known: Known) -> Node:
        """The node that computes a known value."""
        assert known.write is not None
        # Not by ``like`` itself, of which two readers have two: what is drawn for the value is drawn once.
        key = (known, self._like.meta["val"].shape if known.whole else None)
        if key not in self._made:
            place = self._place
            self._place = known.node if known.node in self._early else place
            parents = [self.of(parent) for parent in known.parents if parent.write is not None]
            # Not before what it is computed from: that may have been written for another reader, further down.
            self._before = self._place if all(one < self._place for one in parents) else self._end
            self._made[key] = known.write(self)
            self._place = self._before = place
        return self._made[key]

    def full(self, known: Known) -> Node:
        """The same, expanded to the full size."""
        node = self.of(known)
        return node if known.whole else self.method("contiguous", self.method("expand_as", node, self._like))

    def call(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        """Call what ``node`` calls, on other arguments."""
        with self.graph.inserting_before(self._before):
            new = self.graph.create_node(node.op, node.target, args, kwargs)
        new.stack_trace = node.stack_trace
        return new

    def method(self, name: str, *args: Any) -> Node:
        """Call a method of the first argument."""
        with self.graph.inserting_before(self._before):
            return self.graph.call_method(name, args)

    def function(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """Call a function."""
        with self.graph.inserting_before(self._before):
            return self.graph.call_function(function, args, kwargs)

    def tensor(self, name: str) -> Node:
        """Read a parameter or buffer."""
        with self.graph.inserting_before(self._before):
            return self.graph.get_attr(name)
