"""Proxies that know their values, so that code may ask about shapes while it is traced.

The graph that is being traced is run on fake tensors as far as somebody asks for a value. An answer that depends on
the inputs becomes a check in the graph: run on other inputs it raises, where the code would have gone another way.
"""

from __future__ import annotations

import builtins
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx import Graph, Node, Proxy
from torch.fx.node import map_arg
from torch.fx.proxy import Attribute, TraceError
from torch.utils._pytree import tree_map_only

from fx_oto.graph import source_line
from fx_oto.keeping import evaluating
from fx_oto.modes import IN_PLACE
from fx_oto.modules import is_torchs
from fx_oto.provenance.tape import fake_like
from fx_oto.tracing.opaque import MethodCall, without_parameters

__all__ = ["KnownProxy", "Values", "isinstance_of_value"]

_ON_VALUES = "control flow depends on the values in a tensor"
# What cannot change with the numbers in the inputs; code that asks for the device chooses between equal computations.
_SAME = {"ndim", "dim", "ndimension", "device", "is_cuda", "is_sparse", "is_quantized", "layout", "requires_grad"}


class Values:
    """The values of the graph that is being traced, on fake tensors.

    Args:
        model: the module that is traced.
        given: the example inputs by the name of the argument.
    """

    def __init__(self, model: nn.Module, given: dict[str, Any]) -> None:
        self.running = False
        self._model = model
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._really_given = given
        self._given = self._faked(given)
        self._before = _tensors_of(model)  # for code may assign to them
        self._copies: dict[tuple[str, bool], Any] = {}
        self._values: dict[Node, Any] = {}
        self._last: Node | None = None
        self._checked: set[Node] = set()
        self._arguments: set[Node] = set()

    def _faked(self, value: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: fake_like(self._fake, tensor), value)

    @property
    def started(self) -> bool:
        """Whether the model's own code is being traced."""
        return self._last is not None

    def start(self, graph: Graph) -> None:
        """Take the arguments' values; what follows in the graph is the model's own code."""
        for node in graph.nodes:
            self._values[node] = self._given.get(str(node.target).lstrip("*"))
            self._last = node
        self._arguments = set(self._values)

    def forget_after(self, last: Node) -> None:
        """Take back the nodes that were traced after ``last``."""
        graph = last.graph
        for node in reversed(list(graph.nodes)):
            if node is last:
                break
            self._checked.discard(node)
            if self._values.pop(node, self) is not self:
                self._last = last
            graph.erase_node(node)

    def of(self, node: Node) -> Any:
        """A node's value; runs the graph up to there."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when the graph runs
            while node not in self._values:
                assert self._last is not None
                following = self._last.next
                self._values[following] = self._run(following)
                self._last = following
        return self._values[node]

    def _run(self, node: Node) -> Any:
        try:
            with self._fake:
                return self._evaluate(node, self._values)
        except Exception as error:
            if node.op == "call_module" and not is_torchs(type(self._model.get_submodule(str(node.target)))):
                return self._faked(self._really(node))
            if isinstance(error, DataDependentOutputException):
                raise TraceError(_ON_VALUES) from error
            raise

    def _evaluate(self, node: Node, values: dict[Node, Any]) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        self.running = True
        try:
            with torch.no_grad():
                if node.op == "get_attr":
                    return self._attribute(str(node.target), really=values is not self._values)
                if node.op == "call_module":
                    module = self._model.get_submodule(str(node.target))
                    with without_parameters(self._model) if isinstance(module, MethodCall) else nullcontext():
                        return module(*args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                return node.target(*args, **kwargs)  # type: ignore[operator]
        finally:
            self.running = False

    def _attribute(self, name: str, really: bool) -> Any:
        """A copy, for the code may write into it; parameters are fake unless the model is really run."""
        if (name, really) not in self._copies:
            held = self._before[name] if name in self._before else operator.attrgetter(name)(self._model)
            fresh = isinstance(held, Tensor) and (really or not isinstance(held, nn.Parameter))
            self._copies[name, really] = held.detach().clone() if fresh else self._faked(held)
        return self._copies[name, really]

    def _really(self, last: Node) -> Any:
        """The value on the example inputs themselves, of what cannot be run on fake tensors."""
        values: dict[Node, Any] = {}
        with evaluating(self._model):
            for node in last.graph.nodes:
                if node in self._arguments:
                    values[node] = self._really_given.get(str(node.target).lstrip("*"))
                else:
                    values[node] = self._evaluate(node, values)
                if node is last:
                    break
        return values[last]

    def answer(self, proxy: Proxy, ask: Callable[[Any], Any]) -> Any:
        """A plain number or truth value for a proxy; noted in the graph where it depends on the inputs."""
        node = proxy.node
        value = self.of(node)
        if isinstance(value, Tensor):
            raise TraceError(_ON_VALUES)
        found = ask(value)
        if isinstance(value, int | float) and node not in self._checked and not _is_fixed(node):
            self._checked.add(node)
            question = operator.ne(proxy, 0) if ask is bool and not isinstance(value, bool) else proxy
            same = operator.eq(question, found)
            message = f"the graph was captured where this was {found!r} ({source_line(node)}); trace it on such inputs"
            torch._assert(same, message)
        return found

    def or_none(self, proxy: Proxy) -> Proxy | None:
        """What is read from a container whose content is known, as in the inputs: None itself if it is that."""
        container = self._values.get(proxy.node.args[0])  # type: ignore[arg-type]
        plain = isinstance(container, dict | list | tuple) and not isinstance(container, torch.Size)
        if self.running or not plain or self.of(proxy.node) is not None:
            return proxy
        same = operator.eq(proxy, None)  # which is asked again when pickle traces the code anew, as "is" is not
        torch._assert(same, f"the graph was captured where this was None ({source_line(proxy.node)})")
        return None


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that modules hold, other than parameters, by name."""
    held = [(path, owner) for path, module in model.named_modules() for owner in (vars(module), module._buffers)]
    pairs = [(path, *pair) for path, owner in held if isinstance(owner, dict) for pair in owner.items()]
    return {f"{path}.{name}".lstrip("."): tensor for path, name, tensor in pairs if isinstance(tensor, Tensor)}


