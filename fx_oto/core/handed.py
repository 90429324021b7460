"""GraphModules whose graph itself is pickled: torch.fx pickles generated code, and traces that when it is loaded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate
from torch.nn.utils import parametrize

__all__ = ["HandedGraph", "assembled", "is_torchs_own", "named_op", "new_parametrized"]

# Made anew of the graph, or of no use in another process.
_MADE_ANEW = ("_graph", "_code", "_lineno_map", "_prologue_start", "_deepcopy_hooks", "meta", "shape_env")
_HOOKS = ("_replace_hooks", "_create_node_hooks", "_erase_node_hooks", "_deepcopy_hooks")
_OLD_NAMES = "_load_state_dict_pre_hooks"


class HandedGraph(GraphModule):
    """A GraphModule that ``pickle``, and so ``torch.save``, hands over as it is: nothing is traced when it is loaded.

    Traced anew, buffers would meet proxies: ``self.p[:, : x.shape[1]]`` fails there, as sizes are unknown to a proxy.
    Parametrized modules, which torch does not pickle, are handed over as well. As with torch's, ``meta`` is not.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        state = {key: value for key, value in self.__dict__.items() if key not in _MADE_ANEW}
        seen: dict[int, Any] = {}
        state["_modules"] = {key: child and _picklable(child, seen) for key, child in self._modules.items()}
        return _empty, (type(self).__name__,), (state, _nodes(self.graph), self.graph._codegen)

    def __setstate__(self, handed: tuple[dict[str, Any], list[_Handed], Any]) -> None:
        """Take over what was pickled, and compile the graph."""
        state, nodes, codegen = handed
        self.__dict__.update(state, meta={}, shape_env=None, _deepcopy_hooks=[])
        graph = Graph(tracer_cls=state["_tracer_cls"])
        made: dict[str, Node] = {}
        for node in nodes:
            made[node.name] = node.put(graph, made)
        graph.set_codegen(codegen)
        self.graph = graph


def assembled(held: nn.Module, graph: Graph, name: str) -> HandedGraph:
    """A GraphModule of a graph and of all that a module holds, whether the graph calls it or not.

    Args:
        held: whose modules, parameters and buffers are taken.
        graph: the graph.
        name: of the GraphModule's class.
    """
    new = _empty(name)
    new.__dict__.update(held.__dict__, meta={}, shape_env=None, _tracer_cls=graph._tracer_cls, _tracer_extras={})
    new.__dict__.update((hooks, []) for hooks in _HOOKS)
    new.graph = graph
    return new


def _empty(name: str) -> HandedGraph:
    new = HandedGraph.__new__(HandedGraph)
    nn.Module.__init__(new)
    new.__class__.__name__ = name
    return new


@dataclass(frozen=True)
class _Read:
    """Stands for a node among the arguments of another."""

    name: str


@dataclass(frozen=True)
class _Op:
    """Stands for an operator, which cannot be pickled."""

    name: str


@dataclass(frozen=True)
class _Layout:
    """Stands for a memory format or a layout, which the protocol of pickle that ``torch.save`` uses does not take."""

    name: str


@dataclass(frozen=True)
class _Applied:
    """Stands for what calls a ``torch.autograd.Function``, which is a function of its own."""

    custom: Any
    make: Callable[[Any], Any]


@dataclass(frozen=True)
class _Handed:
    """A node without its graph."""

    name: str
    op: str
    target: Any
    args: Any
    kwargs: Any
    kind: Any
    stack_trace: str | None
    asks_values: bool = False

    @classmethod
    def of(cls, node: Node) -> _Handed:
        args, kwargs = map_aggregate((node.args, node.kwargs), _spelled)
        asks_values = bool(node.meta.get("asks_values"))
        return cls(node.name, node.op, _spelled(node.target), args, kwargs, node.type, node.stack_trace, asks_values)

    def put(self, graph: Graph, made: dict[str, Node]) -> Node:
        def read(value: Any) -> Any:
            return made[value.name] if isinstance(value, _Read) else _meant(value)

        args, kwargs = map_aggregate((self.args, self.kwargs), read)
        node = graph.create_node(self.op, _meant(self.target), args, kwargs, self.name, self.kind)
        if self.stack_trace is not None:
            node.stack_trace = self.stack_trace
        if self.asks_values:
            node.meta["asks_values"] = True
        return node


def _nodes(graph: Graph) -> list[_Handed]:
    return [_Handed.of(node) for node in graph.nodes]


def _spelled(value: Any) -> Any:
    if isinstance(value, Node):
        return _Read(value.name)
    if isinstance(value, OpOverload | OpOverloadPacket):
        return _Op(str(value))
    if isinstance(value, torch.memory_format | torch.layout):
        return _Layout(str(value).removeprefix("torch."))
    if custom := getattr(value, "applies", None):
        return _Applied(*custom)
    return value


def _meant(value: Any) -> Any:
    if isinstance(value, _Op):
        return named_op(value.name)
    if isinstance(value, _Layout):
        return getattr(torch, value.name)
    return value.make(value.custom) if isinstance(value, _Applied) else value


def named_op(name: str) -> Any:
    """The operator called ``"aten.add.Tensor"``, or ``"aten.add"`` for all of its overloads."""
    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _picklable(module: nn.Module, seen: dict[int, Any]) -> Any:
    """A module, or a copy with a stand-in for each parametrized module in it, if there are any.

    Args:
        module: the module.
        seen: what was made of others, by ``id``.
    """
    if not any(parametrize.is_parametrized(one) for one in module.modules()) or isinstance(module, GraphModule):
        return module
    if id(module) not in seen:
        children: dict[str, Any] = {key: child and _picklable(child, seen) for key, child in module._modules.items()}
        state = {**module.__dict__, "_modules": children}
        if parametrize.is_parametrized(module):
            state[_OLD_NAMES] = OrderedDict(one for one in state[_OLD_NAMES].items() if not is_torchs_own(one[1]))
            names = tuple(children["parametrizations"]._modules)
            seen[id(module)] = _Parametrized(type(module).__bases__[0], names, state)
        else:
            seen[id(module)] = module.__new__(type(module))
            seen[id(module)].__dict__.update(state)
    return seen[id(module)]


def is_torchs_own(hook: Any) -> bool:
    """Whether a hook is one that ``weight_norm`` puts on a module to read files of its predecessor: it has no name."""
    function = getattr(hook, "hook", hook)
    return "<locals>" in getattr(function, "__qualname__", "") and function.__module__.startswith("torch.")


class _Parametrized:
    """Stands for a parametrized module, whose class torch makes for it alone."""

    def __init__(self, kind: type[nn.Module], names: tuple[str, ...], state: dict[str, Any]) -> None:
        self.made_of = kind, names, state

    def __reduce__(self) -> tuple[Any, ...]:
        kind, names, state = self.made_of
        return new_parametrized, (kind, names), state


def new_parametrized(kind: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """A module of a class whose tensors of some names are computed; what is in it is still to be set.

    Args:
        kind: the class before it was parametrized.
        names: of the tensors.
    """
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)
    return module
