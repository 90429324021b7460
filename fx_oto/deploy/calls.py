"""Which modules a model calls, with what, and what they return, as nodes of the graph that is captured meanwhile."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from fx_oto.capture.modes import active
from fx_oto.capture.numbers import Float, Int, Origin, plain
from fx_oto.capture.whole import is_leaf
from fx_oto.core.fx_utils import last_node
from fx_oto.nn.modes import by_mode

__all__ = ["CALL", "Call", "Made", "Value", "calls_of", "watch_calls"]

CALL = "module_call"  # in a node's meta: the innermost call of a module in which it was made


@dataclass(frozen=True)
class Value:
    """A tensor or number that a call is given or returns.

    Attributes:
        made: the name of the node that it is the value of; empty if there is none.
        key: which part of the node's value; None for all.
        origin: of a number, how it is computed.
    """

    made: str = ""
    key: Any = None
    origin: Origin | None = None

    @property
    def node(self) -> str:
        """The name of the node that it is the value of, or a part of it; empty if there is none."""
        if self.origin is not None and self.origin.node is not None:
            return self.origin.node.name
        return self.made


@dataclass(frozen=True)
class Made:
    """An object that a call returns and that holds its parts by name, as the outputs of transformers do.

    Attributes:
        kind: its class, which makes it of its parts.
        parts: those.
    """

    kind: type
    parts: dict[str, Any]


@dataclass
class Call:
    """One call of a module.

    Attributes:
        path: of the module.
        index: how many calls of it were before.
        outer: the call in which it happens; None for the model's own.
        given: its arguments by name, each tensor and each size in them a ``Value``.
        training: the mode in which the model was captured.
        returned: what it returns, likewise.
    """

    path: str
    index: int
    outer: Call | None
    given: dict[str, Any]
    training: bool
    returned: Any = None

    @property
    def key(self) -> tuple[str, int]:
        """The same in every run of the model."""
        return self.path, self.index

    def around(self) -> Iterator[Call]:
        """This call and those in which it happens, the innermost first."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.outer


@dataclass
class _Watch:
    """The calls of one run."""

    run: Any
    counts: Counter[str] = field(default_factory=Counter)
    open: list[tuple[Call, Node | None]] = field(default_factory=list)

    def enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A module is called."""
        outer = self.open[-1][0] if self.open else None
        call = Call(path, self.counts[path], outer, _given(self.run, module, args, kwargs), self.run.training)
        self.counts[path] += 1
        self.open.append((call, last_node(self.run.graph)))

    def leave(self, result: Any) -> None:
        """It returns."""
        call, last = self.open.pop()
        call.returned = _noted(self.run, result)
        for node in reversed(self.run.graph.nodes):
            if node is last:
                break
            node.meta.setdefault(CALL, call)


def watch_calls(model: nn.Module) -> None:
    """Note, while a model is captured, on each node the call of a module in which it is made."""
    watches: dict[int, _Watch] = {}

    def watch() -> _Watch | None:
        run = getattr(active, "run", None)
        if run is None or run.depth or run.is_over:
            return None
        return watches.setdefault(id(run), _Watch(run))

    for path, module in model.named_modules():
        if not is_leaf(module):
            _hook(path, module, watch)


def _hook(path: str, module: nn.Module, watch: Callable[[], _Watch | None]) -> None:
    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        if (found := watch()) is not None:
            found.enter(path, module, args, kwargs)

    def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        if (found := watch()) is not None:
            found.leave(result)

    # Between the user's hooks, which stay: a graph in the place of forward must not do what they do as well.
    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave, with_kwargs=True, prepend=True)


def _given(run: Any, module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError:  # it fails soon
        return {}
    return {name: _noted(run, value) for name, value in bound.arguments.items()}


def _noted(run: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        return _of_tensor(run, value)
    if isinstance(value, Int | Float) and not value.run.stays_in_graphs:
        return Value(origin=value.origin)
    if isinstance(value, Int | Float):
        return plain(value)
    if isinstance(value, dict) and type(value) is not dict and all(isinstance(key, str) for key in value):
        return Made(type(value), {key: _noted(run, one) for key, one in value.items()})
    return _mapped(value, lambda one: _noted(run, one))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A container with ``change`` applied to each of its parts; anything else as it is."""
    if isinstance(value, Made):
        return Made(value.kind, {key: change(one) for key, one in value.parts.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return tuple.__new__(type(value), map(change, value))  # one such as PackedSequence looks at what it is made of
    if isinstance(value, tuple | list):
        parts = list(map(change, value))
        return parts if isinstance(value, list) else tuple(parts)
    return {key: change(one) for key, one in value.items()} if type(value) is dict else value


def _of_tensor(run: Any, tensor: Tensor) -> Value:
    place = run.places.get(id(tensor))
    if isinstance(place, Node):
        return Value(place.name)
    if place is not None:
        return Value(place.parent.name, place.key)
    held = run.fakes.real.get(id(tensor), tensor)
    name = run.subject.tensors.get(id(held))
    return Value("" if name is None else run.attribute(name, held).name)


def calls_of(nodes: Iterable[Node]) -> dict[tuple[str, int], Call]:
    """All calls in which the nodes of a graph were made, by path and index.

    Where the graph has both training modes, the names of nodes are those of the run in training. What a call is given
    or returns may be another node in each mode: then it is the one that chooses between them.
    """
    found: dict[tuple[str, int], Call] = {}
    chosen: dict[str, str] = {}
    for node in nodes:
        if node.target is by_mode and isinstance(node.args[1], Node):
            chosen.setdefault(node.args[1].name, node.name)
        for one in node.meta[CALL].around() if CALL in node.meta else ():
            if one.key not in found or (one.training and not found[one.key].training):
                found[one.key] = one
    if chosen:
        for key, call in found.items():
            given, returned = _renamed(call.given, chosen), _renamed(call.returned, chosen)
            found[key] = replace(call, given=given, returned=returned)
    return found


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, Value):
        return replace(value, made=names.get(value.made, value.made))
    return _mapped(value, lambda one: _renamed(one, names))
