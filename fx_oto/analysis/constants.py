"""Values that are the same in every call of a model: buffers, and what is computed from them and from sizes alone.

Their real content is computed when a rule asks for it, by making the recorded calls once more on real tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map_only

from fx_oto.analysis.result_forms import tensors_in
from fx_oto.analysis.tape import OpCall, Tape
from fx_oto.analysis.values import Values, storage_of
from fx_oto.core.fx_utils import op_name
from fx_oto.nn.modes import called

__all__ = ["Constants"]

_PLAIN = (torch.device, torch.dtype, torch.layout, torch.memory_format, str)


class Constants:
    """What is known of the values on a tape before any input is.

    Args:
        tape: the recorded calls.
        values: what is known of its tensors; here, by which calls they were made.
        nodes: the FX nodes, by name.
        is_fixed: whether a dimension of a value has the same size whatever the inputs are.

    Attributes:
        tables: parameters that are as good as buffers, by ``id``; see ``untrained_tables``.
    """

    def __init__(
        self, tape: Tape, values: Values, nodes: dict[str, Node], is_fixed: Callable[[Tensor, int], bool]
    ) -> None:
        self._tape, self._values, self._is_fixed = tape, values, is_fixed
        self._nodes, self._unjudged = nodes, iter(nodes.values())
        self._judged: dict[str, bool] = {}
        self._read: dict[int, Tensor] = {}
        self.tables: set[int] = set()

    def read_of(self, buffers: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copies of those buffers whose content was asked for."""
        return {name: buffer.clone() for name, buffer in buffers if id(buffer) in self._read}

    def content(self, value: Any) -> Tensor | None:
        """The real content of a tensor, None where it is not constant or not a tensor."""
        if not isinstance(value, Tensor):
            return None
        record = self._values[value]
        if not record.is_judged:
            record.content, record.is_judged = self._find(value), True
        return record.content

    @cached_property
    def _written(self) -> set[int]:
        """Storages that some call writes into: of a buffer, the next call of the model may find another content."""
        return {storage_of(tensor) for call in self._tape.calls for tensor in call.written}

    def _find(self, value: Tensor) -> Tensor | None:
        if value.requires_grad or storage_of(value) in self._written:
            return None
        if not isinstance(value, FakeTensor) or id(value) in self._tape.constants:
            found = self._tape.constants.get(id(value), value)
            self._read[id(found)] = found
            return found
        call = self._values[value].made_by
        known = call is not None and (self.without_inputs(call.node) or self._is_literal(call))
        if call is None or not known or not _repeatable(call.func):
            return None
        real = {id(tensor): self.content(tensor) for tensor in call.inputs}
        if any(tensor is None for tensor in real.values()):
            return None
        args, kwargs = tree_map_only(Tensor, lambda t: real[id(t)], (call.args, call.kwargs))
        try:
            with torch.no_grad():
                results = tensors_in([call.func(*args, **kwargs)])
        except NotImplementedError:  # a kernel of the user's for another device
            return None
        return next(result for out, result in zip(call.outputs, results, strict=True) if out is value)

    def is_table(self, value: Tensor) -> bool:
        """Whether a tensor is computed of buffers and of sizes alone, and so the same on inputs of the same sizes."""
        record = self._values[value]
        if record.is_table is None:
            record.is_table = self._is_table(value)
        return record.is_table

    def _is_table(self, value: Tensor) -> bool:
        if value.requires_grad or storage_of(value) in self._written:
            return False
        if not isinstance(value, FakeTensor) or id(value) in self._tape.constants or id(value) in self.tables:
            return True
        call = self._values[value].made_by
        if call is None or not _repeatable(call.func) or not all(map(self.is_table, call.inputs)):
            return False
        node = self._nodes[call.node]
        read = [one for one in node.all_input_nodes if not tensors_in([one.meta["val"]])]
        return node.op in ("call_function", "call_method") and all(map(self._is_of_sizes, read))

    def _is_of_sizes(self, node: Node) -> bool:
        """Whether a number is made of sizes alone."""
        if node.op not in ("call_function", "call_method"):
            return False
        if isinstance(node.meta["val"], _PLAIN) or _sizes_read(node) is not None:
            return True
        return all(not tensors_in([one.meta["val"]]) and self._is_of_sizes(one) for one in node.all_input_nodes)

    def _is_literal(self, call: OpCall) -> bool:
        """Whether a call makes a tensor of numbers that code writes out, as in ``x[:, [3, 1]]`` and ``x[:, 3] = 0``."""
        name, args = called(self._nodes[call.node])
        if call.name != "lift_fresh" or name not in ("getitem", "setitem"):
            return False
        entries = args[1] if isinstance(args[1], tuple) else [args[1]]
        written = [one for one in entries if isinstance(one, list | tuple | range)] if call.out.ndim else list(args[2:])
        read = [one for one in tree_leaves(written) if isinstance(one, Node)]
        return bool(written) and all(self.without_inputs(one.name) for one in read)

    def without_inputs(self, name: str) -> bool:
        """Whether a node reads nothing but constants and sizes that are fixed; nodes are judged in order, each once."""
        while name not in self._judged:
            node = next(self._unjudged)
            self._judged[node.name] = self._judge(node)
        return self._judged[name]

    def _judge(self, node: Node) -> bool:
        value = node.meta["val"]
        if isinstance(value, _PLAIN) or (node.op == "get_attr" and not isinstance(value, FakeTensor)):
            return True
        if node.op == "get_attr":
            return id(value) in self._tape.constants
        if (sizes := _sizes_read(node)) is not None:
            source, dims = sizes
            return all(self._is_fixed(source.meta["val"], dim) for dim in dims)
        plain = node.op in ("call_function", "call_method")
        return plain and all(self._judged[read.name] for read in node.all_input_nodes)


def _sizes_read(node: Node) -> tuple[Node, list[int]] | None:
    """The tensor and its dimensions whose sizes a node returns, None where that is not all it does."""
    if not node.op.startswith("call_") or not node.args or not isinstance(source := node.args[0], Node):
        return None
    name, where = op_name(node), node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if isinstance(source.meta["val"], Tensor):
        dims = list(range(source.meta["val"].ndim))
        if name in ("numel", "nelement", "len") or (name == "getattr" and where == "shape"):
            return source, dims
        if name in ("size", "sym_size") and (where is None or isinstance(where, int)):
            return source, dims if where is None else [dims[where]]
    elif name == "getitem" and isinstance(where, int | slice) and (whole := _sizes_read(source)):
        part = whole[1][where]
        return whole[0], part if isinstance(part, list) else [part]
    return None


def _repeatable(func: Any) -> bool:
    """Whether an operator returns the same whenever it is given the same."""
    if not isinstance(func, torch._ops.OpOverload) or func._schema.is_mutable:
        return False
    return torch.Tag.nondeterministic_seeded not in func.tags and "empty" not in func._schema.name
