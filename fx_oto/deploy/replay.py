"""A model's own code, as its graph, run on the values of the compact graph: where does it still fit?

Each node of the user's code is given what the compact graph computed for its arguments. What it returns must be what
the compact graph has for it. Numbers among its arguments that modules hold become equations.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate, map_arg
from torch.utils._pytree import tree_leaves, tree_map

from fx_oto.capture.numbers import Float, Int, Origin
from fx_oto.core.context import ExampleInputs
from fx_oto.core.differences import relative_error, tolerance_of
from fx_oto.core.fx_utils import is_random, op_name, tensor_leaves
from fx_oto.core.interpreter import PlainInterpreter, run_graph
from fx_oto.core.preserve import evaluating, unwritten
from fx_oto.deploy.attributes import Attributes, Values, attributes_in, resolved
from fx_oto.deploy.equations import Equation
from fx_oto.nn.modes import TrainingFlag, by_mode, called
from fx_oto.ops.movement.rewriting import entries_of
from fx_oto.ops.values import ANALYSED

__all__ = ["Misfit", "Replay", "values_of"]

_SIZES = ("view", "reshape", "_unsafe_view", "expand", "broadcast_to", "unflatten")
_FACTORIES = ("zeros", "ones", "empty", "full", "rand", "randn", "new_zeros", "new_ones", "new_empty", "new_full")
_SPLITS = ("split", "split_with_sizes")
_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
_OPEN = object()
_UNKNOWN = object()


@dataclass(frozen=True)
class Misfit:
    """A node of the user's code that does not return what the compact graph has.

    Attributes:
        node: the node.
        reason: why, in words.
        is_norm: whether that is only because it counts channels that are gone.
    """

    node: Node
    reason: str
    is_norm: bool = False


class _Keeper(PlainInterpreter):
    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.kept: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if (name := n.meta.get(ANALYSED)) is not None:
            self.kept[name] = _copied(value)
        return value


def _copied(value: Any) -> Any:
    """A value that code may write into."""
    return tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, value)


@torch.no_grad()
def values_of(small: GraphModule, inputs: ExampleInputs) -> dict[str, Any]:
    """What a compact graph computes in evaluation for each node of the analysed graph, by its name."""
    keeper, given = _Keeper(small), inputs.copied()
    with evaluating(small), unwritten(small):
        run_graph(keeper, given.args, given.kwargs)
    return keeper.kept


@dataclass
class Replay:
    """The graph of the user's code on the values of the compact graph.

    Attributes:
        code: the graph of the user's code, in which numbers remember the attributes that they come from.
        small: the compact graph.
        model: the user's model over sliced tensors.
        attributes: what is known of the numbers that its modules hold.
        expected: what the compact graph computes, by the names of the nodes of ``code``.
    """

    code: GraphModule
    small: GraphModule
    model: nn.Module
    attributes: Attributes
    expected: dict[str, Any]
    equations: list[Equation] = field(default_factory=list)
    _values: dict[Node, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._compact = {node.meta[ANALYSED]: node for node in self.small.graph.nodes if node.meta.get(ANALYSED)}
        self._modules = dict(self.model.named_modules(remove_duplicate=False))
        self._skipped = _for_training(self.code)

    @torch.no_grad()
    def misfits(self, values: Values) -> Iterator[Misfit]:
        """Run the code with attributes at these values; yields where it does not fit, and collects ``equations``."""
        self.equations = []
        self._values = {}
        with evaluating(self.model), evaluating(self.code), unwritten(self.model), unwritten(self.code):
            for node in self.code.graph.nodes:
                if node.op == "output":
                    return
                reason = self._step(node, values)
                if reason:
                    yield Misfit(node, reason)

    def _step(self, node: Node, values: Values) -> str:
        """Run one node; returns why it does not fit, or nothing."""
        if node in self._skipped:
            self._values[node] = _copied(self.expected.get(node.name, _UNKNOWN))
            return ""
        if node.op in ("placeholder", "get_attr"):
            self._values[node] = self._held(node)
            return ""
        given = map_arg((node.args, node.kwargs), self._values.__getitem__)
        if any(one is _UNKNOWN for one in tree_leaves(given)) and node.target is not by_mode:
            self._values[node] = _copied(self.expected.get(node.name, _UNKNOWN))
            return (
                "what it reads is gone, with a branch, or fits no grid any more" if node.name in self.expected else ""
            )
        if not tensor_leaves(node.meta.get("val")):
            return self._number(node, *given, values)
        if node.name in self.expected:
            self._note(node, *given)
        return self._compared(node, map_aggregate(given, lambda one: self._resolved(one, values)))

    def _resolved(self, number: Any, values: Values) -> Any:
        return resolved(number, values, self.attributes.original)

    def _compared(self, node: Node, given: Any) -> str:
        """Run a node that returns tensors; returns how they differ from what the compact graph has."""
        expected = self.expected.get(node.name, _UNKNOWN)
        self._values[node] = _copied(expected)
        try:
            found = self._call(node, *given)
        except Exception as error:
            return "" if expected is _UNKNOWN else f"it fails on what is left ({_first_line(error)})"
        if expected is _UNKNOWN or (_fit(expected, found, values=not _is_any(node)) and not _is_any(node)):
            self._values[node] = found
        return "" if expected is _UNKNOWN else _difference(expected, found, values=not _is_any(node))

    def _held(self, node: Node) -> Any:
        if node.op == "get_attr":
            try:
                return attrgetter(str(node.target))(self.model)
            except AttributeError:
                pass
        if node.name in self.expected:
            return _copied(self.expected[node.name])
        return _UNKNOWN if node.op == "placeholder" else attrgetter(str(node.target))(self.code)

    def _number(self, node: Node, args: Any, kwargs: Any, values: Values) -> str:
        """A node that returns no tensor: sizes, what is computed from them, and checks."""
        if node.target in _COMPARISONS and isinstance(node.meta.get("val"), bool):
            return self._decision(node, Origin(node.target, args), values)
        twin = self._compact.get(node.name)
        if twin is not None and called(node)[0] == "setitem" and _spelled(twin) != _spelled(node):
            places = zip(_places(twin), entries_of(args[-2], args[-3].ndim), strict=True)
            there = tuple(given if isinstance(place, Node) else place for place, given in places)
            self._call(node, (*args[:-2], there, args[-1]), kwargs)  # what follows reads what is written
            return "it writes at other places"
        try:
            self._values[node] = self._call(node, args, kwargs)
        except Exception as error:
            self._values[node] = _UNKNOWN
            return f"it fails on what is left ({_first_line(error)})"
        return ""

    def _decision(self, node: Node, question: Origin, values: Values) -> str:
        answer = self._values[node] = node.meta["val"]
        if any(attributes_in(question)):
            self.equations.append(Equation(node, question, answer))
        try:
            found = self._resolved(question, values)
        except Exception as error:
            return f"the code decides by it, and it fails on what is left ({_first_line(error)})"
        return "" if found == answer else f"the code decides by it: it was {answer}, and would be {found}"

    def _call(self, node: Node, args: Any, kwargs: Any) -> Any:
        if node.op == "call_module":
            module = self._modules.get(str(node.target))
            if module is None:
                module = (self.code if str(node.target) in self.code._modules else self.small).get_submodule(
                    str(node.target)
                )
            return False if isinstance(module, TrainingFlag) else module(*args, **kwargs)
        if node.target is by_mode:
            return args[2]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Callable[..., Any] = node.target  # type: ignore[assignment]
        return function(*args, **kwargs)

    def _note(self, node: Node, args: Any, kwargs: Any) -> None:
        """Collect equations from the numbers among the arguments of a node."""
        for path, number in (*_paths(args, ()), *_paths(kwargs, ())):
            wanted = self._wanted(node, path, number)
            if wanted is not _OPEN:
                self.equations.append(Equation(node, number.origin, wanted))

    def _wanted(self, node: Node, path: tuple[Any, ...], number: Any) -> Any:
        """What a number in the arguments of a node must be; ``_OPEN`` where that is not known."""
        name, expected = op_name(node), self.expected[node.name]
        before = self._resolved(number, {})
        if (dim := _dim_of(node, name, path)) is not None and isinstance(expected, Tensor):
            return -1 if before == -1 else expected.size(dim) if dim < expected.ndim else _OPEN
        twin = self._compact.get(node.name)
        if name == "getitem" and twin is not None and twin.target is operator.getitem:
            return _entry(node, twin, path)
        if name in _SPLITS and path[0] == 1:
            return _part(expected, node, path)
        if twin is None or twin.target != node.target:
            return _OPEN
        there: Any = (twin.args, twin.kwargs)
        try:
            for step in (0 if isinstance(path[0], int) else 1, *path):
                there = getattr(there, step) if isinstance(there, slice) else there[step]
        except (IndexError, KeyError, TypeError, AttributeError):
            return _OPEN
        return there if type(there) in (int, float) else _OPEN


def _for_training(code: GraphModule) -> set[Node]:
    """The nodes whose values matter in training only: ``by_mode`` takes the other value in evaluation."""
    read, waiting = set[Node](), [node for node in code.graph.nodes if not node.users]
    while waiting:
        node = waiting.pop()
        if node not in read:
            read.add(node)
            waiting.extend([node.args[2]] if node.target is by_mode else node.all_input_nodes)
            waiting = [one for one in waiting if isinstance(one, Node)]
    return {node for node in code.graph.nodes if node not in read}


def _paths(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The numbers in arguments that come from attributes, each with its place."""
    if isinstance(value, Int | Float):
        if any(attributes_in(value)):
            yield path, value
    elif isinstance(value, tuple | list):
        for i, one in enumerate(value):
            yield from _paths(one, (*path, i))
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _paths(one, (*path, key))
    elif isinstance(value, slice):
        for key in ("start", "stop", "step"):
            yield from _paths(getattr(value, key), (*path, key))


