"""What rules for known values ask about a graph."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fx_oto.core.fx_utils import op_name
from fx_oto.ops.branches.gone import Gone
from fx_oto.ops.branches.known import Known

__all__ = ["Scope"]


class Scope:
    """A graph, and the values of it that are known so far.

    Args:
        gm: the GraphModule.
        gone: what is gone.
        blocked: nodes that count as unknown.
    """

    def __init__(self, gm: GraphModule, gone: Gone, blocked: Collection[Node]) -> None:
        self.gm, self.gone, self.blocked = gm, gone, blocked
        self.known: dict[Node, Known] = {}

    def of(self, value: Any) -> Known | None:
        """What is known of an argument."""
        return self.known.get(value) if isinstance(value, Node) else None

    def shape(self, node: Node) -> tuple[int, ...]:
        """The shape of a node's value."""
        value: Tensor = node.meta["val"]
        return tuple(value.shape)

    def module(self, node: Node) -> nn.Module:
        """The module that a node calls."""
        return self.gm.get_submodule(str(node.target))

    def operands(self, node: Node) -> list[Node]:
        """The nodes among the arguments of which each is one tensor, each once."""
        return [one for one in node.all_input_nodes if isinstance(one.meta.get("val"), Tensor)]

    def argument(self, node: Node, position: int, name: str) -> Any:
        """An argument, given by position or by name; None where it is not given."""
        return node.args[position] if len(node.args) > position else node.kwargs.get(name)

    def source(self, node: Node) -> Node | None:
        """The first argument, if it is a node."""
        first = self.argument(node, 0, "input")
        return first if isinstance(first, Node) else None

    def run(self, node: Node, tensor: Tensor) -> Any:
        """What a node returns for another tensor in the place of its first argument, and the sizes that were traced."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda one: one.meta.get("val"))
        args = (tensor, *args[1:])
        with torch.no_grad():
            if node.op == "call_module":
                return self.module(node)(tensor)
            if node.op == "call_method":
                return getattr(tensor, str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def name(self, node: Node) -> str:
        """The name of what a node calls, the same where it writes into its first argument: ``add_``, ``iadd``."""
        name = op_name(node)
        name = _IN_PLACE.get(name, name)
        return name if node.op == "call_module" else name.rstrip("_")


_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}
