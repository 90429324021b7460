"""What is found of a graph: what goes, what is read instead, and what is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor
from torch.fx import GraphModule, Node

from fx_oto.ops.branches.known import Known
from fx_oto.ops.branches.sizes import Size

__all__ = ["Branches", "Sink"]


@dataclass(frozen=True, eq=False)
class Sink:
    """A node that combines known values with others, which give it its size: it reads them thin.

    Attributes:
        node: the node.
        known: what is known, by the node that is read.
        like: another node that it reads, of the full size.
        passes: it adds zero, so its value is that of ``like``.
    """

    node: Node
    known: dict[Node, Known]
    like: Node
    passes: bool


@dataclass(frozen=True, eq=False)
class Branches:
    """What goes of a graph.

    Attributes:
        gm: the GraphModule.
        sinks: where what is left of branches is read.
        twins: for a node that asks for the form of a value that goes: the node, and what has the same form.
        sizes: for a node that reads a size of a value that goes: where it is read instead.
        live: the nodes that outputs depend on, or effects.
        held: parameters that are read, by what those nodes call and by known values.
        cut_off: outputs that depend on no input any more, by the names of the nodes.
    """

    gm: GraphModule
    sinks: dict[Node, Sink] = field(default_factory=dict)
    twins: dict[Node, tuple[Node, Node]] = field(default_factory=dict)
    sizes: dict[Node, Size] = field(default_factory=dict)
    live: set[Node] = field(default_factory=set)
    held: set[int] = field(default_factory=set)
    cut_off: tuple[str, ...] = ()

    @property
    def dead(self) -> list[Node]:
        """The nodes that go, in order."""
        return [node for node in self.gm.graph.nodes if node not in self.live]

    @cached_property
    def used(self) -> dict[Known, None]:
        """The known values that are computed."""
        sinks = (sink for node, sink in self.sinks.items() if node in self.live and not sink.passes)
        return {one: None for sink in sinks for known in sink.known.values() if known.write for one in known.chain()}

    def left(self, node: Node) -> float:
        """Which fraction of a node's elements is still computed: 1 of what stays, 0 of what goes."""
        if node in self.live:
            return 1.0
        thin = next((one for one in self.used if one.node is node and one.module is not None), None)
        value = node.meta.get("val")
        if thin is None or not isinstance(value, Tensor) or not value.numel():
            return 0.0
        return math.prod(thin.shape) / value.numel()
