"""Types that follow the model's: found by capturing a copy of it in another precision, and comparing node by node.

Code such as ``mask.to(x.dtype)`` hands torch a plain type, which does not say where it comes from. Written into the
graph as it is, it would stay float32 in a model that is cast to bfloat16 later. A type that was written in the code is
the same in both captures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from fx_oto.capture.sheet import Sheet
from fx_oto.core.context import ExampleInputs
from fx_oto.core.fx_utils import clone_module

__all__ = ["Precision", "limit_of"]

_OTHERS = {torch.float32: torch.float64, torch.float64: torch.float32}
_OTHERS |= {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_LIMITS = ("min", "max", "eps", "tiny", "smallest_normal")
_Path = tuple[Any, ...]


def limit_of(dtype: torch.dtype, name: str) -> float:
    """A number of ``torch.finfo``, as a node of a graph."""
    return float(getattr(torch.finfo(dtype), name))


class Precision:
    """The places of types, and of their limits, in the graphs of some runs of one model.

    Args:
        model: the model.
        inputs: what the runs were given.
        runs: one for each mode.
        again: captures another model on other inputs, in the same way.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: ExampleInputs,
        runs: list[Any],
        again: Callable[[nn.Module, ExampleInputs], list[Any]],
    ) -> None:
        self._found: list[tuple[Sheet, dict[tuple[Node, _Path], tuple[Node, str]]]] = []
        mine = next((one.dtype for one in model.parameters() if one.is_floating_point()), None)
        if mine not in _OTHERS or not any(_names(run.graph, mine) for run in runs):
            return

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(_OTHERS[mine]) if tensor.dtype == mine else tensor

        try:
            others = again(clone_module(model, _once(cast)), inputs.mapped(cast))
        except Exception:  # of whatever kind: that a copy fails says nothing of the model
            return
        for run, other in zip(runs, others, strict=False):
            self._found.append((run, _places(run.graph, other.graph)))

    def rewrite(self) -> bool:
        """Let the graphs ask for the types; returns whether they do."""
        for run, places in self._found:
            for (node, path), (source, limit) in places.items():
                with run.graph.inserting_before(node):
                    asked = run.graph.call_function(getattr, (source, "dtype"))
                    asked.meta["val"] = source.meta["val"].dtype
                    if limit:
                        dtype, asked = asked, run.graph.call_function(limit_of, (asked, limit))
                        asked.meta["val"], asked.meta["is_wrapped"] = limit_of(dtype.meta["val"], limit), True
                node.args, node.kwargs = _put((node.args, dict(node.kwargs)), path, asked)
        return any(places for _, places in self._found)


def _once(cast: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """As parameters, of which nothing but the form is asked; a shared one once."""
    known: dict[int, Tensor] = {}

    def one(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            known[id(tensor)] = without_memory(tensor) if isinstance(tensor, nn.Parameter) else cast(tensor)
        return known[id(tensor)]

    def without_memory(parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(cast(parameter.new_empty(())).expand(parameter.shape), parameter.requires_grad)

    return one


def _names(graph: Graph, dtype: torch.dtype) -> bool:
    """Whether a graph spells the type, or one of its limits."""
    limits = {limit_of(dtype, name) for name in _LIMITS}
    leaves = (leaf for node in graph.nodes for leaf in tree_leaves((node.args, dict(node.kwargs))))
    return any(leaf is dtype or (isinstance(leaf, float) and leaf in limits) for leaf in leaves)


def _places(mine: Graph, theirs: Graph) -> dict[tuple[Node, _Path], tuple[Node, str]]:
    """Where the other capture has another type or limit, and of which node's value it is; empty if more differs.

    Of the values that have those types in the two captures it is one that the node reads, else the nearest before it.
    """
    left, right = list(mine.nodes), list(theirs.nodes)
    twins = dict(zip(left, right, strict=False))
    found: dict[tuple[Node, _Path], tuple[Node, str]] = {}
    latest: dict[Any, Node] = {}  # the nearest value before a node, by its types in the two captures
    for node, twin in twins.items():
        if len(left) != len(right) or (node.op, node.target) != (twin.op, twin.target):
            return {}
        for path, one, other in _leaves((node.args, dict(node.kwargs)), (twin.args, dict(twin.kwargs)), ()):
            if isinstance(one, Node) and twins.get(one) is other:
                continue
            if (types := _types(one, other)) is not None:
                own = {_types_of(read, twins): read for read in reversed(node.all_input_nodes)}
                if (source := (latest | own).get(types[:2])) is not None:
                    found[node, path] = source, types[2]
                    continue
            if isinstance(one, Node) or isinstance(other, Node) or (one != other and type(one) is not float):
                return {}
        latest[_types_of(node, twins)] = node
    return found


def _types(one: Any, other: Any) -> tuple[torch.dtype, torch.dtype, str] | None:
    """Two types that differ, or those that two numbers are the limits of, and the name of the limit."""
    if isinstance(one, torch.dtype) and isinstance(other, torch.dtype):
        return None if one == other else (one, other, "")
    if not (type(one) is type(other) is float) or one == other:
        return None
    for mine, theirs in _OTHERS.items():
        for name in _LIMITS:
            if (limit_of(mine, name), limit_of(theirs, name)) == (one, other):
                return mine, theirs, name
    return None


def _types_of(node: Node, twins: dict[Node, Node]) -> Any:
    """The type of a node's value in each capture; None of what is no tensor."""
    values = node.meta.get("val"), twins[node].meta.get("val")
    return tuple(value.dtype if isinstance(value, Tensor) else None for value in values)


def _leaves(one: Any, other: Any, path: _Path) -> Iterator[tuple[_Path, Any, Any]]:
    """What two arguments are made of, side by side; what is of another shape as a whole."""
    if isinstance(one, slice) and isinstance(other, slice):  # holds no type
        one, other = ((part.start, part.stop, part.step) for part in (one, other))
    if type(one) is type(other) and isinstance(one, tuple | list) and len(one) == len(other):
        for i, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _leaves(left, right, (*path, i))
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key, left in one.items():
            yield from _leaves(left, other[key], (*path, key))
    else:
        yield path, one, other


def _put(value: Any, path: _Path, new: Any) -> Any:
    """The same with something else at a place."""
    if not path:
        return new
    first, *rest = path
    if isinstance(value, dict):
        return {**value, first: _put(value[first], tuple(rest), new)}
    parts = [_put(one, tuple(rest), new) if i == first else one for i, one in enumerate(value)]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
