"""Which branches of a graph go once ZIGs are gone: where what is left of one is added, and what nothing needs then."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter

from torch import Tensor
from torch.fx import GraphModule, Node

from fx_oto.core.fx_utils import tensor_names
from fx_oto.nn.modes import says_in_place
from fx_oto.ops.branches.aliases import Aliases, form, is_effect, reads_form, tensors_read
from fx_oto.ops.branches.gone import Gone
from fx_oto.ops.branches.known import Known
from fx_oto.ops.branches.rules import BROADCASTING, broadcast, known_of
from fx_oto.ops.branches.scope import Scope
from fx_oto.ops.branches.sizes import Size, read_size, size_of

__all__ = ["Branches", "Sink", "find_branches"]


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


def find_branches(gm: GraphModule, gone: Gone) -> Branches:
    """Follow what is known of values from what is gone, and find what no output depends on any more.

    Args:
        gm: a GraphModule, of which each node carries its value.
        gone: what is gone.
    """
    aliases = Aliases(gm)
    blocked = set(aliases.overwritten())
    while True:
        found = _Finder(gm, gone, blocked, aliases).run()
        twice = {one.node for one in found.used if one.once and one.node in found.live}
        if not twice:
            return found
        blocked |= twice  # it would draw numbers, or write into statistics, twice


class _Finder:
    def __init__(self, gm: GraphModule, gone: Gone, blocked: set[Node], aliases: Aliases) -> None:
        self.gm, self.aliases = gm, aliases
        self.scope = Scope(gm, gone, blocked)
        self.found = Branches(gm)
        self._tensors: dict[str, Tensor] = {}

    def run(self) -> Branches:
        for node in self.gm.graph.nodes:
            known = known_of(self.scope, node)
            if known is not None:
                self.scope.known[node] = known
            elif sink := self._sink(node):
                self.found.sinks[node] = sink
        self._live()
        self._holds()
        return replace(self.found, cut_off=self._cut())

    def _sink(self, node: Node) -> Sink | None:
        name = self.scope.name(node)
        if name not in BROADCASTING or not node.op.startswith("call_") or not isinstance(node.meta.get("val"), Tensor):
            return None
        read, full = self.scope.operands(node), self.scope.shape(node)
        known = {one: self.scope.known[one] for one in read if one in self.scope.known}
        others = [one for one in read if one not in known]
        like = next((one for one in others if self.scope.shape(one) == full), None)
        if not known or node in self.scope.blocked:
            return None
        if like is None:
            return self._spread(node, known, others)
        zero = any(one.is_zero for one in known.values())
        second = node.args[1] if len(node.args) > 1 else None
        passes = zero and form(like) == form(node) and (name == "add" or (name == "sub" and second in known))
        passes = passes and (like is not second or "alpha" not in node.kwargs)
        if (zero and not passes) or (node.args[0] in known and says_in_place(node) and form(like) != form(node)):
            return None
        return Sink(node, known, like, passes)

    def _spread(self, node: Node, known: dict[Node, Known], others: list[Node]) -> Sink | None:
        """Where no operand alone has the full size, but all together have."""
        full, values = self.scope.shape(node), known.values()
        if any(one.is_zero or one.whole for one in values) or not others:
            return None
        shapes = [one.shape for one in values] + [self.scope.shape(one) for one in others]
        return Sink(node, known, others[0], passes=False) if broadcast(shapes, len(full)) == full else None

    # -- what is needed --------------------------------------------------------------------------------

    def _live(self) -> None:
        nodes = list(self.gm.graph.nodes)
        self._need(node for node in nodes if node.op in ("placeholder", "output"))
        self._need(node for node in nodes if not node.users and is_effect(node, self.gm) and not self._writes(node))
        while written := [one for one in self.aliases.writers if one not in self.found.live and self._shows(one)]:
            self._need(iter(written))

    def _writes(self, node: Node) -> bool:
        return node in self.aliases.writers

    def _shows(self, writer: Node) -> bool:
        """Whether what a node writes into is needed, or outlives the call."""
        chain = self.aliases.written(writer)
        if any(one in self.found.live for one in chain):
            return True
        kept = any(one.op == "get_attr" and not self._goes(str(one.target)) for one in chain)
        return kept and not any(one in self.scope.known for one in tensors_read(writer))

    def _goes(self, buffer: str) -> bool:
        """Whether nothing else of the module that holds a buffer is needed, such as of a norm that counts batches."""
        owner = buffer.rpartition(".")[0]
        tensors = self.gm.get_submodule(owner).named_parameters(recurse=False)
        held = {f"{owner}.{name}" for name, _ in tensors} if owner else set()
        read = {str(one.target) for one in self.found.live if one.op in ("get_attr", "call_module")}
        return bool(held) and owner not in read and not held & read

    def _need(self, nodes: Iterator[Node]) -> None:
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in self.found.live:
                self.found.live.add(node)
                waiting.extend(self._reads(node))

    def _reads(self, node: Node) -> Iterator[Node]:
        sink = self.found.sinks.get(node)
        for one in node.all_input_nodes:
            if sink is not None and one in sink.known:
                known = sink.known[one]
                yield from (read for part in known.chain() for read in part.reads) if known.write else ()
            elif sink is None and reads_form(node) and one in self.scope.known and (twin := self._twin(one, node)):
                self.found.twins[node] = (one, twin)
                yield twin
            elif sink is None and one in self.scope.known and (size := self._size(node)) is not None:
                self.found.sizes[node] = size
                yield from [part for part in (size if isinstance(size, tuple) else (size,)) if isinstance(part, Node)]
            else:
                yield one

    def _size(self, node: Node) -> Size | None:
        read = read_size(node)
        return None if read is None else size_of(self.scope, *read)

    def _twin(self, node: Node, reader: Node) -> Node | None:
        """A node with a value of the same form as one that goes: what the sink of its branch adds it to."""
        for sink in self.found.sinks.values():
            earlier = self.aliases.order[sink.like] < self.aliases.order[reader]
            if earlier and form(sink.like) == form(node) and any(node in self._branch(one) for one in sink.known):
                return sink.like
        return None

    def _branch(self, node: Node) -> set[Node]:
        """The known values that a known one comes from."""
        found, waiting = set[Node](), [node]
        while waiting:
            one = waiting.pop()
            if one in self.scope.known and one not in found:
                found.add(one)
                waiting.extend(one.all_input_nodes)
        return found

    def _holds(self) -> None:
        """The tensors that are read."""
        tensors = tensor_names(self.gm)
        for node in self.found.live:
            if node.op == "call_module":
                self._hold_module(str(node.target))
            elif node.op == "get_attr" and isinstance(value := attrgetter(str(node.target))(self.gm), Tensor):
                self.found.held.add(id(value))
        for known in self.found.used:
            self.found.held.update(id(tensors[name]) for name in known.holds if name in tensors)
            if known.module is not None:
                self._hold_module(known.module)

    def _hold_module(self, name: str) -> None:
        self.found.held.update(id(tensor) for tensor in self.gm.get_submodule(name).parameters())

    # -- what is cut off ---------------------------------------------------------------------------------

    def _cut(self) -> tuple[str, ...]:
        """Outputs that depend on an input, but for what is gone."""
        before, now = _dependent(self.gm, {}), _dependent(self.gm, self.scope.known)
        return tuple(one.name for one in self.gm.graph.output_node().all_input_nodes if one in before - now)


def _dependent(gm: GraphModule, known: dict[Node, Known]) -> set[Node]:
    """The nodes with tensors that depend on the numbers of an input; a zero depends on none."""
    found = set[Node]()
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            found.add(node)
        elif node.op.startswith("call_") and not reads_form(node):
            zero = node in known and known[node].is_zero
            if not zero and any(one in found for one in node.all_input_nodes):
                found.add(node)
    return found