def _dim_of(node: Node, name: str, path: tuple[Any, ...]) -> int | None:
    """The dimension of the result whose size a number in the arguments is; None if it is no size."""
    first = 1 if name in _SIZES or name.startswith("new_") else 0
    if name == "unflatten":
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if isinstance(dim, int) and path[0] in (2, "sizes", "unflattened_size"):
            source: Any = node.args[0]
            ndim: int = source.meta["val"].ndim
            return dim % ndim + int(path[1])
        return None
    if name not in _SIZES + _FACTORIES or (path[0] not in (first, "size", "shape") and len(path) > 1):
        return None
    if len(path) == 2:
        return int(path[1])
    listed = len(node.args) > first and isinstance(node.args[first], tuple | list)
    return int(path[0]) - first if isinstance(path[0], int) and not listed and "full" not in name else None


def _part(expected: Any, node: Node, path: tuple[Any, ...]) -> Any:
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    if not isinstance(dim, int) or not isinstance(expected, tuple | list):
        return _OPEN
    sizes = [part.size(dim) for part in expected]
    return sizes[path[1]] if len(path) == 2 else sizes[0]


def _places(node: Node) -> tuple[Any, ...]:
    """Where ``x[…] = y`` writes, as the graph says it: numbers, and nodes for what is computed."""
    index = called(node)[1][1]
    return index if isinstance(index, tuple) else (index,)


