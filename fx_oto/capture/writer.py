"""Writes the graph of a run: values become nodes, and what code decides becomes a check."""

from __future__ import annotations

import operator
import sys
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _assign_attr
from torch.utils._pytree import tree_leaves

from fx_oto.capture.arguments import is_given, is_int, keys_in_order, sorted_keys
from fx_oto.capture.calls import LISTS, is_numpys
from fx_oto.capture.modes import without_modes
from fx_oto.capture.names import CONSTANT
from fx_oto.capture.numbers import Flag, Float, Int, Origin, plain, remembered
from fx_oto.capture.rebuilt import is_spelled, node_of_object, rebuilt
from fx_oto.capture.refusals import NotHashedError
from fx_oto.capture.seen import SeenList, SeenTuple
from fx_oto.capture.sheet import Sheet
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import behind, source_line
from fx_oto.core.handed import HandedGraph
from fx_oto.nn.modes import FLAG, TrainingFlag

__all__ = ["Writer", "holder_of"]

_OPPOSITES: dict[Any, Any] = {
    operator.eq: operator.ne,
    operator.ne: operator.eq,
    operator.lt: operator.ge,
    operator.ge: operator.lt,
    operator.gt: operator.le,
    operator.le: operator.gt,
}


_UNREGISTERED = (
    "the model computes with a parameter that is none of its own, as that of a layer in a plain list: to the graph it "
    "is a constant, which nobody trains. Keep layers in nn.ModuleList or nn.ModuleDict, parameters in nn.ParameterList"
)
_ELSE = "the model's code does something else"


def _captured_where(what: str) -> str:
    return f"the graph was captured where {what}; trace it on such inputs"


