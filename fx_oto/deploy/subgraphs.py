"""The compact graph of one module, in the place of its ``forward``."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from fx_oto.capture.names import AnyNames
from fx_oto.core.errors import SlicingError
from fx_oto.core.fx_utils import op_name
from fx_oto.deploy.calls import CALL, Call, Made, Value
from fx_oto.deploy.forward import GraphForward, check_given, check_sizes, signature_of
from fx_oto.nn.checks import is_check
from fx_oto.nn.modes import TrainingFlag, by_mode, says_in_place
from fx_oto.ops.values import ANALYSED

__all__ = ["Subgraphs"]

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
_SHAPES = ("getattr", "shape", "size")  # what returns all sizes of a tensor
_STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
_HELD = "fx_oto_compact"  # holds what the graph of a module needs besides the module's own parameters and layers


class _CannotBeCutOutError(Exception):
    """Why no graph of a module alone can be made."""


class Subgraphs:
    """Takes the graphs of single modules out of a compact graph.

    Args:
        code: the graph of the user's code.
        small: the compact graph.
        calls: the calls of modules in ``code``.
        shapes: what the compact graph computes has these, by node, where the capture had to fix sizes; else empty.
    """

    def __init__(
        self,
        code: GraphModule,
        small: GraphModule,
        calls: dict[tuple[str, int], Call],
        shapes: dict[str, tuple[int, ...]],
    ) -> None:
        self.small, self.calls, self._shapes = small, calls, shapes
        self._compact: dict[str, Node] = {}
        for node in small.graph.nodes:
            if (name := node.meta.get(ANALYSED)) is not None:
                self._compact[name] = node
        self._sizes = {node.name: size for node in code.graph.nodes if (size := _size_read(node)) is not None}
        self._call_of = {node.name: node.meta.get(CALL) for node in code.graph.nodes}

    def why_not(self, path: str, model: nn.Module) -> str:
        """Why the graph of a module alone cannot be made; empty if it can."""
        try:
            self._source(path, model)
        except _CannotBeCutOutError as error:
            return str(error)
        return ""

    def put(self, path: str, model: nn.Module) -> None:
        """Let a module compute what the compact graph says.

        Raises:
            SlicingError: the graph of it alone cannot be made.
        """
        module = model.get_submodule(path)
        try:
            graph, held = self._source(path, model)
        except _CannotBeCutOutError as error:
            raise SlicingError(f"the compact graph of {path or 'the model'} alone cannot be made: {error}") from error
        if held:
            extra = nn.Module()
            for name, value in held.items():
                if isinstance(value, Tensor):
                    extra.register_buffer(name, value.detach().clone(), persistent=False)
                else:
                    extra.add_module(name, copy.deepcopy(value))
            module.add_module(_HELD, extra)
        graph.set_codegen(AnyNames())
        code = graph.python_code("self")
        module.__dict__["forward"] = GraphForward(module, code.src, dict(code.globals))

    def _source(self, path: str, model: nn.Module) -> tuple[Graph, dict[str, Any]]:
        mine = [call for key, call in self.calls.items() if key[0] == path]
        if not mine:
            raise _CannotBeCutOutError("it is not called on the example inputs")
        known = (self.small, self._compact, self._call_of, self._sizes, self._shapes)
        found = [_Extraction(*known, call, model) for call in mine]
        made = [(one.graph(), one.held) for one in found]
        if any(not _same(made[0][0], other) for other, _ in made[1:]):
            raise _CannotBeCutOutError("it is called more than once, and computes something else each time")
        return made[0]


def _same(one: Graph, other: Graph) -> bool:
    """Whether two graphs compute the same."""
    return len(one.nodes) == len(other.nodes) and _spelled(one) == _spelled(other)


def _spelled(graph: Graph) -> list[str]:
    numbers = {node: i for i, node in enumerate(graph.nodes)}
    return [f"{n.op} {n.target} {map_arg((n.args, n.kwargs), lambda one: numbers[one])}" for n in graph.nodes]


class _Extraction:
    """The part of a compact graph that one call of a module is."""

    def __init__(
        self,
        small: GraphModule,
        compact: dict[str, Node],
        call_of: dict[str, Call | None],
        sizes: dict[str, tuple[str, int]],
        shapes: dict[str, tuple[int, ...]],
        call: Call,
        model: nn.Module,
    ) -> None:
        self.small, self.compact, self.call_of, self.sizes = small, compact, call_of, sizes
        self.shapes, self.call, self.model = shapes, call, model
        self.module = model.get_submodule(call.path)
        self.held: dict[str, Any] = {}
        self._new = Graph()
        self._there: dict[Node, Node] = {}
        self._inside = {id(tensor): name for name, tensor in self._tensors()}

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.module.named_parameters(remove_duplicate=False)
        yield from self.module.named_buffers(remove_duplicate=False)

    def graph(self) -> Graph:
        if not self.call.path:
            return self._whole()
        self._placeholders()
        needed = self._needed()
        for node in self.small.graph.nodes:
            if node in needed and node not in self._there:
                self._there[node] = self._copied(node)
        self._new.output(self._returned(self.call.returned))
        self._new.lint()
        return self._new

    def _whole(self) -> Graph:
        for node in self.small.graph.nodes:
            if node.op == "output":
                self._new.output(map_arg(node.args[0], self._there.__getitem__))
            else:
                self._there[node] = self._copied(node)
        return self._new

    def _placeholders(self) -> None:
        """An argument for each of ``forward``; what is given as tensors stands for nodes of the compact graph."""
        parameters = list(signature_of(self.module).parameters.values())
        made = {parameter.name: self._placeholder(parameter) for parameter in parameters}
        for parameter in parameters:
            name = parameter.name
            if name in self.call.given:
                self._bind(self.call.given[name], made[name], name)
            elif parameter.default is not parameter.empty:
                self._check(made[name], parameter.default, name)

    def _placeholder(self, parameter: inspect.Parameter) -> Node:
        stars = _STARS.get(parameter.kind, "")
        if parameter.default is parameter.empty:
            return self._new.placeholder(stars + parameter.name)
        if not isinstance(parameter.default, _PLAIN):
            raise _CannotBeCutOutError(f"the default of its argument {parameter.name!r} cannot be spelled")
        return self._new.placeholder(stars + parameter.name, default_value=parameter.default)

    def _bind(self, value: Any, node: Node, name: str) -> None:
        """Let a node stand for what the compact graph has in the place of an argument, and nodes for parts of it."""
        if isinstance(value, Value):
            self._bind_value(value, node, name)
        elif isinstance(value, Made) or not _with_values(value):
            self._check(node, value, name)
        else:
            for key, one in value.items() if isinstance(value, dict) else enumerate(value):
                if _with_values(one):
                    self._bind(one, self._new.call_function(operator.getitem, (node, key)), name)

    def _bind_value(self, value: Value, node: Node, name: str) -> None:
        twin = self.compact.get(value.node)
        if value.origin is not None and value.node in self.sizes:
            self._bind_size(*self.sizes[value.node], node)
        if twin is None and value.origin is None:
            raise _CannotBeCutOutError(f"the compact graph does not have its argument {name!r}")
        if twin is None:
            return
        if value.key is None and value.node in self.shapes:
            self._new.call_function(check_sizes, (node, self.shapes[value.node][1:], name))
        stands_for: list[Any] = [twin, *(twin.args[1:] if twin.target is by_mode else ())]
        if value.key is not None:
            parts = [user for user in twin.users if user.target is operator.getitem]
            stands_for = [user for user in parts if user.args[1] == value.key]
        for one in stands_for:
            self._there.setdefault(one, node)

    def _bind_size(self, tensor: str, dim: int, node: Node) -> None:
        """Let an argument stand for a size, which the compact graph reads anew."""
        source = self.compact.get(tensor)
        for user in () if source is None else source.users:
            if _size_read(user) == (source.name, dim):  # type: ignore[union-attr]
                self._there.setdefault(user, node)

    def _check(self, node: Node, value: Any, name: str) -> None:
        if isinstance(value, tuple | list | dict) and not value:
            return
        if isinstance(value, Tensor) or not _is_plain(value):
            raise _CannotBeCutOutError(f"its argument {name!r} is a {type(value).__name__}, which no graph takes")
        self._new.call_function(check_given, (node, value, name))

    def _needed(self) -> set[Node]:
        """What the module computes: what leads to its results, what it writes, and what it checks."""
        needed: set[Node] = set()
        for value in _values(self.call.returned):
            self._need(self._node_of(value), needed)
        for node in self.small.graph.nodes:
            if node.op.startswith("call_") and (self._is_effect(node) or self._is_check(node, needed)):
                self._need(node, needed)
        return needed

    def _is_effect(self, node: Node) -> bool:
        writes = says_in_place(node) or op_name(node) in ("copy_", "written_in") or is_check(node)
        return writes and node.meta.get(ANALYSED) is not None and self._is_mine(node)

    def _is_check(self, node: Node, needed: set[Node]) -> bool:
        """Whether slicing put in a check of what the module computes."""
        if not is_check(node) or node.meta.get(ANALYSED) is not None:
            return False
        sized = _sized(node.args[0])
        return not needed.isdisjoint(sized) and all(one in needed or one in self._there for one in sized)

    def _need(self, start: Node, needed: set[Node]) -> None:
        waiting = [start]
        while waiting:
            node = waiting.pop()
            if node in needed or node in self._there:
                continue
            if node.op == "placeholder" or not self._may_hold(node):
                raise _CannotBeCutOutError(f"it reads {node.name!r}, which is computed outside of it")
            needed.add(node)
            waiting.extend(node.all_input_nodes)

    def _may_hold(self, node: Node) -> bool:
        name = node.meta.get(ANALYSED)
        if name is None or node.op == "get_attr" or not isinstance(node.meta.get("val"), Tensor | tuple | list):
            return True
        return self._is_mine(node)

    def _is_mine(self, node: Node) -> bool:
        made_in = self.call_of.get(node.meta.get(ANALYSED) or "")
        if node.target is by_mode:
            return True  # what it chooses between decides
        return made_in is not None and any(call.key == self.call.key for call in made_in.around())

    def _node_of(self, value: Value) -> Node:
        twin = self.compact.get(value.node)
        if twin is None:
            raise _CannotBeCutOutError("the compact graph does not have what it returns")
        return twin

    def _returned(self, value: Any) -> Any:
        if isinstance(value, Made):
            parts = {key: self._returned(one) for key, one in value.parts.items()}
            return self._new.call_function(value.kind, (), parts)
        if isinstance(value, Value):
            node = self._there[self._node_of(value)]
            return node if value.key is None else self._new.call_function(operator.getitem, (node, value.key))
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return type(value)(self._returned(one) for one in value)
        if type(value) is dict:
            return {key: self._returned(one) for key, one in value.items()}
        if not _is_plain(value):
            raise _CannotBeCutOutError(f"it returns a {type(value).__name__}, which no graph makes")
        return value

    def _copied(self, node: Node) -> Node:
        if node.op == "get_attr":
            return self._new.get_attr(self._tensor(str(node.target)))
        if node.op == "call_module":
            if isinstance(self.small.get_submodule(str(node.target)), TrainingFlag):
                return self._new.get_attr("training")
            args, kwargs = map_arg((node.args, node.kwargs), self._there.__getitem__)
            return self._new.call_module(self._layer(str(node.target)), args, kwargs)
        return self._new.node_copy(node, self._there.__getitem__)

    def _tensor(self, target: str) -> str:
        """The name under which the module has a tensor of the compact graph."""
        owner, _, name = target.rpartition(".")
        tensor = _at(self.model, owner, name)
        if isinstance(tensor, Tensor):
            if id(tensor) in self._inside:
                return self._inside[id(tensor)]
            if isinstance(tensor, nn.Parameter):
                raise _CannotBeCutOutError(f"it reads {target!r}, a parameter of another module")
        elif tensor is None:
            tensor = _at(self.small, owner, name)
        own = target.replace(".", "_").lstrip("_")
        self.held[own] = tensor
        return f"{_HELD}.{own}"

    def _layer(self, target: str) -> str:
        prefix = f"{self.call.path}." if self.call.path else ""
        layer = dict(self.model.named_modules(remove_duplicate=False)).get(target)
        if layer is None:
            own = target.replace(".", "_").lstrip("_")
            self.held[own] = self.small.get_submodule(target)
            return f"{_HELD}.{own}"
        for path, module in self.module.named_modules(remove_duplicate=False):
            if module is layer and path:
                return str(path)
        if not target.startswith(prefix):
            raise _CannotBeCutOutError(f"it calls {target!r}, a layer of another module")
        return target.removeprefix(prefix)


def _sized(size: Any) -> set[Node]:
    """The tensors of whose sizes a number is made."""
    waiting, found, seen = [size] if isinstance(size, Node) else [], set[Node](), set[Node]()
    while waiting:
        node = waiting.pop()
        if isinstance(node.meta.get("val"), Tensor):
            found.add(node)
        elif node not in seen:
            seen.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _at(root: nn.Module, owner: str, name: str) -> Any:
    try:
        return getattr(root.get_submodule(owner), name, None)
    except AttributeError:
        return None


def _size_read(node: Node) -> tuple[str, int] | None:
    """The tensor, by its node's name, and the dimension whose size a node reads; None if it does something else."""
    if node.target == "size" and len(node.args) == 2:
        source, dim = node.args
    elif node.target is operator.getitem and isinstance(node.args[0], Node) and op_name(node.args[0]) in _SHAPES:
        source, dim = node.args[0].args[0], node.args[1]
        if node.args[0].target is getattr and node.args[0].args[1] != "shape":
            return None
    else:
        return None
    if not isinstance(source, Node) or not isinstance(dim, int) or not isinstance(source.meta.get("val"), Tensor):
        return None
    return source.name, dim % source.meta["val"].ndim


def _with_values(value: Any) -> bool:
    return any(True for _ in _values(value))


def _values(value: Any) -> Iterator[Value]:
    if isinstance(value, Value):
        yield value
    elif isinstance(value, Made):
        yield from _values(value.parts)
    elif isinstance(value, tuple | list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _values(one)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