def _spelled(node: Node) -> str:
    """The same as text, without the names of nodes."""
    return str(map_arg(_places(node), lambda _: None))


def _is_any(node: Node) -> bool:
    """Whether a node returns other numbers each time: random ones, or what lies in memory."""
    return is_random(node) or "empty" in str(node.target)


def _entry(node: Node, twin: Node, path: tuple[Any, ...]) -> Any:
    """A number in what a node reads of a tensor, as the compact graph has it: ``x[..., :12]`` and ``x[:, :, 0:8]``."""
    source: Any = node.args[0]
    if not isinstance(source.meta.get("val"), Tensor):
        return _OPEN
    mine, theirs = (entries_of(one.args[1], source.meta["val"].ndim) for one in (node, twin))
    place = path[1] if isinstance(node.args[1], tuple) else 0
    given: Any = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if Ellipsis in given[:place]:
        place += len(mine) - len(given)
    there: Any = theirs[place] if place < len(theirs) else _OPEN
    if isinstance(there, slice) and path[-1] in ("start", "stop", "step"):
        there = getattr(there, path[-1])
    return there if type(there) is int else _OPEN


def _fit(expected: Any, found: Any, values: bool) -> bool:
    one, other = tensor_leaves(expected), tensor_leaves(found)
    if [(t.shape, t.dtype) for t in one] != [(t.shape, t.dtype) for t in other]:
        return False
    return not values or all(relative_error(a, b) <= tolerance_of(a) for a, b in zip(one, other, strict=True))


def _difference(expected: Any, found: Any, values: bool) -> str:
    """How results differ, in words; empty if they do not."""
    if _fit(expected, found, values):
        return ""
    one, other = ([tuple(t.shape) for t in tensor_leaves(value)] for value in (expected, found))
    if one != other:
        return f"it returns {_shapes(other)} in the place of {_shapes(one)}"
    return f"it returns other values (by {relative_error(expected, found):.0e})"


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes[:3])) or "nothing"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
