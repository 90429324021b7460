"""The ATen tape: every ATen call that a GraphModule makes, recorded by running it once on fake tensors.

A fake run costs no arithmetic and no memory for activations. What is recorded is independent of the front
end and of how the user spelled an operation; analyses read the tape and never run the model again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from fx_oto.errors import InputError, RuleError
from fx_oto.framework.context import ExampleInputs
from fx_oto.graph import (
    bare_name,
    one_at_a_time,
    op_name,
    quiet_fakes,
    source_line,
    tensor_leaves,
    tensor_names,
    unfused_attention,
)
from fx_oto.interpreting import PlainInterpreter, run_graph
from fx_oto.keeping import evaluating, unchanged
from fx_oto.modes import by_mode, written_in
from fx_oto.modules import is_opaque
from fx_oto.norms import WholeNorms, holds_norms_over
from fx_oto.provenance.leaves import LeafOp, OpaqueOp, leaf_of
from fx_oto.provenance.misfits import misfit
from fx_oto.provenance.real_values import real_values, writes_into_input
from fx_oto.provenance.recurrence import WholeRecurrence, holds_recurrence, recurrent_macs

__all__ = [
    "OpCall",
    "Tape",
    "fake_like",
    "fake_run",
    "macs_of",
    "record_tape",
    "tensors_in",
]


@lru_cache(maxsize=4096)
def _parameters(func: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((arg.name, arg.default_value) for arg in func._schema.arguments)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested lists and tuples, which is all that ATen's calls take and return."""
    if not isinstance(value, list | tuple):
        return [value] if isinstance(value, Tensor) else []
    return [tensor for part in value for tensor in tensors_in(part)]


@dataclass(frozen=True, slots=True, eq=False)
class OpCall:
    """One ATen call: the operator, its arguments with fake tensors, and its results.

    Attributes:
        node: name of the FX node during which the call was made.
        func: the ``OpOverload``.
        outputs: the tensors it returned, in order.
    """

    node: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        """The operator's name without overload, and for torch's own without namespace: ``"convolution"``."""
        if not hasattr(self.func, "_schema"):
            return str(self.func.__name__)
        return bare_name(str(self.func._schema.name))

    def arg(self, name: str) -> Any:
        """The argument that the operator's schema calls ``name``, or its default."""
        if isinstance(self.func, LeafOp):
            if name in self.func.names:
                return self.args[self.func.names.index(name)]
            raise KeyError(f"{self.name} has no argument, parameter or buffer {name!r}")
        for position, (key, default) in enumerate(_parameters(self.func)):
            if key == name:
                return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)
        raise KeyError(f"{self.func} has no argument {name!r}")

    @property
    def inputs(self) -> list[Tensor]:
        """Every tensor among the arguments."""
        return tensors_in((*self.args, *self.kwargs.values()))

    @property
    def out(self) -> Tensor:
        """The first tensor returned."""
        return self.outputs[0]

    @property
    def mutates(self) -> bool:
        """Whether the call writes into an argument."""
        return hasattr(self.func, "_schema") and bool(self.func._schema.is_mutable)

    @property
    def written(self) -> list[Tensor]:
        """The tensors among the arguments that the call writes into."""
        arguments = self.func._schema.arguments if self.mutates else ()
        return tensors_in([self.arg(arg.name) for arg in arguments if arg.alias_info and arg.alias_info.is_write])


