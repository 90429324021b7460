"""What code returns that cannot be run on fake tensors: it is run on the example inputs themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils.flop_counter import FlopCounterMode

from fx_oto.analysis.flops import FUSED
from fx_oto.core.context import ExampleInputs
from fx_oto.core.errors import RuleError
from fx_oto.core.fx_utils import op_name, tensor_leaves
from fx_oto.core.interpreter import PlainInterpreter, run_graph
from fx_oto.core.preserve import unwritten
from fx_oto.nn.leaves import leaf_of
from fx_oto.nn.modules import is_opaque

__all__ = ["real_values", "writes_into_input"]


def real_values(gm: GraphModule, inputs: ExampleInputs) -> dict[str, tuple[Any, int]]:
    """What opaque code returns on the example inputs themselves, and its multiply-adds, by node."""
    found: dict[str, tuple[Any, int]] = {}

    class Watch(PlainInterpreter):
        def run_node(self, n: Node) -> Any:
            if not is_opaque(n, gm) and not n.meta.get("asks_values"):
                return super().run_node(n)
            given = tensor_leaves(self.fetch_args_kwargs_from_env(n))
            before = _versions(given)
            with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
                value = super().run_node(n)
            is_leaf = n.op == "call_module" and leaf_of(gm.get_submodule(str(n.target))) is not None
            if is_leaf and before != _versions(given):
                raise writes_into_input(op_name(n), n.name)
            found[n.name] = value, counter.get_total_flops() // 2
            return value

    with torch.inference_mode(False), unwritten(gm):
        copied = inputs.copied()
        run_graph(Watch(gm), copied.args, copied.kwargs)
    return found


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    """How often each was written into; those that were made in inference mode do not know."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def writes_into_input(kind: str, node: str) -> RuleError:
    """The error for a leaf that changes what it is given, at a node."""
    return RuleError(
        f"{kind} is registered as a leaf, but in evaluation mode it writes into what it is given, at node {node!r}: "
        "let it return a new tensor, or do not register it"
    )