class Writer(Sheet):
    """Writes the graph of one run of a model.

    Args:
        *args: see ``Sheet``.
    """

    def number(self, value: Any, origin: Origin) -> Any:
        """A number that remembers its origin."""
        return remembered(self, value, origin)

    def size(self, value: int, origin: Origin) -> Any:
        """A number that remembers which size it is."""
        other = self.options.other_size
        return remembered(self, value, origin, None if other is None else other(value, origin))

    def number_given(self, value: float, node: Node, name: str) -> Any:
        """A number among the inputs, or another one in its place."""
        if self.options.given is not None and self.options.given[0] == len(self.numbers_given):
            value = self.options.given[1]
        self.numbers_given.append((node, value, name))
        return self.number(value, Origin(_itself, (node,), node))

    def nodes(self, value: Any) -> Any:
        """See ``Sheet.nodes``."""
        if is_numpys(value) and not value.ndim:
            value = value.item()
        if isinstance(value, Tensor):
            return self.node_of_tensor(value)
        if isinstance(value, Int | Float) and value.run is self:
            node = self.node_of(value.origin)
            if "val" not in node.meta:
                node.meta["val"] = plain(value)
                node.meta["is_number"] = True
            return node
        if isinstance(value, Flag):
            return self._mode(value)
        if isinstance(value, Int | Float) and not value.run.stays_in_graphs:  # of an earlier run, kept by some cache
            return plain(value)
        if value is None or isinstance(value, bool | str | Int | Float) or type(value) in (int, float):
            return value
        return self._nodes_of_container(value)

    def _nodes_of_container(self, value: Any) -> Any:
        if isinstance(value, SeenList | SeenTuple):
            return value.node if value.is_as_it_was() and not value.is_noted else self.nodes(value.counted())
        if isinstance(value, torch.Size) and self.is_at_output:
            return rebuilt(self, value)
        if isinstance(value, torch.Size) or type(value) in LISTS:
            made = [self.nodes(one) for one in value]
            return made if isinstance(value, list) else tuple(made)
        if isinstance(value, slice):
            return slice(*map(self.nodes, (value.start, value.stop, value.step)))
        if type(value) is dict and all(map(is_spelled, value)):
            return {key: self.nodes(one) for key, one in value.items()}
        return node_of_object(self, value)

    def node_of_tensor(self, tensor: Tensor) -> Node:
        """The node whose value a tensor is.

        Raises:
            TraceError: nothing that was captured has made it.
        """
        place = self.places.get(id(tensor))
        if isinstance(place, Node):
            return place
        if place is not None:
            node = self.create("call_function", place.read, (place.parent, place.key))
            node.meta["val"], node.meta["item"] = tensor, place
            if place.detached:
                node = self.create("call_method", "detach", (node,))
                node.meta["val"], node.meta["item"] = tensor, place
            return self.put(tensor, node)
        tensor = self.fakes.real.get(id(tensor), tensor)
        if self.fakes.is_own(tensor):
            raise TraceError("a tensor comes from code in which torch's functions cannot be seen")
        if (name := self.subject.tensors.get(id(tensor))) is None:
            name, tensor = self._constant(tensor)
        return self.attribute(name, tensor)

    def _constant(self, tensor: Tensor) -> tuple[str, Tensor]:
        with without_modes():
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                self.notes.append(_UNREGISTERED)
                frozen = nn.Parameter(tensor.detach(), requires_grad=False)
                self.fakes.put_in_place(frozen, tensor)
                tensor = frozen
            for name, other in self.constants.items():
                if isinstance(other, Tensor) and (other is tensor or _is_same(other, tensor)):
                    return name, other
        name = f"{CONSTANT}{len(self.constants)}"
        self.constants[name] = tensor
        return name, tensor

    def _mode(self, flag: Flag) -> Node:
        """The node that tells the mode when the graph runs."""
        if FLAG not in self._attributes:
            self.held[FLAG] = TrainingFlag()
            node = self._attributes[FLAG] = self.create("call_module", FLAG, ())
            node.meta["val"] = bool(int(flag))
        return self._attributes[FLAG]

    def decided(self, origin: Origin, answer: Any) -> Any:
        """Check in the graph that the answer is what it was."""
        self.is_plain = False
        node = self.node_of(origin)
        node.meta.setdefault("val", answer)
        node.meta["is_number"] = True
        # What torch itself asks, such as whether a sequence is longer than it is to be padded to, is whether to raise.
        if self.differs_by_values(node) and not self.is_torch_asking():
            return self.branch(node)
        if self.checked.get(self._question(node)) == answer:
            return answer
        self.checked[self._question(node)] = answer
        same = self.create("call_function", operator.eq, (node, answer))
        same.meta["val"] = True
        text = _captured_where(f"this was {answer!r} ({source_line(node)})")
        check = self.create("call_function", torch._assert, (same, text))
        check.meta["val"] = None
        return answer

    def _question(self, node: Node) -> Any:
        return node.op, node.target, str(node.args)

    def handed_out(self, number: Any, given: Any) -> None:
        """Note a plain number, which may come back in the graph."""
        self.is_plain = False
        self.events.append((self.nodes(number), given))

    def shorten_checks(self) -> None:
        """Let checks ask for a condition, not whether it is True, which torch.jit.trace has no op for."""
        for check in [node for node in self.graph.nodes if node.target is torch._assert]:
            same, text = check.args
            if same.target is not operator.eq or not isinstance(same.args[1], bool):
                continue
            asked, answer = same.args
            if not answer and asked.target not in _OPPOSITES:
                continue
            with self.graph.inserting_before(same):
                condition = asked if answer else self.graph.call_function(_OPPOSITES[asked.target], asked.args)
            condition.meta["val"] = True
            check.args = (condition, text)
            for node in (same, asked):
                if not node.users:
                    self.graph.erase_node(node)

    def hashed(self, number: Any) -> None:
        """Check it, where that is allowed."""
        frame = sys._getframe(2)
        site = (frame.f_code, frame.f_lasti)
        if site not in self.options.hashable:
            raise NotHashedError(site)
        if self.options.other_size is not None:  # whatever is kept by this key would be kept for all of the process
            raise TraceError("a size is used as a key")
        self.decided(number.origin, plain(number))

    def asked_for_mode(self) -> None:
        """Note that the other mode may go another way."""
        if not self.depth:
            self.asked = True

    def forget_after(self, last: Node | None) -> None:
        """Take back the nodes that were made for a call that failed."""
        for node in reversed(list(self.graph.nodes)):
            if node is last:
                break
            if not node.users:
                self.graph.erase_node(node)
                item = node.meta.get("item")  # of a container, which somebody else may read
                places = {key: item if one is node else one for key, one in self.places.items()}
                self.places = {key: one for key, one in places.items() if one is not None}
                self._attributes = {key: one for key, one in self._attributes.items() if one is not node}

    def decides_otherwise(self, other: Writer) -> bool:
        """Whether code decided something that this graph checks otherwise in another capture."""
        mine, theirs = self.checked, other.checked
        return any(isinstance(one, tuple) and len(one) == 3 and theirs.get(one, mine[one]) != mine[one] for one in mine)

    def name_of_input(self, number: int) -> str:
        """The name of the node of an input, which is the tensor of that number among them."""
        return self.node_of_input(number).name

    def node_of_input(self, number: int) -> Node:
        """The node of an input, which is the tensor of that number among them."""
        source = self.places[id(self.fakes.of(self.given_tensors()[number]))]
        assert isinstance(source, Node)
        return source

    def size_of_input(self, number: int, dim: int) -> Node:
        """A new node that reads a size of an input."""
        source = self.node_of_input(number)
        node = self.graph.call_method("size", (source, dim))
        node.meta["val"] = source.meta["val"].shape[dim]
        return node

    def given_tensors(self) -> list[Tensor]:
        """The tensors among the inputs."""
        return [leaf for leaf in tree_leaves((self.inputs.args, self.inputs.kwargs)) if isinstance(leaf, Tensor)]

    def fix(self, dims: Collection[tuple[int, int]], size: int, difference: Any) -> None:
        """Let the graph check sizes of the inputs.

        Args:
            dims: of each the number of the tensor among the inputs, and the dimension.
            size: what they were.
            difference: what depends on them.
        """
        tensors = self.given_tensors()
        for number, dim in dims:
            source = self.places.get(id(self.fakes.of(tensors[number])))
            if not isinstance(source, Node) or source._erased:
                continue
            text = _captured_where(f"dimension {dim} of {source.name} was {size}, on which {difference} depends")
            with self.graph.inserting_before(source.next):
                found = self._known(self.graph.call_method("size", (source, dim)), size)
                self._check(found, size, difference.check or text)

    def fix_forms(
        self,
        ranks: bool,
        types: Mapping[int, Collection[torch.dtype]],
        numbers: Collection[int],
        kinds: Collection[int],
        given: Collection[str],
    ) -> None:
        """Let the graph check what its code goes by.

        Args:
            ranks: whether that is how many dimensions the inputs have.
            types: with which types it does something else, of tensors by their number among the inputs.
            numbers: those among the inputs that have to be what they were.
            kinds: those that have to be whole, as they were, or not.
            given: arguments that have to be given.
        """
        for number, tensor in enumerate(self.given_tensors()):
            source = self.places.get(id(self.fakes.of(tensor)))
            if not isinstance(source, Node) or source._erased:
                continue
            with self.graph.inserting_before(source.next):
                if ranks:
                    what = f"{source.name} had {tensor.ndim} dimensions, and {_ELSE} where there are more, or fewer"
                    found = self._known(self.graph.call_method("dim", (source,)), tensor.ndim)
                    self._check(found, tensor.ndim, _captured_where(what))
                for other in types.get(number, ()):
                    what = f"{source.name} was of {tensor.dtype}, and {_ELSE} with {other}"
                    found = self._known(self.graph.call_function(getattr, (source, "dtype")), tensor.dtype)
                    self._check(found, other, _captured_where(what), operator.ne)
        for number in numbers:
            node, value, name = self.numbers_given[number]
            with self.graph.inserting_before(node.next):
                self._check(node, value, _captured_where(f"{name} was {value!r}, and {_ELSE} with other numbers"))
        for number in kinds:
            node, value, name = self.numbers_given[number]
            what = f"{name} was of type {type(value).__name__}, and {_ELSE} with another type"
            with self.graph.inserting_before(node.next):
                found = self._known(self.graph.call_function(is_int, (node,)), isinstance(value, int))
                self._check(found, isinstance(value, int), _captured_where(what))
            found.meta["is_wrapped"] = True
        for node in [one for one in self.graph.nodes if one.op == "placeholder" and one.target in given]:
            with self.graph.inserting_before(node.next):
                found = self._known(self.graph.call_function(is_given, (node,)), True)
                what = f"{node.target} was given, and {_ELSE} without it"
                self._known(self.graph.call_function(torch._assert, (found, _captured_where(what))), None)
            found.meta["is_wrapped"] = True
        self.rewritten = self.rewritten or ranks or bool(types or numbers or kinds or given)
        self.numbers_given = []
        self.drop_unread_numbers()

    def fix_orders(self, names: Collection[str]) -> None:
        """Let the graph check in which order the entries of dictionaries come that are in some arguments."""
        for node in [one for one in self.graph.nodes if one.target is sorted_keys]:
            keys, inputs = node.meta["in_order"], [one for one in behind(node) if one.op == "placeholder"]
            (name,) = (str(one.target).lstrip("*") for one in inputs)
            if name in names and len(keys) > 1:
                with self.graph.inserting_before(node):
                    found = self._known(self.graph.call_function(keys_in_order, node.args), keys)
                    what = f"what is in {name} came in the order {keys}, and {_ELSE} in another order"
                    self._check(found, keys, _captured_where(what))
                found.meta["is_wrapped"] = self.rewritten = True

    def _known(self, node: Node, value: Any) -> Node:
        node.meta["val"] = value
        return node

    def _check(self, found: Node, value: Any, text: str, compare: Any = operator.eq) -> None:
        """Check that a value is another, or, by ``ne``, that it is not; ``text`` is said where that fails."""
        same = self._known(self.graph.call_function(compare, (found, value)), True)
        self._known(self.graph.call_function(torch._assert, (same, text)), None)

    def module(self) -> GraphModule:
        """The graph with what it refers to, in the model's present modes."""
        return HandedGraph(holder_of(self.held), self.graph, type(self.model).__name__)

    def forget_events(self) -> None:
        """Take back the nodes of plain numbers that code was given."""
        self.events, self.branches = [], []
        self.drop_unread_numbers()

    def drop_unread_numbers(self) -> None:
        """Take back the nodes of numbers that nobody reads, and that are no events."""
        kept = {node for node, *_ in (*self.events, *self.branches, *self.numbers_given)}
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.meta.get("is_number") and node.op.startswith("call_") and node not in kept:
                self.graph.erase_node(node)


def _itself(value: Any) -> Any:
    return value


def _is_same(left: Tensor, right: Tensor) -> bool:
    alike = (left.shape, left.dtype, left.device) == (right.shape, right.dtype, right.device)
    return alike and torch.equal(left, right)


def holder_of(held: Mapping[str, Any]) -> nn.Module:
    """A module that holds others, and tensors, under these names."""
    holder = nn.Module()
    for name, value in held.items():
        _assign_attr(value, holder, name)
    return holder