@dataclass(frozen=True, eq=False)
class Tape:
    """What a GraphModule does, below every spelling.

    Attributes:
        steps: for each FX node, in order: its name, the calls made while it ran, and its fake value.
        tensors: the fake stand-in of each parameter and buffer, by name.
        constants: the real buffer behind a fake one, by ``id``.
        text: the graph that it was recorded of.
    """

    provided_by: ClassVar[str] = "fx_oto.trace"

    steps: tuple[tuple[str, tuple[OpCall, ...], Any], ...]
    tensors: dict[str, Tensor]
    constants: dict[int, Tensor]
    text: str = field(default="", repr=False)

    def is_of(self, gm: GraphModule) -> bool:
        """Whether it is what this graph does, which may have been edited by hand since."""
        return self.text == str(gm.graph)

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of one forward pass on the example inputs, as ``fx_oto.cost`` counts them."""
        return _macs_of_all(call for _, calls, _ in self.steps for call in calls)


def macs_of(call: OpCall) -> int:
    """Multiply-adds of one call, after ``torch.utils.flop_counter``; 0 for what it does not count."""
    if isinstance(call.func, LeafOp | OpaqueOp):
        return call.func.macs
    formula = flop_registry.get(call.func._overloadpacket) if hasattr(call.func, "_overloadpacket") else None
    if formula is None:
        return 0
    out = call.out if len(call.outputs) == 1 else call.outputs
    return int(formula(*call.args, **call.kwargs, out_val=out)) // 2


def _macs_of_all(calls: Iterable[OpCall]) -> int:
    """Those of recurrences as well, which the rule of dependency analysis counts gate by gate."""
    return sum(macs_of(call) + recurrent_macs(call.name, call.inputs) for call in calls)


def record_tape(gm: GraphModule, inputs: ExampleInputs) -> Tape:
    """Run ``gm`` in eval mode on fake tensors, record its ATen calls and fill ``node.meta["val"]``.

    Raises:
        InputError: the example inputs do not fit the model; the text names node and source line.
    """
    recorder = _Recorder(gm, {})
    try:
        tensors = fake_run(gm, inputs, recorder.mode, recorder)
    except InputError:
        if recorder.current is None or not is_opaque(recorder.current, gm):
            raise
        recorder = _Recorder(gm, real_values(gm, inputs))  # what it returns depends on the numbers in its inputs
        tensors = fake_run(gm, inputs, recorder.mode, recorder)
    constants = {id(tensors[name]): buffer for name, buffer in gm.named_buffers()}
    return Tape(tuple(recorder.steps), tensors, constants, str(gm.graph))


def fake_run(
    model: nn.Module, inputs: ExampleInputs, mode: AbstractContextManager[Any], recorder: _Recorder | None = None
) -> dict[str, Tensor]:
    """Run a module in eval mode on fake tensors, inside a context such as a dispatch mode.

    Returns:
        The fake stand-in of each parameter and buffer, by name.

    Raises:
        InputError: the example inputs do not fit the model.
    """
    with one_at_a_time, torch.inference_mode(False), unchanged(model):  # inference mode does not take ops apart
        return _fake_run(model, inputs, mode, recorder)


def _fake_run(
    model: nn.Module, inputs: ExampleInputs, mode: AbstractContextManager[Any], recorder: _Recorder | None
) -> dict[str, Tensor]:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    real = tensor_names(model)
    tensors = {name: fake_like(fake, tensor) for name, tensor in real.items()}
    by_real = {id(tensor): tensors[name] for name, tensor in real.items()}
    stand_ins = {f"model.{name}": by_real[id(tensor)] for name, tensor in _every_name(model).items()}
    args, kwargs = tree_map_only(Tensor, lambda t: fake_like(fake, t), (inputs.args, dict(inputs.kwargs)))
    try:
        attention = sdpa_kernel(SDPBackend.MATH) if recorder else nullcontext()  # as products and a softmax
        with (
            quiet_fakes(),
            unfused_attention(),
            evaluating(model),
            attention,
            _whole(recorder),
            torch.no_grad(),
            fake,
            mode,
        ):
            torch.func.functional_call(_Runner(model, recorder), stand_ins, args, kwargs)
    except RuleError:
        raise
    except Exception as error:
        raise _explain(error, recorder, model, inputs) from error
    return tensors


def _whole(recorder: _Recorder | None) -> ExitStack:
    """Record some functions as one call each, whatever torch makes of them."""
    modes = ExitStack()
    if recorder is not None and holds_recurrence(recorder.gm):
        modes.enter_context(WholeRecurrence(recorder.mode.whole))
    if recorder is not None and holds_norms_over(recorder.gm):
        modes.enter_context(WholeNorms(recorder.mode.whole))
    return modes


def _every_name(gm: nn.Module) -> dict[str, Tensor]:
    return dict(gm.named_parameters(remove_duplicate=False)) | dict(gm.named_buffers(remove_duplicate=False))


def fake_like(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """A fake tensor of the same form."""
    if isinstance(tensor, FakeTensor):
        tensor = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    meta = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    return FakeTensor(mode, meta, tensor.device)


class _RecordingMode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.node = ""
        self.calls: list[OpCall] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        restride = func is torch.ops.aten.as_strided_.default and _moves_nothing(*args)
        result = func(*args, **(kwargs or {}))
        if restride:
            return result
        self.record(func, args, kwargs or {}, result)
        return result

    def whole(self, func: Any, args: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """Record one call in the place of those that ``compute`` makes."""
        calls, self.calls = self.calls, []
        result = compute()
        self.calls = calls
        self.record(func, args, {}, result)
        return result

    def leaf(self, op: LeafOp, args: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """Record one call of a leaf module, in the place of those that it makes."""
        calls, self.calls = self.calls, []
        result = compute()
        made, self.calls = self.calls, calls
        read = {id(tensor) for tensor in tensors_in(args)}
        if any(call.mutates and id(call.args[0]) in read for call in made):
            raise writes_into_input(op.__name__, self.node)
        self.record(replace(op, macs=_macs_of_all(made)), args, {}, result)
        return result

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        outputs = (result,) if isinstance(result, Tensor) else tuple(tensors_in(result))
        call = OpCall(self.node, func, args, kwargs, outputs)
        if outputs or call.mutates:
            self.calls.append(call)


def _moves_nothing(tensor: Tensor, size: list[int], stride: list[int], *_: Any) -> bool:
    """Whether a restride only touches dimensions of size 1."""
    fixed = [(before, after) for before, after, n in zip(tensor.stride(), stride, size, strict=False) if n > 1]
    return list(tensor.shape) == list(size) and all(before == after for before, after in fixed)


class _Recorder(PlainInterpreter):
    def __init__(self, gm: GraphModule, opaque: dict[str, tuple[Any, int]]) -> None:
        super().__init__(gm)
        self.gm = gm
        self.opaque = opaque
        self.mode = _RecordingMode()
        self.steps: list[tuple[str, tuple[OpCall, ...], Any]] = []
        self.current: Node | None = None

    def run_node(self, n: Node) -> Any:
        self.current, self.mode.node, self.mode.calls = n, n.name, []
        value = self._opaque_value(n) if n.name in self.opaque else super().run_node(n)
        if op_name(n) == "scaled_dot_product_attention" and value.ndim == 4:
            value = value.transpose(1, 2).contiguous().transpose(1, 2)  # the layout of the fused kernels
        if n.target is by_mode:
            self.mode.record(by_mode, *self.fetch_args_kwargs_from_env(n), value)
        n.meta["val"] = value
        calls = self.mode.calls if n.name in self.opaque else _read(self.mode.calls, _used(n, value))
        self.steps.append((n.name, tuple(calls), value))
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

    def _opaque_value(self, node: Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        fake = next(mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, FakeTensorMode))
        real, macs = self.opaque[node.name]
        value = tree_map_only(Tensor, lambda t: fake_like(fake, t), real)
        module = self.gm.get_submodule(str(node.target)) if node.op == "call_module" else nn.Module()
        func: Any = OpaqueOp(macs)
        read: tuple[Any, ...] = (*tree_leaves((args, kwargs)), *module.parameters())
        if leaf_of(module) is not None:
            op, read = LeafOp.of(module, args, kwargs)
            func = replace(op, macs=macs)
        self.mode.calls = [OpCall(node.name, func, read, {}, tuple(tensor_leaves(value)))]
        return value


def _used(node: Node, value: Any) -> list[Tensor]:
    """The tensors of a node's value that other nodes read."""
    items = [user.args[1] for user in node.users if user.target is operator.getitem]
    places = {item for item in items if isinstance(item, int)}
    if isinstance(value, list | tuple) and len(places) == len(set(map(str, items))) and len(items) == len(node.users):
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


class _Runner(nn.Module):
    def __init__(self, model: nn.Module, recorder: _Recorder | None) -> None:
        super().__init__()
        self.model = model
        self.recorder = recorder

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.recorder is None:
            return self.model(*args, **kwargs)
        return run_graph(self.recorder, args, kwargs)


def _explain(error: Exception, recorder: _Recorder | None, gm: nn.Module, inputs: ExampleInputs) -> InputError:
    node = recorder.current if recorder is not None else None
    at = f" at node {node.name!r} ({source_line(node) or 'no source line'})" if node is not None else ""
    return misfit(error, at, gm, inputs)
