"""Which branches of a graph go once ZIGs are gone: where what is left of one is added, and what nothing needs then."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

from torch import Tensor
from torch.fx import GraphModule, Node

from fx_oto.core.fx_utils import tensor_names
from fx_oto.nn.modes import says_in_place
from fx_oto.ops.branches.aliases import Aliases, form, reads_form
from fx_oto.ops.branches.elementwise import BROADCASTING, broadcast
from fx_oto.ops.branches.gone import Gone
from fx_oto.ops.branches.known import Known
from fx_oto.ops.branches.needed import Needed
from fx_oto.ops.branches.results import Branches, Sink
from fx_oto.ops.branches.rules import known_of
from fx_oto.ops.branches.scope import Scope

__all__ = ["find_branches"]


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

    def run(self) -> Branches:
        for node in self.gm.graph.nodes:
            known = known_of(self.scope, node)
            if known is not None:
                self.scope.known[node] = known
            elif sink := self._sink(node):
                self.found.sinks[node] = sink
        Needed(self.gm, self.scope, self.found, self.aliases).find()
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
        first, second = (*node.args, None, None)[:2]
        passes = zero and form(like) == form(node) and (name == "add" or (name == "sub" and second in known))
        passes = passes and (like is not second or "alpha" not in node.kwargs)
        if (zero and not passes) or (says_in_place(node) and first is not like and form(like) != form(node)):
            return None
        return Sink(node, known, like, passes)

    def _spread(self, node: Node, known: dict[Node, Known], others: list[Node]) -> Sink | None:
        """Where no operand alone has the full size, but all together have."""
        full, values = self.scope.shape(node), known.values()
        if any(one.is_zero or one.whole for one in values) or not others:
            return None
        shapes = [one.shape for one in values] + [self.scope.shape(one) for one in others]
        return Sink(node, known, others[0], passes=False) if broadcast(shapes, len(full)) == full else None

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
