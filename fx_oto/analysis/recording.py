"""Records the ATen tape: a model runs once on fake tensors, which costs no arithmetic and no memory for activations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from fx_oto.analysis.fakes import Fakes, StandIns, ValuesAskedError, asks_values
from fx_oto.analysis.misfits import misfit
from fx_oto.analysis.result_forms import tensors_in
from fx_oto.analysis.tape import FUSED, OpCall, Tape, macs_of_all
from fx_oto.core.context import ExampleInputs
from fx_oto.core.errors import InputError, RuleError
from fx_oto.core.fx_utils import (
    one_at_a_time,
    op_name,
    quiet_fakes,
    source_line,
    tensor_leaves,
    tensor_names,
    unfused_attention,
)
from fx_oto.core.interpreter import PlainInterpreter, run_graph
from fx_oto.core.layouts import is_sparse
from fx_oto.core.preserve import evaluating, unchanged, uncompiled, unwritten
from fx_oto.nn.leaves import LeafOp, OpaqueOp, leaf_of
from fx_oto.nn.modes import by_mode, written_in
from fx_oto.nn.modules import is_opaque
from fx_oto.nn.norms import WholeNorms
from fx_oto.nn.products import WholeProducts
from fx_oto.nn.recurrence import WholeRecurrence, packed_call, takes_packed

__all__ = ["Recording", "fake_run", "laid_out", "one_by_one", "record_tape", "tape_of_steps", "whole_calls"]


_PACKING = ("_pack_padded_sequence", "_pad_packed_sequence")


class Recording(Fakes):
    """Fake tensors whose calls are written down.

    Attributes:
        node: name of the FX node that runs.
        calls: those that were made since the list was last replaced.
        above: is handed each call, where somebody wants to see it first.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__(named)
        self.node = ""
        self.calls: list[OpCall] = []
        self.above: Callable[[Any, Any, Any], Any] | None = None
        self._asking: tuple[Any, Any, Any] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.above is None or func is torch.ops.prim.device.default:
            return super().__torch_dispatch__(func, types, args, kwargs)
        return self.above(func, args, kwargs or {})

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The base class's, written down."""
        restride = func is torch.ops.aten.as_strided_.default and _moves_nothing(*args)
        try:
            result = super().call(func, args, kwargs)
        except ValuesAskedError:
            self._asking = func, args, kwargs
            raise
        if not restride and func is not torch.ops.prim.device.default:
            self.record(func, args, kwargs, result)
        return result

    def whole(self, func: Any, args: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """Record one call in the place of those that ``compute`` makes."""
        result, _ = self._apart(compute)
        self.record(func, self.faked(args), {}, result)
        return result

    def leaf(self, op: LeafOp, args: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """Record one call of a leaf module, in the place of those that it makes."""
        args = self.faked(args)
        result, made = self._apart(compute)
        read = {id(tensor) for tensor in tensors_in(args)}
        if any(call.mutates and id(call.args[0]) in read for call in made):
            raise _writes_into_input(op.__name__, self.node)
        self.record(replace(op, macs=macs_of_all(made)), args, {}, result)
        return result

    def _apart(self, compute: Callable[[], Any]) -> tuple[Any, list[OpCall]]:
        """What a computation returns, and the calls that it makes, which are not among the recorded ones."""
        calls, self.calls = self.calls, []
        result = compute()
        made, self.calls = self.calls, calls
        return result, made

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Write a call down."""
        outputs = (result,) if isinstance(result, Tensor) else tuple(tensors_in(result))
        call = OpCall(self.node, func, args, kwargs, outputs)
        if outputs or call.mutates:
            self.calls.append(call)

    def _told(self, node: Node, module: nn.Module | None, given: tuple[Any, ...], value: Any) -> bool:
        """Record a call of which numbers only tell how long the result is, which is there already."""
        self.calls = []
        if takes_packed(module, given):
            func, args = packed_call(self.call, module, *given)
            self.record(func, self.faked(args), {}, (value[0].data, value[1]))
        elif module is None and op_name(node) in _PACKING:
            self.record(getattr(torch.ops.aten, op_name(node)).default, given, {}, value)
        elif module is None and op_name(node) == "getitem":
            self._index(given, value)
        return bool(self.calls)

    def _index(self, given: tuple[Any, ...], value: Any) -> None:
        """``x[mask]``."""
        self._asking = None
        try:
            operator.getitem(*given)
        except ValuesAskedError:
            if self._asking is not None and self._asking[0] is torch.ops.aten.index.Tensor:
                self.record(*self._asking, value)
                return
        self.calls = []

    def opaque(self, node: Node, module: nn.Module | None, given: tuple[Any, Any], real: Any, macs: int) -> Any:
        """What a node returns that was run on real tensors, recorded as one call of which nothing is known.

        Args:
            node: the node.
            module: what it calls, if it calls a module.
            given: its arguments, on fake tensors.
            real: what it returned.
            macs: multiply-adds that it made.
        """
        # What nothing was selected for on the example inputs has some rows on others, and only these have labels.
        shown = real if module is not None else tree_map_only(Tensor, _some_rows, real)
        value = tree_map_only(Tensor, lambda tensor: self.like(tensor, tensor.device), shown)
        if not given[1] and self._told(node, module, self.faked(given[0]), value):
            return value
        func: Any = OpaqueOp(macs)
        read: tuple[Any, ...] = (*tree_leaves(given), *(module.parameters() if module is not None else ()))
        if module is not None and leaf_of(module) is not None:
            op, read = LeafOp.of(module, *given)
            func = replace(op, macs=macs)
        self.calls = [OpCall(node.name, func, self.faked(read), {}, tuple(tensor_leaves(value)))]
        return value


def _some_rows(tensor: Tensor) -> Tensor:
    """A tensor of rows, some of them if there are none."""
    if tensor.numel() or is_sparse(tensor) or not tensor.ndim or tensor.shape[0]:
        return tensor
    return tensor.new_empty((_SOME, *tensor.shape[1:]))


_SOME = 3


def _moves_nothing(tensor: Tensor, size: list[int], stride: list[int], *_: Any) -> bool:
    """Whether a restride only touches dimensions of size 1."""
    fixed = [(before, after) for before, after, n in zip(tensor.stride(), stride, size, strict=False) if n > 1]
    return list(tensor.shape) == list(size) and all(before == after for before, after in fixed)


@contextmanager
def one_by_one() -> Iterator[None]:
    """Let torch make the calls that rules know: attention as products and a softmax, norms and layers one at a time."""
    with quiet_fakes(), uncompiled(), unfused_attention(), sdpa_kernel(SDPBackend.MATH):
        yield


def record_tape(gm: GraphModule, inputs: ExampleInputs) -> Tape:
    """Run ``gm`` in eval mode on fake tensors, record its ATen calls and fill ``node.meta["val"]``.

    Raises:
        InputError: the example inputs do not fit the model; the text names node and source line.
    """
    really: dict[str, tuple[Any, int]] = {}
    if any(node.meta.get("asks_values") for node in gm.graph.nodes):
        with suppress(Exception):  # as of a size that the model does not take, which is told below
            really = _real_values(gm, inputs)
    while True:
        recorder = _Recorder(gm, really)
        try:
            with whole_calls(recorder.mode):
                fake_run(gm, inputs, recorder=recorder)
        except InputError as error:
            node = recorder.current
            if node is None or node.name in really:
                raise
            if not (node.meta.get("asks_values") or is_opaque(node, gm) or asks_values(error.__cause__)):
                raise
            for one in _alike(gm, node):
                one.meta["asks_values"] = True  # what it returns depends on the numbers in its inputs
            try:
                really = _real_values(gm, inputs)
            except RuleError:
                raise
            except Exception as refusal:  # such as of inputs of another type
                raise error from refusal
        else:
            return tape_of_steps(gm, recorder.mode, recorder.steps)


def _alike(gm: GraphModule, node: Node) -> list[Node]:
    """The nodes that call the same function, or a module of the same class."""

    def what(one: Node) -> Any:
        return type(gm.get_submodule(str(one.target))) if one.op == "call_module" else (one.op, one.target)

    return [one for one in gm.graph.nodes if one.op.startswith("call_") and what(one) == what(node)]


Steps = Iterable[tuple[Node, list[OpCall], Any]]


def tape_of_steps(gm: GraphModule, mode: Recording, steps: Steps) -> Tape:
    """The tape of a graph whose nodes have been run.

    Args:
        gm: the GraphModule.
        mode: what recorded the calls.
        steps: the graph's nodes in order, each with the calls made while it ran and its value.
    """
    read = tuple(
        (node.name, tuple(calls if node.meta.get("asks_values") else _read(calls, _used(node, value))), value)
        for node, calls, value in steps
    )
    constants = mode.literals | {id(mode.of(buffer)): buffer for buffer in gm.buffers()}
    tensors: dict[str, Tensor] = {name: mode.of(tensor) for name, tensor in tensor_names(gm).items()}
    return Tape(read, tensors, constants, str(gm.graph))


def fake_run(
    model: nn.Module,
    inputs: ExampleInputs,
    inside: AbstractContextManager[Any] | None = None,
    recorder: _Recorder | None = None,
) -> None:
    """Run a module in eval mode on fake tensors.

    Args:
        model: the module.
        inputs: what it is given.
        inside: a context for the run, such as a dispatch mode that counts.
        recorder: runs its graph in the place of the module, and writes down the calls.

    Raises:
        InputError: the example inputs do not fit the model.
    """
    fakes = recorder.mode if recorder is not None else Fakes({})
    args, kwargs = tree_map_only(Tensor, fakes.of, (inputs.args, dict(inputs.kwargs)))
    attention = one_by_one() if recorder is not None else unfused_attention()
    try:
        with (
            one_at_a_time,
            torch.inference_mode(False),  # inference mode does not take ops apart
            unchanged(model),
            evaluating(model),
            quiet_fakes(),
            attention,
            torch.no_grad(),
            fakes,
            inside or nullcontext(),
            StandIns(fakes),
        ):
            if recorder is None:
                model(*args, **kwargs)
            else:
                run_graph(recorder, args, kwargs)
    except RuleError:
        raise
    except Exception as error:
        raise _explain(error, recorder, model, inputs) from error


class _Recorder(PlainInterpreter):
    def __init__(self, gm: GraphModule, opaque: dict[str, tuple[Any, int]]) -> None:
        super().__init__(gm)
        self.gm = gm
        self.opaque = opaque
        self.mode = Recording(tensor_names(gm))
        self.steps: list[tuple[Node, list[OpCall], Any]] = []
        self.current: Node | None = None

    def run_node(self, n: Node) -> Any:
        self.current, self.mode.node, self.mode.calls = n, n.name, []
        given = self.fetch_args_kwargs_from_env(n)
        if n.name in self.opaque:
            module = self.gm.get_submodule(str(n.target)) if n.op == "call_module" else None
            value = self.mode.opaque(n, module, given, *self.opaque[n.name])
        else:
            value = laid_out(n, self.mode.faked(super().run_node(n)))
        if n.target is by_mode:
            mode, *sides = given[0]  # of any structure, such as dictionaries, of which a call knows nothing
            self.mode.record(by_mode, (mode, *map(tensor_leaves, sides)), {}, tensor_leaves(value))
        n.meta["val"] = value
        self.steps.append((n, self.mode.calls, value))
        return value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is written_in:  # in training only, but what it writes must fit all the same
            args = (args[0], args[0], *args[2:])
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The base class's; of a leaf, one call is recorded."""
        module = self.fetch_attr(target)
        if leaf_of(module) is None:
            return super().call_module(target, args, kwargs)
        return self.mode.leaf(*LeafOp.of(module, args, kwargs), lambda: module(*args, **kwargs))


@contextmanager
def whole_calls(mode: Recording) -> Iterator[None]:
    """Record recurrence, norms over an original count, and padded products, as one call each."""
    with WholeRecurrence(mode.whole), WholeNorms(mode.whole), WholeProducts(mode.whole):
        yield


def laid_out(node: Node, value: Any) -> Any:
    """A node's value; of attention, in the layout of the fused kernels."""
    if op_name(node) == "scaled_dot_product_attention" and value.ndim == 4:
        return value.transpose(1, 2).contiguous().transpose(1, 2)
    return value


def _used(node: Node, value: Any) -> list[Tensor]:
    """The tensors of a node's value that other nodes read; where none does, all, for it is called all the same."""
    items = [user.args[1] for user in node.users if user.target is operator.getitem]
    places = {item for item in items if isinstance(item, int)}
    told = items and len(items) == len(node.users) and len(places) == len(set(map(str, items)))
    if told and isinstance(value, list | tuple):
        value = [value[place] for place in places]
    return tensor_leaves(value)


def _read(calls: list[OpCall], used: list[Tensor]) -> list[OpCall]:
    """The calls that contribute to what is used, or that write into something."""
    live, kept = {id(tensor) for tensor in used}, []
    for call in reversed(calls):
        if call.mutates or any(id(out) in live for out in call.outputs):
            kept.append(call)
            live.update(id(tensor) for tensor in call.inputs)
    return kept[::-1]


def _explain(error: Exception, recorder: _Recorder | None, gm: nn.Module, inputs: ExampleInputs) -> InputError:
    node = recorder.current if recorder is not None else None
    at = f" at node {node.name!r} ({source_line(node) or 'no source line'})" if node is not None else ""
    return misfit(error, at, gm, inputs)


def _real_values(gm: GraphModule, inputs: ExampleInputs) -> dict[str, tuple[Any, int]]:
    """What code that asks for numbers returns on the example inputs themselves, and its multiply-adds, by node."""
    found: dict[str, tuple[Any, int]] = {}

    class Watch(PlainInterpreter):
        def run_node(self, n: Node) -> Any:
            if not n.meta.get("asks_values"):
                return super().run_node(n)
            given = tensor_leaves(self.fetch_args_kwargs_from_env(n))
            before = _versions(given)
            with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
                value = super().run_node(n)
            is_leaf = n.op == "call_module" and leaf_of(gm.get_submodule(str(n.target))) is not None
            if is_leaf and before != _versions(given):
                raise _writes_into_input(op_name(n), n.name)
            found[n.name] = value, counter.get_total_flops() // 2
            return value

    with torch.inference_mode(False), unwritten(gm):
        copied = inputs.copied()
        run_graph(Watch(gm), copied.args, copied.kwargs)
    return found


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    """How often each was written into; those that were made in inference mode do not know."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def _writes_into_input(kind: str, node: str) -> RuleError:
    """The error for a leaf that changes what it is given, at a node."""
    return RuleError(
        f"{kind} is registered as a leaf, but in evaluation mode it writes into what it is given, at node {node!r}: "
        "let it return a new tensor, or do not register it"
    )
