"""Which sizes of its inputs a graph takes: found by capturing the model a second time, at others.

Code in C, such as ``range`` or ``math.sqrt``, is blind to what a number remembers, and hands out plain numbers. Where a
capture at another size is the same, node by node, the graph holds for that size as well. A number that differs, but is in
both captures what code was handed for the same remembered number, is computed in the graph from then on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map_only

from fx_oto.capture.arguments import Arguments
from fx_oto.capture.numbers import Float, Int, Origin
from fx_oto.capture.run import CaptureRun
from fx_oto.framework.context import ExampleInputs
from fx_oto.graph import source_line

__all__ = ["Difference", "Group", "explain_numbers", "groups_of", "resized"]

_FUNCTIONS: tuple[Callable[[Any], Any], ...] = (math.sqrt, math.log, math.log2, math.log10, math.exp, math.floor, math.ceil)


@dataclass(frozen=True)
class Group:
    """Dimensions of the inputs that have one size, and are changed together.

    Attributes:
        dims: of each the number of the tensor among the inputs and the dimension.
        size: theirs.
        is_batch: whether it is the first dimension of the first input.
    """

    dims: tuple[tuple[int, int], ...]
    size: int
    is_batch: bool = False

    def others(self) -> tuple[int, ...]:
        """Sizes to try instead, the likeliest to be taken first."""
        if self.size == 1:
            return (2, 3)
        near, far = (self.size + 1, self.size + 2), (2 * self.size, 3 * self.size)
        return (*near, *far) if self.is_batch else (*far, *near)

    def apart(self) -> list[Group]:
        """Each dimension alone."""
        return [Group((dim,), self.size) for dim in self.dims] if len(self.dims) > 1 else []


def groups_of(inputs: ExampleInputs) -> list[Group]:
    """The sizes of example inputs: the batch, then others; dimensions of size 1 one by one, for most are no size."""
    tensors = [leaf for leaf in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(leaf, Tensor)]
    sized: dict[Any, list[tuple[int, int]]] = {}
    batch = next((tensor.size(0) for tensor in tensors if tensor.ndim), None)
    for number, tensor in enumerate(tensors):
        for dim, size in enumerate(tensor.shape):
            if dim == 0 and size == batch:
                key: Any = "batch"
            else:
                key = (size, number, dim) if size == 1 else size
            if size:
                sized.setdefault(key, []).append((number, dim))
    return [
        Group(tuple(dims), tensors[dims[0][0]].size(dims[0][1]), key == "batch") for key, dims in sized.items()
    ]


def resized(inputs: ExampleInputs, sizes: Mapping[Group, int]) -> ExampleInputs:
    """Example inputs of other sizes: elements are repeated."""
    changes: dict[int, list[tuple[int, int]]] = {}
    for group, size in sizes.items():
        for number, dim in group.dims:
            changes.setdefault(number, []).append((dim, size))
    numbers = count()

    def change(tensor: Tensor) -> Tensor:
        for dim, size in changes.get(next(numbers), ()):
            index = torch.arange(size, device=tensor.device) % tensor.size(dim)
            tensor = tensor.detach().index_select(dim, index)
            if tensor.is_floating_point():  # what depends on the numbers, such as how many are positive, changes, too
                tensor = -tensor
        return tensor

    args, kwargs = tree_map_only(Tensor, change, (inputs.args, inputs.kwargs))
    return ExampleInputs(args, kwargs)


def names_of(model: nn.Module, inputs: ExampleInputs) -> list[str]:
    """The name of each tensor among the inputs, as ``forward`` calls it."""
    given = Arguments.of(model, inputs).given
    names: dict[int, str] = {}
    for path, leaf in tree_flatten_with_path(dict(given))[0]:
        if isinstance(leaf, Tensor):
            head, *rest = path
            names.setdefault(id(leaf), f"{head.key}{keystr(tuple(rest))}")  # type: ignore[attr-defined]
    leaves = [leaf for leaf in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(leaf, Tensor)]
    return [names.get(id(leaf), f"input {number}") for number, leaf in enumerate(leaves)]


@dataclass(frozen=True)
class Difference:
    """The first place where two captures of a model differ.

    Attributes:
        node: of the first capture.
    """

    node: Node

    def __str__(self) -> str:
        where = source_line(self.node)
        return f"{self.node.name} ({where})" if where else self.node.name

    @property
    def check(self) -> str:
        """What the graph says where this is a decision that it checks; else empty."""
        checks = [user for user in self.node.users if user.target is torch._assert]
        return str(checks[0].args[1]) if checks else ""


@dataclass(frozen=True)
class _Computed:
    """Takes the place of a plain number in a graph: a function of one that remembers."""

    function: Callable[[Any], Any]
    origin: Origin


def explain_numbers(run: CaptureRun, other: CaptureRun) -> Difference | None:
    """Compare a capture with one at other sizes.

    Plain numbers that differ, but that code was handed for numbers that remember, are computed in the graph of ``run``
    from then on.

    Returns:
        The first difference that is left; None if the captures are the same otherwise.
    """
    comparison = _Comparison(run, other)
    for left, right in zip(run.graph.nodes, other.graph.nodes, strict=False):
        if not comparison.same_node(left, right):
            return Difference(left)
    if len(run.graph.nodes) != len(other.graph.nodes):
        return Difference(list(run.graph.nodes)[min(len(run.graph.nodes), len(other.graph.nodes)) - 1])
    comparison.rewrite()
    return None


class _Comparison:
    def __init__(self, run: CaptureRun, other: CaptureRun) -> None:
        self._run = run
        self._twins: dict[Node, Node] = {}
        self._changed: dict[Node, tuple[Any, Any]] = {}
        self._handed: dict[tuple[Any, Any], Origin] = {}
        if len(run.events) == len(other.events):
            for (origin, mine), (_, theirs) in zip(run.events, other.events, strict=True):
                if mine != theirs:
                    self._handed.setdefault((mine, theirs), origin)
        self._found = False

    def same_node(self, left: Node, right: Node) -> bool:
        """Whether two nodes call the same on the same."""
        self._twins[right] = left
        if left.op != right.op or left.target != right.target:
            return False
        self._found = False
        try:
            args = self._same(left.args, right.args), self._same(dict(left.kwargs), dict(right.kwargs))
        except _DifferError:
            return False
        if self._found:
            self._changed[left] = args
        return True

    def _same(self, left: Any, right: Any) -> Any:
        if isinstance(left, Node):
            if isinstance(right, Node) and self._twins.get(right) is left:
                return left
            raise _DifferError
        if type(left) is not type(right):
            raise _DifferError
        if isinstance(left, tuple | list):
            if len(left) != len(right):
                raise _DifferError
            parts = [self._same(a, b) for a, b in zip(left, right, strict=True)]
            return type(left)(*parts) if hasattr(left, "_fields") else type(left)(parts)
        if isinstance(left, dict):
            if left.keys() != right.keys():
                raise _DifferError
            return {key: self._same(left[key], right[key]) for key in left}
        if isinstance(left, slice):
            return slice(*(self._same(getattr(left, k), getattr(right, k)) for k in ("start", "stop", "step")))
        if left == right or (left != left and right != right):
            return left
        return self._explained(left, right)

    def _explained(self, left: Any, right: Any) -> _Computed:
        if isinstance(left, bool) or not isinstance(left, int | float):
            raise _DifferError
        self._found = True
        if (origin := self._handed.get((left, right))) is not None:
            return _Computed(type(left), origin)
        for (mine, theirs), origin in self._handed.items():
            for function in _FUNCTIONS:
                if mine > 0 and theirs > 0 and function(mine) == left and function(theirs) == right:
                    return _Computed(function, origin)
        raise _DifferError

    def rewrite(self) -> None:
        """Put the computations into the graph."""
        for node, (args, kwargs) in self._changed.items():
            with self._run.graph.inserting_before(node):
                node.args = self._computed(args)
                node.kwargs = self._computed(kwargs)

    def _computed(self, value: Any) -> Any:
        if isinstance(value, _Computed):
            source = self._rebuilt(value.origin)
            node = self._run.graph.call_function(value.function, (source,))
            node.meta["val"] = value.function(source.meta["val"])
            return node
        if isinstance(value, tuple | list):
            parts = [self._computed(one) for one in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, dict):
            return {key: self._computed(one) for key, one in value.items()}
        if isinstance(value, slice):
            return slice(*(self._computed(one) for one in (value.start, value.stop, value.step)))
        return value

    def _rebuilt(self, origin: Origin) -> Node:
        """Nodes that compute a number, here, whether or not others do elsewhere."""
        if origin.node is not None and origin.node.op == "placeholder":
            return origin.node
        args = tuple(
            self._rebuilt(one.origin) if isinstance(one, Int | Float) else one for one in origin.args
        )
        if isinstance(origin.function, str):
            node = self._run.graph.call_method(origin.function, args)
            found = getattr(args[0].meta["val"], origin.function)
            node.meta["val"] = found(*map_arg(args[1:], _value)) if callable(found) else found
        else:
            node = self._run.graph.call_function(origin.function, args)
            node.meta["val"] = origin.function(*map_arg(args, _value))
        return node


def _value(node: Node) -> Any:
    return node.meta["val"]


class _DifferError(Exception):
    """Two captures are not the same."""
