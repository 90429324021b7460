"""Sizes that depend on the numbers in a tensor: what code asks of them, and whether other numbers change the answer.

Of ``edges[:, mask]`` only the second size depends on the numbers in the mask. Code that asks for the first may go on,
and so may code that asks whether ``torch.cat([edges[:, mask], loops], 1)`` is empty, where ``loops`` is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_map_only

from fx_oto.analysis.disguises import lies_on
from fx_oto.capture.calls import takes_list
from fx_oto.capture.really import Evaluator, behind
from fx_oto.capture.refusals import ON_VALUES
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import op_name

__all__ = ["Counting", "may_have_more_parts"]

_BY_ROWS = ("nonzero", "argwhere")  # of which rows are counted; of other functions, what returns lists

_SPLITTING = ("unbind", "split", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "hsplit", "vsplit", "dsplit")

_SHAPING = ("view", "reshape")
_SWAPPING = ("transpose", "swapaxes", "swapdims")

_Count = Callable[[int], int]  # of how many there are at most, or were
# None, few, and more than there are: not at each of these is a number divisible, or equal to another, by chance.
_COUNTS: tuple[_Count, ...] = (lambda _: 0, lambda _: 1, lambda _: 2, lambda _: 3, lambda most: 2 * most + 1)


class Counting(Evaluator):
    """Tells answers that hold whatever is counted from those that depend on it.

    Attributes:
        some_counts: numbers of which none is 0.
    """

    some_counts = _COUNTS[1:]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._others: dict[tuple[_Count, bool], dict[Node, Any]] = {}

    def differs_by_values(self, node: Node) -> bool:
        """See ``Sheet.differs_by_values``; what does not run where nothing is counted, or more, may differ."""
        if node.target in ("item", "tolist") and not node.meta.get("asks_values"):  # of a tensor made of sizes alone
            made_of = self.needed_by(node.all_input_nodes[0])
            return any(self.differs_by_values(one) for one in made_of if one.meta.get("is_number"))
        if node not in self.by_values:
            return False
        try:
            with self._unrecorded():
                return any(self._value(node, count, False) != node.meta["val"] for count in _COUNTS)
        except Exception:
            return True

    def has_other_lengths(self, node: Node) -> bool | None:
        """Whether a node returns more parts, or fewer, where more is selected, or less; None if nobody knows.

        What becomes of numbers that the graph reads is found by capturing again.
        """
        if not _splits(node) or node not in self.by_values or node.meta.get("asks_values"):
            return False
        try:
            with self._unrecorded():
                return any(len(self._value(node, count, True)) != len(node.meta["val"]) for count in _COUNTS)
        except Exception:
            return None

    def refuse_lengths(self, node: Node) -> None:
        """See ``Sheet.refuse_lengths``; where nobody knows, the graph checks them."""
        if self.has_other_lengths(node):
            raise TraceError(ON_VALUES)

    @contextmanager
    def _unrecorded(self) -> Iterator[None]:
        calls, self.fakes.calls = self.fakes.calls, []
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            self.fakes.calls = calls

    def _value(self, wanted: Node, count: _Count, numbers_stay: bool) -> Any:
        values = self._others.setdefault((count, numbers_stay), {})

        def read_by(node: Node) -> list[Node]:
            return [] if node in values or node not in self.by_values else node.all_input_nodes

        needed = behind(wanted, read_by)
        for node in self.graph.nodes:
            if node in needed and node not in values:
                is_read = node.meta.get("is_number") and node.meta.get("asks_values")
                stays = numbers_stay and is_read
                values[node] = node.meta["val"] if stays else self._counted(node, count, values)
        return values[wanted]

    def _counted(self, node: Node, count: _Count, values: dict[Node, Any]) -> Any:
        if node not in self.by_values:
            return node.meta["val"]
        if not node.meta.get("asks_values"):
            return self.called_on(node, values)
        if node.meta.get("is_number"):
            raise ValueError("any number may be in a tensor")
        if op_name(node) == "bincount":
            raise ValueError("it is as long as code asks for, unless there are larger numbers")
        last = self.calls[node][-1] if self.calls[node] else None
        if last is not None and last.func is torch.ops.aten.index.Tensor:
            source, places = last.args
            return source[tuple(at for place in places for at in _places(place, count))]
        return tree_map_only(Tensor, lambda one: _rows(one, op_name(node) in _BY_ROWS, count), node.meta["val"])


def _places(place: Any, count: _Count) -> list[Any]:
    """What selects as a mask does, but as many as are counted; shape ``(n,)`` for each dimension of the mask."""
    if not isinstance(place, Tensor):
        return [slice(None)]
    if place.dtype not in (torch.bool, torch.uint8):
        return [place]
    return [torch.zeros(count(place.numel()), dtype=torch.int64, device=lies_on(place)) for _ in place.shape]


def _rows(tensor: Tensor, by_rows: bool, count: _Count) -> Tensor:
    if tensor.ndim != 1 and not by_rows:
        raise ValueError("nothing tells which of its sizes depend on numbers")
    return tensor.new_zeros((count(len(tensor)), *tensor.shape[1:]))


def _splits(node: Node) -> bool:
    """Whether a node may return more parts, or fewer, of what is longer, or shorter."""
    return node.op != "call_module" and op_name(node) in _SPLITTING and not takes_list(node)


def may_have_more_parts(node: Node, count: int) -> bool:
    """Whether a node may return more parts on longer inputs, and not as many as code writes out, as of q, k and v."""
    if not _splits(node):
        return False
    second = node.args[1] if len(node.args) > 1 else node.kwargs.get("chunks" if op_name(node) == "chunk" else "dim", 0)
    return bool(second != count) if op_name(node) == "chunk" else _size_written_out(node, second) != count


def _size_written_out(node: Node, dim: Any) -> Any:
    """How long what a node reads is along a dimension, where code writes that out as it shapes it; else None."""
    node = node.all_input_nodes[0]
    value = node.meta["val"]
    if node.op not in ("call_function", "call_method") or not isinstance(dim, int) or not isinstance(value, Tensor):
        return None
    name, dim, rest = op_name(node), dim % value.ndim, list[Any](node.args[1:])
    given = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
    if name in _SHAPING:
        return given[dim] if dim < len(given) else None
    if name == "unflatten" and len(rest) == 2 and isinstance(rest[0], int) and isinstance(rest[1], tuple | list):
        first = rest[0] % (value.ndim - len(rest[1]) + 1)
        return dict(enumerate(rest[1], first)).get(dim)
    if name == "permute" and len(given) == value.ndim:
        return _size_written_out(node, given[dim])
    if name in _SWAPPING and len(rest) == 2 and all(isinstance(one, int) for one in rest):
        swapped = [one % value.ndim for one in rest]
        return _size_written_out(node, swapped[1 - swapped.index(dim)] if dim in swapped else dim)
    return None
