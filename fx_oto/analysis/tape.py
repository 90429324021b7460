"""The ATen tape: every ATen call that a model makes.

What it holds is independent of how the user spelled an operation; analyses read it and never run the model again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from fx_oto.analysis.result_forms import tensors_in
from fx_oto.core.fx_utils import bare_name
from fx_oto.nn.leaves import LeafOp, OpaqueOp
from fx_oto.nn.recurrence import recurrent_macs

__all__ = ["DIMS", "FUSED", "GROUPED", "OpCall", "Tape", "macs_of_all"]

# How operators call what says which dimensions are meant.
DIMS = {"dim", "dims", "dimension", "dim0", "dim1"}


# Products of rows with one of several matrices; the second is an op of transformers.
GROUPED = ("_grouped_mm", "grouped_mm_fallback")


@lru_cache(maxsize=4096)
def _parameters(func: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((arg.name, arg.default_value) for arg in func._schema.arguments)


@dataclass(frozen=True, eq=False)
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

    @cached_property
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

    @cached_property
    def given(self) -> dict[str, Any]:
        """The arguments by the names of the operator's schema, or their defaults; none of what has no schema."""
        names = [key for key, _ in _parameters(self.func)] if hasattr(self.func, "_schema") else []
        return {name: self.arg(name) for name in names}

    @cached_property
    def numbers(self) -> list[Any]:
        """What the arguments hold, but for those that say which dimensions are meant."""
        names = [key for key, _ in _parameters(self.func)] if hasattr(self.func, "_schema") else []
        given = dict(zip(names or range(len(self.args)), self.args, strict=False))
        return tree_leaves([value for key, value in (given | self.kwargs).items() if key not in DIMS])

    @cached_property
    def inputs(self) -> list[Tensor]:
        """Every tensor among the arguments."""
        return tensors_in((*self.args, *self.kwargs.values()))

    @cached_property
    def macs(self) -> int:
        """Multiply-adds, after ``torch.utils.flop_counter``; 0 for what it does not count."""
        return _macs(self)

    @property
    def out(self) -> Tensor:
        """The first tensor returned."""
        return self.outputs[0]

    @property
    def may_draw(self) -> bool:
        """Whether the call draws random numbers, or nobody knows: of a user's own op, and of a module of theirs."""
        if getattr(self.func, "namespace", "") not in ("aten", "prims"):
            return True
        if torch.Tag.nondeterministic_seeded not in self.func.tags:
            return False
        return "dropout_p" not in (name for name, _ in _parameters(self.func)) or self.arg("dropout_p") != 0

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
        constants: the real tensor behind a fake buffer, or one that is written out in numbers, by ``id``.
        text: the graph that it was recorded of.
        counted: multiply-adds of each step on the example inputs, where it was recorded on others.
    """

    provided_by: ClassVar[str] = "fx_oto.trace"

    steps: tuple[tuple[str, tuple[OpCall, ...], Any], ...]
    tensors: dict[str, Tensor]
    constants: dict[int, Tensor]
    text: str = field(default="", repr=False)
    counted: Mapping[str, int] | None = field(default=None, repr=False)

    def is_of(self, gm: GraphModule) -> bool:
        """Whether it is what this graph does, which may have been edited by hand since."""
        return self.text == str(gm.graph)

    @cached_property
    def calls(self) -> tuple[OpCall, ...]:
        """The calls of all steps."""
        return tuple(call for _, calls, _ in self.steps for call in calls)

    def made_at(self, step: str) -> tuple[OpCall, ...]:
        """The calls of one step."""
        return self._calls_by_step[step]

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of one forward pass on the example inputs, as ``fx_oto.cost`` counts them."""
        if self.counted is not None:
            return sum(self.counted.values())
        return macs_of_all(self.calls)

    @cached_property
    def _calls_by_step(self) -> dict[str, tuple[OpCall, ...]]:
        return {name: calls for name, calls, _ in self.steps}

    @cached_property
    def _macs_by_step(self) -> dict[str, int]:
        return {name: macs_of_all(calls) for name, calls, _ in self.steps}

    def counted_as(self, other: Tape) -> Tape:
        """The same, with the multiply-adds of another tape of the graph, which was recorded on the example inputs."""
        return replace(self, counted=other._macs_by_step)

    def on_example(self, step: str, macs: int) -> int:
        """Multiply-adds that a call of a step makes, as many as it makes on the example inputs."""
        if self.counted is None or not macs:
            return macs
        return macs * self.counted[step] // self._macs_by_step[step]


def _macs(call: OpCall) -> int:
    if isinstance(call.func, LeafOp | OpaqueOp):
        return call.func.macs
    formula = flop_registry.get(call.func._overloadpacket) if hasattr(call.func, "_overloadpacket") else None
    if formula is None and call.name in GROUPED:
        left, right = call.args[:2]
        return _grouped_flops(left.shape, right.shape) // 2
    if formula is None:
        return 0
    out = call.out if len(call.outputs) == 1 else call.outputs
    return int(formula(*call.args, **call.kwargs, out_val=out)) // 2


def macs_of_all(calls: Iterable[OpCall]) -> int:
    """Those of recurrences as well, which the rule of dependency analysis counts gate by gate."""
    return sum(call.macs + recurrent_macs(call.name, call.inputs) for call in calls)


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of the two products, from the shapes ``(batch, heads, length, width)``."""
    return int(sdpa_flop_count(query, key, value))


def _recurrent_flops(source: Any, *arguments: Any, **_: Any) -> int:
    """Of the matrices, each applied at every step of every sequence: two of them, or those of a list."""
    weights = arguments[:2] if isinstance(arguments[0], torch.Size) else arguments[0]
    matrices = sum(math.prod(weight) for weight in weights if len(weight) == 2)
    return int(2 * math.prod(source[:-1]) * matrices)


def _grouped_flops(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Of rows ``(n, k)``, each with one of the matrices ``(e, k, m)``."""
    return int(2 * math.prod(left) * right[-1])


# What torch's own counter of floating-point operations leaves out.
FUSED = {
    torch.ops.aten._grouped_mm: _grouped_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops,
    torch.ops.aten._cudnn_rnn: _recurrent_flops,
}