def _is_fixed(node: Node) -> bool:
    """Whether a value is the same for all inputs of the same kind."""
    if node.op == "call_method":
        return node.target in _SAME
    if node.op != "call_function":
        return False
    if node.target is getattr and node.args[1] in _SAME:
        return True
    module = getattr(node.target, "__module__", "")
    return module in ("_operator", "builtins") and all(map(_is_fixed, node.all_input_nodes))


def length(value: Any) -> int:
    """``len``, as a node of a graph."""
    return len(value)


def _varies_in_length(node: Node) -> bool:
    """Whether a list, tuple or dictionary is given by the user, or returned by code that is called as a whole."""
    if node.target is operator.getitem:
        return _varies_in_length(node.args[0])  # type: ignore[arg-type]
    return node.op in ("placeholder", "call_module") or (node.op == "call_function" and not is_torchs(node.target))


class KnownProxy(Proxy):
    """A proxy whose value is known to its tracer, which has ``values``.

    Unlike torch.fx's, it writes where ``x += y`` and ``x[i] = y`` do.
    """

    def __getattr__(self, k: str) -> Any:
        return _KnownAttribute(self, k)

    def __getitem__(self, key: Any) -> Any:
        return self.tracer.values.or_none(super().__getitem__(key))  # type: ignore[attr-defined,misc]

    def __iter__(self) -> Iterator[Any]:
        value = _value(self)
        return iter(value) if isinstance(value, dict) else (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        value = _value(self)
        counted: Any
        if isinstance(value, Tensor):
            counted = self.size(0)
            return int(counted)
        if _varies_in_length(self.node) and not isinstance(value, str | torch.Size):
            counted = self.tracer.create_proxy("call_function", length, (self,), {})
            counted.node.meta["is_wrapped"] = True
            return int(counted)
        return len(value)

    def __contains__(self, item: Any) -> bool:
        value = _value(self)
        return item in value if isinstance(value, dict) else any(bool(item == mine) for mine in self)

    def keys(self) -> Any:
        """The keys of a dictionary, which ``**`` asks for."""
        value = _value(self)
        return list(value) if isinstance(value, dict) else super().keys()

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __bool__(self) -> bool:
        return bool(self.tracer.values.answer(self, bool))  # type: ignore[attr-defined]

    def __index__(self) -> int:
        return int(self.tracer.values.answer(self, operator.index))  # type: ignore[attr-defined]

    def __int__(self) -> int:
        return int(self.tracer.values.answer(self, int))  # type: ignore[attr-defined]

    def __float__(self) -> float:
        return float(self.tracer.values.answer(self, float))  # type: ignore[attr-defined]


def _in_place(name: str) -> Callable[[KnownProxy, Any], Any]:
    def write(self: KnownProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return write


for _name in IN_PLACE:
    setattr(KnownProxy, f"__{_name}__", _in_place(_name))


class _KnownAttribute(Attribute, KnownProxy):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.attr in ("items", "values") and isinstance(mapping := _value(self.root), dict):
            pairs = [(key, self.root[key]) for key in mapping]  # type: ignore[index]
            return pairs if self.attr == "items" else [value for _, value in pairs]
        result = super().__call__(*args, **kwargs)
        return self.tracer.values.or_none(result) if self.attr == "get" else result  # type: ignore[attr-defined]


def _value(proxy: Proxy) -> Any:
    return proxy.tracer.values.of(proxy.node)  # type: ignore[attr-defined]


def isinstance_of_value(thing: Any, kind: Any) -> bool:
    """``isinstance`` for code that is traced: of a proxy's value."""
    return builtins.isinstance(thing, kind) or (
        builtins.isinstance(thing, KnownProxy) and builtins.isinstance(_value(thing), kind)
    )
