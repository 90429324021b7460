"""What can only be found by really computing: values that sizes depend on, and the content of constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property
from itertools import islice, takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from fx_oto.analysis.disguises import lies_on
from fx_oto.analysis.tape import FUSED, OpCall
from fx_oto.analysis.values import storage_of
from fx_oto.capture.arguments import Arguments
from fx_oto.capture.modes import without_modes
from fx_oto.capture.numbers import Origin
from fx_oto.capture.refusals import ON_VALUES
from fx_oto.capture.statements import StatementCall
from fx_oto.capture.steering import Steered
from fx_oto.capture.whole import MethodCall
from fx_oto.capture.writer import Writer
from fx_oto.core.contents import contents_kept
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import is_random, op_name, source_line, tensor_leaves, tensor_names
from fx_oto.core.preserve import unwritten
from fx_oto.nn.checks import is_check
from fx_oto.nn.modules import is_torchs

__all__ = ["Evaluator", "behind"]


_APART = 17  # and more, what stands in for numbers that are equal in the example alone
# What returns the same of the same, and is written often where code reads a number.
_READING = {"item", "max", "min", "amax", "amin", "sum", "getitem", "select"}
_READING |= {"long", "int", "float", "to", "add", "sub"}


class Evaluator(Writer):
    """Computes values of the graph that is being written, on the example inputs themselves.

    Attributes:
        calls: the ATen calls of each node.
        calls_functions_whole: whether functions are called as a whole, for their results depend on numbers.
        numbers_read: the numbers that are read from tensors when the graph runs, in order, and the lines that do.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls: dict[Node, list[OpCall]] = {}
        self.calls_functions_whole = False
        self.numbers_read: list[tuple[float, str]] = []
        self._readers: dict[float, list[tuple[Node, Any]]] = {}
        self._values: _Values | None = None
        self._in_order = False
        self._num_asked, self._found_written = 0, list[tuple[Node, Tensor]]()

    def really(self, node: Node, module: Any, given: Any, error: Exception, last: Node | None) -> Any:
        """The value of a node on the example inputs themselves, of what cannot be run on fake tensors."""
        if not self._can_really:
            self.forget_after(last)
            raise error
        try:
            value, macs = self._evaluated_once(node)
        except Exception as really:
            self.forget_after(last)
            self.raised = really
            raise really from error
        self.is_plain = False
        if module is None:  # of what else is called as a whole, the graph checks the sizes that code decides by
            self.by_values.add(node)
            self.calls_functions_whole = True
        node.meta["asks_values"] = True
        return self.fakes.opaque(node, module, given, value, macs)

    def number_by_values(self, tensor: Tensor) -> Any:
        """The number in a tensor, which the graph reads when it runs: of those in the inputs it is a result.

        Raises:
            TraceError: nobody can tell what it is on the example inputs, which have no numbers.
        """
        node = self.create("call_method", "item", (self.node_of_tensor(tensor),))
        if not self._can_really:
            raise TraceError(ON_VALUES)
        real, _ = self._evaluated_once(node)
        self.is_plain, self.calls_functions_whole = False, True
        self.by_values.add(node)
        node.meta.update(is_number=True, asks_values=True)
        value = node.meta["val"] = self.as_read(real, node)
        return self.number(value, Origin("item", node.args, node))

    def as_read(self, number: Any, node: Node, key: Any = None) -> Any:
        """A number that a node returns, or another one, where it depends on what is in tensors: see ``Options``.

        Args:
            number: the number.
            node: the node.
            key: of one of several that it returns, which.
        """
        if not node.meta.get("asks_values"):
            return number
        self.numbers_read.append((number, source_line(node)))
        if self.options.other_number is None:
            return number
        alike = self._readers.setdefault(number, [])
        same = (i for i, (one, part) in enumerate(alike) if part == key and self._reads_same(one, node))
        if (which := next(same, len(alike))) == len(alike):
            alike.append((node, key))
        # Numbers that are equal by chance must be told apart.
        return self.options.other_number(number) + which * _APART

    def _reads_same(self, one: Node, other: Node) -> bool:
        """Whether two nodes compute the same, as of code that asks twice for the longest length."""
        while one is not other:
            args, others = (torch.fx.node.map_arg((node.args, node.kwargs), lambda _: None) for node in (one, other))
            inputs = one.all_input_nodes, other.all_input_nodes
            is_call = one.op in ("call_function", "call_method")
            same = (one.op, one.target, args) == (other.op, other.target, others)
            if not (is_call and same and op_name(one) in _READING and list(map(len, inputs)) == [1, 1]):
                return False
            ((one,), (other,)) = inputs
        written = {storage_of(tensor) for _, tensor in self._written()}
        return all(storage_of(tensor) not in written for tensor in tensor_leaves(one.meta.get("val")))

    @cached_property
    def _can_really(self) -> bool:
        tensors = (*tensor_names(self.model).values(), *tensor_leaves((self.inputs.args, self.inputs.kwargs)))
        return not any(tensor.is_meta for tensor in tensors)

    def _evaluated_once(self, wanted: Node) -> tuple[Any, int]:
        """The real value of a node, and its multiply-adds; what it depends on is computed once for all such nodes."""
        needed = set(self.graph.nodes) if self._in_order else self.needed_by(wanted)
        if not self._in_order and self._reads_what_is_written(needed):
            self._in_order, needed = True, set(self.graph.nodes)
            self.forget_values()
        if self._values is None or self._writes_into_model():  # which is left as it was, after each evaluation
            self._values = self._no_values()
        return self._evaluated(needed, wanted, self._values)

    def _reads_what_is_written(self, needed: set[Node]) -> bool:
        """Whether the values of nodes may have been written into: then all that code called is called, in order."""
        if self.options.opaque or self.options.statements or any("is_wrapped" in one.meta for one in needed):
            return True
        read = {storage_of(one) for node in needed for one in tensor_leaves(node.meta.get("val"))}
        return any(storage_of(one) in read for _, one in self._written())

    def _writes_into_model(self) -> bool:
        return any(storage_of(one) in self._held for _, one in self._written())

    @cached_property
    def _held(self) -> set[Any]:
        return {storage_of(one) for one in self.fakes.named.values()}

    def _written(self) -> list[tuple[Node, Tensor]]:
        """What the calls up to now have written into, and their nodes; of each call that is asked once."""
        for node, calls in islice(self.calls.items(), self._num_asked, None):
            self._found_written += [(node, one) for call in calls for one in call.written]
        self._num_asked = len(self.calls)
        return self._found_written

    @property
    def written_in_model(self) -> set[Any]:
        """The memory of the model's own tensors into which its calls write."""
        return {storage_of(one) for _, one in self._written()} & self._held

    def decisions_by(self, memory: set[Any]) -> Iterator[str]:
        """What a user should know of checks of numbers that are in such memory."""
        for check in (node for node in self.graph.nodes if memory and is_check(node)):
            found = [one for one in behind(check, _read_but_for_sizes) if one.op == "get_attr"]
            names = [
                str(one.target) for one in found if any(storage_of(t) in memory for t in tensor_leaves(one.meta["val"]))
            ]
            if names:
                yield (
                    f"code decides by {names[0]!r}, which calls of the model write ({source_line(check)}): the graph "
                    "raises an error once it would go another way. Train the model itself, whose parameters it shares"
                )

    def forget_values(self) -> None:
        """Let everything be computed anew."""
        self._values = None

    def _no_values(self) -> _Values:
        with without_modes():
            return _Values(Arguments.of(self.model, self.inputs.copied()).given)

    def _evaluated(self, nodes: set[Node], wanted: Node, values: _Values) -> tuple[Any, int]:
        """The real value of one of the graph's nodes, and its multiply-adds.

        Args:
            nodes: those that it is computed from, and perhaps others.
            wanted: the node.
            values: those that are known already; what is computed is added.
        """
        before = takewhile(lambda node: node is not wanted, self.graph.nodes)
        waiting = [node for node in before if node in nodes and node not in values]
        steered = Steered(self.options.steered) if self.options.steered else nullcontext()
        # To leave a model as it was takes a look at all of it, for each of a thousand experts.
        traces = self._writes_into_model() or any(map(self._leaves_a_trace, (*waiting, wanted)))
        as_it_was = unwritten(self.model) if traces else nullcontext()
        displaced = contents_kept(self._displaced() if traces else ())
        with without_modes(), torch.no_grad(), as_it_was, displaced, torch.random.fork_rng(devices=[]), steered:
            for node in waiting:
                values[node] = self._evaluate(node, values)
            watch = (
                _Refusing(self.model) if isinstance(self._called(wanted), MethodCall | StatementCall) else nullcontext()
            )
            with watch, FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
                value = values[wanted] = self._evaluate(wanted, values)
        return value, counter.get_total_flops() // 2

    def _displaced(self) -> list[Tensor]:
        """Tensors in whose place code has put others meanwhile, as ``self.steps += 1`` does."""
        held = set(map(id, tensor_names(self.model).values()))
        return [one for one in (self.fakes.real[id(fake)] for fake in self.fakes.named.values()) if id(one) not in held]

    def _leaves_a_trace(self, node: Node) -> bool:
        """Whether to evaluate a node may change the model, or asks for its mode: layers without a state do not."""
        if node.op == "call_module":
            module = self.held[str(node.target)]
            return not (isinstance(module, _WITHOUT_STATE) and is_torchs(type(module)))
        where = str(getattr(node.target, "__module__", ""))
        return node.op == "call_function" and not (is_torchs(node.target) or where.startswith("fx_oto."))

    def _called(self, node: Node) -> Any:
        return self.held[str(node.target)] if node.op == "call_module" else None

    def _evaluate(self, node: Node, values: _Values) -> Any:
        if _is_plain(node):
            return node.meta["val"]
        if node.op == "placeholder":
            return values.given.get(str(node.target).lstrip("*"), *node.args)
        return self.called_on(node, values)

    def called_on(self, node: Node, values: dict[Node, Any]) -> Any:
        """What a node returns that is no input, given the values of those that it reads."""
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "get_attr":
            return self.held[str(node.target)]
        if node.op == "call_module":
            return self.held[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def needed_by(self, node: Node) -> set[Node]:
        """The nodes on whose numbers those of a node depend."""
        return behind(node, _read_for_numbers)

    def constant(self, tensor: Tensor) -> Tensor | None:
        """The real content of a tensor that depends on no input but for its sizes, nor on what calls leave behind."""
        wanted = self.node_of_tensor(tensor)
        needed = self._needed_with_writes(wanted)
        if not self._can_really or any(node.op == "placeholder" or is_random(node) for node in needed):
            return None
        if any(node in needed and storage_of(one) in self._held for node, one in self._written()):
            return None
        values = self._no_values()
        self._evaluated(needed, [node for node in self.graph.nodes if node in needed][-1], values)
        return values[wanted] if isinstance(values[wanted], Tensor) else None

    def _needed_with_writes(self, wanted: Node) -> set[Node]:
        """The nodes on whose numbers those of a node depend, and those that write into what these share memory with.

        Of ``m = torch.zeros(8)`` and ``m[4:] = 1`` the second writes into a part of the first.
        """
        needed = self.needed_by(wanted)
        while True:
            read = {storage_of(one) for node in needed for one in tensor_leaves(node.meta.get("val"))}
            others = {node for node, one in self._written() if node not in needed and storage_of(one) in read}
            if not others:
                return needed
            needed = needed.union(*map(self.needed_by, others))


_WITHOUT_STATE = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.GroupNorm, nn.ReLU, nn.GELU, nn.SiLU)


