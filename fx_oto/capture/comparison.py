"""Two captures of a model, at two sizes of its inputs, node by node: where they differ, and what follows the size.

Code in C, such as ``range`` or ``math.sqrt``, is blind to what a number remembers, and hands out plain numbers. Where a
capture at another size is the same, node by node, the graph holds for that size as well. A number that differs, but
is in both captures what code was handed for the same remembered number, is computed in the graph from then on.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map_only

from fx_oto.capture.arguments import check_length, length
from fx_oto.capture.deciding import may_decide, may_split_otherwise
from fx_oto.capture.groups import Group
from fx_oto.capture.ways import OfHanded, OfTwo, Product, Way, Ways, function_of
from fx_oto.capture.writer import Writer
from fx_oto.core.fx_utils import source_line
from fx_oto.nn.checks import is_check

__all__ = ["Comparison", "Difference"]


@dataclass(frozen=True)
class Difference:
    """The first place where two captures of a model differ.

    Attributes:
        node: of the first capture.
        is_counted: whether these are parts of which the other capture has more, or fewer.
    """

    node: Node
    is_counted: bool = False

    def __str__(self) -> str:
        node = self.node
        while not source_line(node) and node.prev.op != "root":  # such as a layer that a container calls
            node = node.prev
        where = source_line(node)
        return f"{node.name} ({where})" if where else self.node.name

    @property
    def check(self) -> str:
        """What the graph says where this is a decision that it checks; else empty."""
        checks = [user for user in self.node.users if is_check(user)]
        return str(checks[0].args[1]) if checks else ""

    @property
    def is_checked(self) -> bool:
        """Whether the graph refuses what is otherwise here."""
        return self.is_counted or bool(self.check)


# What takes the place of a plain number: how it is computed, as a function of remembered numbers.
_Place = tuple[Node, tuple[Any, ...]]


class Comparison:
    """Compares a capture with others, at other sizes.

    Args:
        run: the capture. Plain numbers in its graph that differ in others, but that code was handed for numbers that
            remember, or that are products of sizes, are computed once ``rewrite`` is called.

    Attributes:
        guesses: how many such numbers the last comparison has found.
        rounds: whether code was given the same plain number for two that differ, in the last comparison.
        places: the plain numbers that will be computed, and each way that explains them in all comparisons.
        decisions: checks in the graph of what depends on the size that the last comparison was at.
    """

    def __init__(self, run: Writer) -> None:
        self._run = run
        self.places: Mapping[_Place, Ways] = {}
        self.guesses, self.rounds = 0, False
        self.decisions: list[Difference] = []
        self._counted: set[Node] = set()
        self._any_number: set[Node] = set()

    @property
    def in_doubt(self) -> bool:
        """Whether a plain number may follow one size or another, as far as is known."""
        return any(len(ways) > 1 for ways in self.places.values())

    def with_other(self, other: Writer, group: Group, size: int) -> Difference | None:
        """The first place where a capture at another size differs; None if it is the same."""
        found = _Pass(self._run, other, group, size, self.places)
        if (difference := self._first(found, other)) is not None:
            return difference
        self.guesses, self.rounds = len(found.places.keys() - self.places.keys()), found.rounds()
        self.places = {**self.places, **found.places}
        self.decisions = found.decisions
        self._counted |= found.counted
        self._any_number |= found.other_numbers
        return None

    def count(self, names: Collection[str]) -> None:
        """Let the graph check how many parts some nodes return, but for those that were the same with more of them."""
        nodes = {node for node in self._run.graph.nodes if node.name in names}
        self._counted |= nodes - self._any_number

    def unlike(self, other: Writer, group: Group, size: int) -> Difference | None:
        """What a capture at another size may differ for, as far as is known by now; None if it is the same.

        That is the first plain number that code was given and that is another one there, or else where they differ.
        """
        found = _Pass(self._run, other, group, size, self.places)
        difference = self._first(found, other)
        guessed = [Difference(node) for node, path in found.places if (node, path) not in self.places]
        if difference is None and not guessed:
            return None
        events = zip(self._run.events, other.events, strict=False)
        asked = next((Difference(asked) for (asked, one), (_, two) in events if one != two), None)
        return asked or difference or guessed[0]

    def _first(self, found: _Pass, other: Writer) -> Difference | None:
        """The first place where another capture differs."""
        mine, theirs = list(self._run.graph.nodes), list(other.graph.nodes)
        for left, right in zip(mine, theirs, strict=False):
            if not found.same_node(left, right) and not left.meta.get("is_number"):  # which matters where it is read
                return Difference(found.cause(left))
            if left in self._counted and len(left.meta["val"]) != len(right.meta["val"]):
                return Difference(left, is_counted=True)
        return Difference(mine[min(len(mine), len(theirs)) - 1]) if len(mine) != len(theirs) else None

    def rewrite(self) -> bool:
        """Let the graph compute the numbers, and check how many parts there are; returns whether it does."""
        by_node: dict[Node, dict[tuple[Any, ...], Way]] = {}
        for (node, path), ways in self.places.items():
            by_node.setdefault(node, {})[path] = ways[0]
        for node, places in by_node.items():
            with self._run.graph.inserting_before(node):
                node.args = self._put(node.args, (), places)
                node.kwargs = self._put(dict(node.kwargs), ("kwargs",), places)
        for node in self._counted:
            if all(user.target is not length for user in node.users):
                with self._run.graph.inserting_before(node.next):
                    check_length(self._run, node, len(node.meta["val"]), f"{node.name} ({source_line(node)})")
        return bool(by_node or self._counted)

    def _put(self, value: Any, path: tuple[Any, ...], places: Mapping[tuple[Any, ...], Any]) -> Any:
        if path in places:
            return self._computed(places[path])
        if isinstance(value, tuple | list):
            parts = [self._put(one, (*path, i), places) for i, one in enumerate(value)]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, dict):
            return {key: self._put(one, (*path, key), places) for key, one in value.items()}
        if isinstance(value, slice):
            return slice(*(self._put(getattr(value, key), (*path, key), places) for key in _SLICE))
        return value

    def _computed(self, how: Way) -> Node:
        graph = self._run.graph
        if isinstance(how, OfTwo):
            return _called(graph, operator.mul, *(self._computed(OfHanded(int, event)) for event in how.events))
        if isinstance(how, OfHanded):
            node, plain = self._run.events[how.event]
            kind = int if how.function is math.isqrt else type(plain)
            is_as_given = type(node.meta["val"]) is kind or how.function is kind
            found = _called(graph, how.function, node if is_as_given else _called(graph, kind, node))
            return _called(graph, operator.add, found, how.more) if how.more else found
        number: Any = how.factor
        for group in how.groups:
            (place, dim), *_ = group.dims
            number = _called(graph, operator.mul, self._run.size_of_input(place, dim), number)
        return number  # type: ignore[no-any-return]


_SLICE = ("start", "stop", "step")


def _called(graph: Graph, function: Callable[..., Any], *args: Any) -> Node:
    node = graph.call_function(function, args)
    node.meta["val"], node.meta["is_number"] = function(*map_arg(args, _value)), True
    return node


class _Pass:
    """One comparison of two captures, node by node."""

    def __init__(
        self,
        run: Writer,
        other: Writer,
        group: Group,
        size: int,
        known: Mapping[_Place, Ways],
    ) -> None:
        self._group, self._size, self._known = group, size, known
        self._is_of_same_size = size == group.size
        self._run, self._other = run, other
        self._twins: dict[Node, Node] = {}
        self._node: Any = None
        self.decisions: list[Difference] = []
        self.counted: set[Node] = set()
        self.other_numbers: set[Node] = set()
        self.places: dict[_Place, Ways] = {}
        self._pairs: list[tuple[Any, Any]] = []
        if len(run.events) == len(other.events):
            self._pairs = [(mine, theirs) for (_, mine), (_, theirs) in zip(run.events, other.events, strict=True)]

    def rounds(self) -> bool:
        """Whether code was given one plain number for two that differ, as ``int(5 / 2)`` and ``int(4 / 2)`` are."""
        return any(
            mine == theirs and node.meta["val"] != twin.meta["val"]
            for (node, mine), (twin, theirs) in zip(self._run.events, self._other.events, strict=False)
        )

    def same_node(self, left: Node, right: Node) -> bool:
        """Whether two nodes call the same on the same."""
        self._node = left
        if left.op != right.op or left.target != right.target:
            return False
        if left.target is operator.eq and any(user.target is torch._assert for user in left.users):
            self._check(left, right)
        both = (left.args, right.args, ()), (dict(left.kwargs), dict(right.kwargs), ("kwargs",))
        same = all(self._same(mine, theirs, path) for mine, theirs, path in both)
        if same:
            self._twins[left] = right
            mine, theirs = left.meta.get("val"), right.meta.get("val")
            if isinstance(mine, tuple | list) and isinstance(theirs, tuple | list) and len(mine) != len(theirs):
                self.other_numbers.add(left)
            if may_split_otherwise(left, right):
                self.counted.add(left)
                self.decisions.append(Difference(left))
        return same

    def cause(self, node: Node) -> Node:
        """The first of the nodes that lead to this one which differs."""
        return next((self.cause(read) for read in node.all_input_nodes if read not in self._twins), node)

    def _check(self, left: Node, right: Node) -> None:
        """Whether what a graph checks depends on the size; that two sizes are equal, where both follow it, does not."""
        asked, other = left.args[0], right.args[0]
        if not (isinstance(asked, Node) and isinstance(other, Node)):
            return
        if self._vary(asked, other) and may_decide(asked, other):
            self.decisions.append(Difference(left))

    def _vary(self, left: Node, right: Node) -> bool:
        """Whether a number, or one that it is made of, is another at the other size."""
        mine, theirs = (tree_map_only(Tensor, lambda _: None, node.meta.get("val")) for node in (left, right))
        if mine != theirs:
            return True
        pairs = zip(left.all_input_nodes, right.all_input_nodes, strict=False)
        return any(self._vary(a, b) for a, b in pairs if a.meta.get("is_number"))

    def _same(self, left: Any, right: Any, path: tuple[Any, ...]) -> bool:
        if isinstance(left, Node) or type(left) is not type(right):
            return isinstance(left, Node) and self._twins.get(left) is right
        if isinstance(left, tuple | list):
            pairs = enumerate(zip(left, right, strict=False))
            return len(left) == len(right) and all(self._same(a, b, (*path, i)) for i, (a, b) in pairs)
        if isinstance(left, dict):
            return left.keys() == right.keys() and all(self._same(left[k], right[k], (*path, k)) for k in left)
        if isinstance(left, slice):
            return all(self._same(getattr(left, key), getattr(right, key), (*path, key)) for key in _SLICE)
        if isinstance(left, int | float) and not isinstance(left, bool):
            return self._same_number(left, right, (self._node, path))
        return bool(left == right)

    def _same_number(self, left: Any, right: Any, place: _Place) -> bool:
        known = self._known.get(place)
        if known is None and (left == right or (math.isnan(left) and math.isnan(right))):
            return True
        ways = [way for way in known or () if self._explains(way, left, right)]
        if known is None:
            ways = [*self._handed(left, right), *self._multiples(left, right, Product(left, ()))]
            ways = ways or list(self._of_two(left, right))
        elif not ways:  # a size that was the same before is a factor as well
            products = [way for way in known if isinstance(way, Product) and not self._power(way)]
            ways = [more for way in products for more in self._multiples(left, right, way)]
        if ways:
            self.places[place] = tuple(ways)
        return bool(ways)

    def _explains(self, way: Way, left: Any, right: Any) -> bool:
        if isinstance(way, OfTwo):
            one, other = (self._pairs[event][1] for event in way.events)
            return all(map(self._is_before, way.events)) and bool(one * other == right)
        if isinstance(way, OfHanded):
            return self._is_before(way.event) and bool(way.of(self._pairs[way.event][1]) == right)
        power = self._power(way)
        if power and self._is_of_same_size:  # of sizes that are only shown otherwise others have told this
            return True
        return bool(left * self._size**power == right * self._group.size**power)

    def _power(self, way: Product) -> int:
        """How often the size that is another one in the other capture is a factor."""
        return sum(map(self._group.holds, way.groups))

    def _handed(self, left: Any, right: Any) -> Iterator[OfHanded]:
        """Functions of numbers that code was handed, one for each number that they were made of."""
        found: set[tuple[Any, int, Node]] = set()
        for event, (mine, theirs) in enumerate(self._pairs):
            if mine != theirs and type(mine) in (int, float) and self._is_before(event):
                # Of another size sizes alone tell what is added.
                way = function_of(left, right, mine, theirs, may_add=self._is_of_same_size)
                if way is not None and (*way, self._run.events[event][0]) not in found:
                    found.add((*way, self._run.events[event][0]))
                    yield OfHanded(way[0], event, way[1])

    def _of_two(self, left: Any, right: Any) -> Iterator[OfTwo]:
        """Products of two whole numbers that code was handed, one for each two that these were made of."""
        whole: dict[Node, int] = {}
        for event, (mine, theirs) in enumerate(self._pairs):
            if type(mine) is type(theirs) is int and self._is_before(event):
                whole.setdefault(self._run.events[event][0], event)
        for one, other in combinations_with_replacement(whole.values() if type(left) is int else (), 2):
            if tuple(map(operator.mul, self._pairs[one], self._pairs[other])) == (left, right):
                yield OfTwo((one, other))

    def _is_before(self, event: int) -> bool:
        """Whether a number was handed out by now, and is computed alike in both captures."""
        return self._pairs != [] and self._run.events[event][0] in self._twins

    def _multiples(self, left: Any, right: Any, known: Product) -> Iterator[Product]:
        """The size as one more factor, of each of the dimensions that it is of."""
        size = self._group.size
        whole = isinstance(left, int) and isinstance(right, int) and known.factor % size == 0
        if whole and left * self._size == right * size:
            for one in self._group.apart() or [self._group]:
                yield Product(known.factor // size, (*known.groups, one))


def _value(node: Node) -> Any:
    return node.meta["val"]
