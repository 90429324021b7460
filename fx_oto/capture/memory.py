"""What a node of a graph writes into: found by running the graph on fake tensors, not by the names of ops."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from fx_oto.analysis.recording import record_tape
from fx_oto.analysis.tape import OpCall
from fx_oto.analysis.values import storage_of
from fx_oto.core.context import ExampleInputs
from fx_oto.core.fx_utils import op_name, tensor_leaves
from fx_oto.nn.leaves import OpaqueOp
from fx_oto.nn.modes import says_in_place
from fx_oto.nn.modules import is_opaque

__all__ = ["Memory"]


@dataclass
class _Places:
    """Where values lie, as keys of memory: what outlives a call, what each node returns, and what it writes."""

    held: set[int]
    of: dict[Node, set[int]] = field(default_factory=dict)
    written: dict[Node, set[int]] = field(default_factory=dict)


class Memory:
    """Where the values of a model's graphs lie.

    The graphs are run in evaluation, in which more memory is shared: there dropout returns what it is given.

    Args:
        model: holds what the graphs refer to.
        inputs: example inputs.
    """

    def __init__(self, model: nn.Module, inputs: ExampleInputs) -> None:
        self._model, self._inputs = model, inputs
        self._graphs: dict[Graph, _Places] = {}

    def reaches(self, node: Node, alone: Collection[Node]) -> bool:
        """Whether a node may write into a parameter, a buffer, or the value of a node that is not in ``alone``.

        Raises:
            InputError: the graph does not run on the example inputs.
        """
        if node.graph not in self._graphs:
            self._graphs[node.graph] = self._run(node.graph)
        places = self._graphs[node.graph]
        waiting, seen = [(node, places.written[node])], set()
        while waiting:
            reader, written = waiting.pop()
            if written & places.held:
                return True
            for source in reader.all_input_nodes:
                if source in seen or not written & places.of[source]:
                    continue
                if source not in alone:
                    return True
                seen.add(source)
                waiting.append((source, places.of[source]))
        return False

    def _run(self, graph: Graph) -> _Places:
        gm = GraphModule(self._model, graph)
        tape = record_tape(gm, self._inputs)
        places = _Places(_storages(list(tape.tensors.values())))
        for node, (_, calls, value) in zip(graph.nodes, tape.steps, strict=True):
            places.of[node] = _storages(value)
            if is_opaque(node, gm) or _may_alias(node):
                places.of[node].update(*(places.of[source] for source in node.all_input_nodes))
            if any(isinstance(call.func, OpaqueOp) for call in calls):
                places.of[node] |= _storages([call.inputs for call in calls])
            places.written[node] = _storages([call.written + _learnt(call) for call in calls])
            if says_in_place(node) and node.all_input_nodes:
                places.written[node] |= places.of[node.all_input_nodes[0]]
        return places


def _learnt(call: OpCall) -> list[Any]:
    """The running statistics that a batch norm writes, of which ATen does not say so."""
    if "batch_norm" not in call.name or not call.given.get("training"):
        return []
    return [call.given.get(name) for name in ("running_mean", "running_var")]


def _storages(value: Any) -> set[int]:
    return {storage_of(tensor) for tensor in tensor_leaves(value)}


def _may_alias(node: Node) -> bool:
    """Whether ATen says that what is returned may be a view, as that of ``reshape`` is on some inputs only."""
    packet = getattr(torch.ops.aten, op_name(node).lower(), None)
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()] if packet else ()
    found = [returned.alias_info for schema in schemas for returned in schema.returns]
    return any(info is not None and not info.is_write for info in found)
