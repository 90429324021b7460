"""What the nodes of a graph return, and which are not the same each time."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from fx_oto.core.context import ExampleInputs
from fx_oto.core.differences import relative_error
from fx_oto.core.fx_utils import described, op_name
from fx_oto.core.interpreter import PlainInterpreter, run_graph
from fx_oto.core.preserve import unwritten

__all__ = ["at_random", "values_of"]

_UNWRITTEN = ("new", "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "resize")  # any numbers


class _Keeper(PlainInterpreter):
    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.kept[n.name] = value.clone()
        return value


def values_of(gm: GraphModule, inputs: ExampleInputs) -> dict[str, Tensor]:
    """What each node returns that is a tensor, in evaluation; the graph is left as it was."""
    keeper, inputs = _Keeper(gm), inputs.copied()
    with unwritten(gm):
        run_graph(keeper, inputs.args, inputs.kwargs)
    return keeper.kept


def at_random(gm: GraphModule, inputs: ExampleInputs, error: float) -> str:
    """What an error says of a graph that does not return the same twice: the first node that does not."""
    first, second = values_of(gm, inputs), values_of(gm, inputs)
    written = (n for n in gm.graph.nodes if n.name in first and op_name(n).strip("_") not in _UNWRITTEN)
    differ = (n for n in written if relative_error(first[n.name], second[n.name]))
    where = next((f", first at {described(node)}" for node in differ), "")
    return (
        "the group-sparse model does not return the same twice, in evaluation: its outputs differ by "
        f"{error:.1e}{where}, so nothing can be compared with them. Nothing was changed. Let the model draw random "
        "numbers only in training, or take them as an input; a seed is not enough, for with fewer channels fewer "
        "numbers are drawn"
    )
