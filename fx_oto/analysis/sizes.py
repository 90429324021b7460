"""Numbers that are made of the sizes of inputs: on other inputs they are others, so nothing may rely on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fx_oto.analysis.tape import OpCall
from fx_oto.core.context import Context
from fx_oto.core.fx_utils import op_name
from fx_oto.nn.modes import called
from fx_oto.nn.modules import is_opaque

__all__ = ["PLACE", "SizesRead", "consumed", "indexed_at", "numbers_in"]

PLACE = "it is moved or cut at a place that depends on an input's size"
_KEEP_SIGN = {"add", "mul", "truediv", "floordiv", "pow", "sqrt", "getitem", "int", "float", "max", "min", "prod"}


class SizesRead:
    """Which numbers each node reads that are others on inputs of other sizes.

    Args:
        gm: the GraphModule.
        is_constant: whether a node, given by name, returns the same whatever the inputs are.
        current: the node that is being analysed.
    """

    def __init__(self, gm: GraphModule, is_constant: Callable[[str], bool], current: Callable[[], Node]) -> None:
        self._gm, self._is_constant, self._current = gm, is_constant, current
        self._read: dict[str, frozenset[float] | None] = {}
        self._signs: dict[str, bool] = {}

    @cached_property
    def fixed(self) -> frozenset[int]:
        """Sizes of the example inputs for which the graph was captured, and which take no others, in none of them."""
        sizes = Context.of(self._gm).capture.sizes
        return frozenset(one.size for one in sizes if one.fixed) - {one.size for one in sizes if not one.fixed}

    def vary(self, node: Node) -> bool:
        """Whether a node returns numbers, and others on inputs of other sizes."""
        return any(True for _ in numbers_in(node.meta.get("val"))) and not self._is_constant(node.name)

    @property
    def are_read(self) -> bool:
        """Whether the current node reads, or may read, a number that is made of the sizes of inputs."""
        return self._by(self._current()) != frozenset()

    @property
    def are_read_singly(self) -> bool:
        """Whether the current node is, or may be, given such a number by itself, not in a row."""
        node = self._current()
        given = (*node.args, *node.kwargs.values())
        return self._by(node) is None or any(isinstance(one, Node) and self.vary(one) for one in given)

    @property
    def are_signed(self) -> bool:
        """Whether such a number may be negative on some inputs and not on others."""
        return any(self.vary(read) and not self._same_sign(read) for read in self._current().all_input_nodes)

    def may_vary(self, call: OpCall, number: Any) -> bool:
        """Whether a number among a call's arguments may be another one on inputs of other sizes.

        What it is made of cannot be seen: it is taken for one that the current node reads if it is equal to it, and
        every number is where one that the node reads is missing, for then torch has computed with it.
        """
        if isinstance(number, bool) or not isinstance(number, int | float):
            return False
        read = self._by(self._current())
        return read is None or number in read or not read.issubset(call.numbers)

    def vary_in(self, call: OpCall, row: Sequence[Any]) -> list[bool]:
        """Of several numbers in a row, which ones may be others on inputs of other sizes.

        Where the node gives the same row it tells which of them it reads; else each is judged by ``may_vary``.
        """
        node = self._current()
        given = [one for one in (*node.args, *node.kwargs.values()) if isinstance(one, tuple | list)]
        same = [one for one in given if [_plain(part) for part in one] == list(row)]
        if len(same) != 1 or self._by(node) is None:
            return [self.may_vary(call, number) for number in row]
        return [isinstance(part, Node) and self.vary(part) for part in same[0]]

    def _by(self, node: Node) -> frozenset[float] | None:
        """The numbers that a node reads, on the example inputs; None of code that may ask for sizes itself."""
        if node.name not in self._read:
            self._read[node.name] = None if is_opaque(node, self._gm) else self._among(node)
        return self._read[node.name]

    def _same_sign(self, number: Node) -> bool:
        """Sizes are positive, and so is what is made of them without a difference."""
        if number.name not in self._signs:
            tensors = any(isinstance(read.meta.get("val"), Tensor) for read in number.all_input_nodes)
            made = op_name(number) in _KEEP_SIGN and not any(one < 0 for one in numbers_in(list(number.args)))
            made = made and all(map(self._same_sign, number.all_input_nodes))
            self._signs[number.name] = number.op.startswith("call_") and (
                made or (tensors and op_name(number) != "item")
            )
        return self._signs[number.name]

    def _among(self, node: Node) -> frozenset[float]:
        return frozenset(
            number for read in node.all_input_nodes if self.vary(read) for number in numbers_in(read.meta["val"])
        )


def numbers_in(value: Any) -> Iterator[float]:
    """The numbers in a value; none where tensors are in it as well, truth values are no numbers."""
    if isinstance(value, tuple | list):
        if not any(isinstance(one, Tensor) for one in value):
            for one in value:
                yield from numbers_in(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def indexed_at(node: Node, varies: Callable[[Node], bool]) -> tuple[Node, list[int]] | None:
    """What a node indexes, and along which dimensions at places that vary; None of any other node.

    ``x[:, None, n:]`` does so along dimension 1, whether or not ``n`` is 0 on the example inputs.
    """
    name, args = called(node)
    if name not in ("getitem", "setitem") or not isinstance(args[0], Node):
        return None
    source, index = args[:2]
    entries = list(index) if isinstance(index, tuple | list) else [index]
    dims, dim = [], 0
    for position, entry in enumerate(entries):
        if entry is Ellipsis:
            dim = _ndim(source) - sum(map(consumed, entries[position + 1 :]))
            continue
        if any(varies(one) for one in _nodes_in(entry)):
            dims.append(dim)
        dim += consumed(entry)
    return source, dims


def _ndim(node: Node) -> int:
    value = node.meta["val"]
    return value.ndim if isinstance(value, Tensor) else 1


def consumed(entry: Any) -> int:
    """How many dimensions an index is for, which may be a node."""
    if entry is None or isinstance(entry, bool):
        return 0
    value = entry.meta["val"] if isinstance(entry, Node) else entry
    return value.ndim if isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8) else 1


def _nodes_in(entry: Any) -> list[Node]:
    parts = (entry.start, entry.stop, entry.step) if isinstance(entry, slice) else (entry,)
    return [part for part in parts if isinstance(part, Node)]


def _plain(part: Any) -> Any:
    return part.meta.get("val") if isinstance(part, Node) else part
