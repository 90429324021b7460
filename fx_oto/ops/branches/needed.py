"""What the outputs of a graph need, once it is known what its branches return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch.fx import GraphModule, Node

from fx_oto.ops.branches.aliases import Aliases, form, is_effect, reads_form, tensors_read
from fx_oto.ops.branches.results import Branches
from fx_oto.ops.branches.scope import Scope
from fx_oto.ops.branches.sizes import Size, read_size, size_of

__all__ = ["Needed"]


class Needed:
    """Finds the nodes that outputs depend on, and effects; nodes that ask for sizes alone need no more than sizes.

    Args:
        gm: the GraphModule.
        scope: what is known of its values.
        found: where that is read; gets what is found.
        aliases: what writes where.
    """

    def __init__(self, gm: GraphModule, scope: Scope, found: Branches, aliases: Aliases) -> None:
        self.gm, self.scope, self.found, self.aliases = gm, scope, found, aliases
        self._asking: list[Node] = []

    def find(self) -> None:
        """Fill in ``live``, ``twins`` and ``sizes``."""
        nodes, writers = self.gm.graph.nodes, self.aliases.writers
        self._need(node for node in nodes if node.op in ("placeholder", "output"))
        self._need(one for one in nodes if not one.users and one not in writers and is_effect(one, self.gm))
        while waiting := self._asks() or [one for one in writers if one not in self.found.live and self._shows(one)]:
            self._need(waiting)
        if updating := list(self._updating()):
            self._need(updating)
            self.find()

    def _need(self, nodes: Iterable[Node]) -> None:
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
            elif reads_form(node) and one is node.args[0]:
                self._asking.append(node)  # about what may not be computed any more
            else:
                yield one

    def _asks(self) -> list[Node]:
        """What the first node needs that asks for the form of what is not needed so far."""
        while self._asking:
            node = self._asking.pop()
            source = node.args[0]
            assert isinstance(source, Node)
            if source in self.found.live:
                continue
            if twin := self._twin(source, node):
                self.found.twins[node] = (source, twin)
                return [twin]
            read = read_size(node)
            size: Size | None = None if read is None else size_of(self.scope, *read)
            if size is None or size == read:
                return [source]
            self.found.sizes[node] = size
            needed = [part for part in (size if isinstance(size, tuple) else (size,)) if isinstance(part, Node)]
            if needed:
                return needed
        return []

    def _twin(self, node: Node, reader: Node) -> Node | None:
        """A node with a value of the same form as one that goes: what the sink of its branch adds it to."""
        for sink in self.found.sinks.values() if node in self.scope.known else ():
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

    # -- effects -----------------------------------------------------------------------------------------

    def _shows(self, writer: Node) -> bool:
        """Whether what a node writes into is needed, or outlives the call."""
        chain = self.aliases.written(writer)
        if any(one in self.found.live for one in chain):
            return True
        kept = any(one.op == "get_attr" and not self._goes(str(one.target)) for one in chain)
        return kept and not any(one in self.scope.known for one in tensors_read(writer))

    def _updating(self) -> Iterator[Node]:
        """Calls of a norm that write into statistics which another call, that is needed, reads."""
        calls = [node for node in self.gm.graph.nodes if node.op == "call_module"]
        norms = {node: self.scope.module(node) for node in calls}
        needed = {id(norm) for node, norm in norms.items() if node in self.found.live}
        for node, norm in norms.items():
            goes = node not in self.found.live and node not in self.scope.known
            if goes and id(norm) in needed and getattr(norm, "running_mean", None) is not None:
                yield node

    def _goes(self, buffer: str) -> bool:
        """Whether nothing else of the module that holds a buffer is needed, such as of a norm that counts batches."""
        owner = buffer.rpartition(".")[0]
        tensors = self.gm.get_submodule(owner).named_parameters(recurse=False)
        held = {f"{owner}.{name}" for name, _ in tensors} if owner else set()
        read = {str(one.target) for one in self.found.live if one.op in ("get_attr", "call_module")}
        return bool(held) and owner not in read and not held & read