class _Values(dict[Node, Any]):
    """The values of nodes on some inputs; of those that were not computed only the form counts, and is there.

    Args:
        given: the inputs by name.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__()
        self.given = given

    def __missing__(self, node: Node) -> Any:
        return tree_map_only(Tensor, _of_form, node.meta["val"])


def _of_form(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=lies_on(tensor))


class _Refusing(TorchDispatchMode):
    """Refuses calls on the parameters and buffers of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held = {id(tensor) for tensor in tensor_names(model).values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(id(tensor) in self._held for tensor in tensor_leaves((args, kwargs))):
            raise TraceError("a method that would be called as a whole uses parameters of the model")
        return func(*args, **(kwargs or {}))


def behind(wanted: Node, read_by: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """A node and those before it that are read, node by node."""
    found, waiting = set[Node](), [wanted]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(read_by(node))
    return found


def _read_for_numbers(node: Node) -> list[Node]:
    """The nodes on whose content a node's value depends; of others it may take the form, as ``zeros_like`` does."""
    if _is_plain(node):
        return []
    name = "" if node.op == "call_module" else op_name(node)
    form = node.args[:1] if name in _LIKE else node.args[1:2] if name in ("to", "type_as") else ()
    return [read for read in node.all_input_nodes if read not in form]


def _read_but_for_sizes(node: Node) -> list[Node]:
    return [] if node.target == "size" else node.all_input_nodes


_LIKE = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_tensor"}


def _is_plain(node: Node) -> bool:
    """Whether a node returns a number, or several, which the run has found already."""
    return "is_number" in node.meta and not tensor_leaves(node.meta["val"])
