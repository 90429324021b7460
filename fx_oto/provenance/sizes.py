"""Numbers that are made of the sizes of inputs: on other inputs they are others, so nothing may rely on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fx_oto.graph import op_name
from fx_oto.modes import by_mode, written_in
from fx_oto.modules import is_opaque

__all__ = ["PLACE", "SizesRead", "indexed_at", "numbers_in"]

PLACE = "it is moved or cut at a place that depends on an input's size"
_KEEP_SIGN = {"add", "mul", "truediv", "floordiv", "pow", "sqrt", "getitem", "int", "float", "max", "min", "prod"}


class SizesRead:
    """Which numbers each node reads that are others on inputs of other sizes.

    Args:
        gm: the GraphModule.
        is_constant: whether a node, given by name, returns the same whatever the inputs are.
    """

    def __init__(self, gm: GraphModule, is_constant: Callable[[str], bool]) -> None:
        self._gm, self._is_constant = gm, is_constant
        self._read: dict[str, frozenset[float] | None] = {}
        self._signs: dict[str, bool] = {}

    def by(self, node: Node) -> frozenset[float] | None:
        """The numbers, on the example inputs; None of code that may ask for sizes itself."""
        if node.name not in self._read:
            asks = is_opaque(node, self._gm) and node.target not in (by_mode, written_in)
            self._read[node.name] = None if asks else self._among(node)
        return self._read[node.name]

    def vary(self, node: Node) -> bool:
        """Whether a node returns numbers, and others on inputs of other sizes."""
        return any(True for _ in numbers_in(node.meta.get("val"))) and not self._is_constant(node.name)

    def signed(self, node: Node) -> bool:
        """Whether one of them may be negative on some inputs and not on others."""
        return any(self.vary(read) and not self._same_sign(read) for read in node.all_input_nodes)

    def _same_sign(self, number: Node) -> bool:
        """Sizes are positive, and so is what is made of them without a difference."""
        if number.name not in self._signs:
            tensors = any(isinstance(read.meta.get("val"), Tensor) for read in number.all_input_nodes)
            made = op_name(number) in _KEEP_SIGN and not any(one < 0 for one in numbers_in(list(number.args)))
            made = made and all(map(self._same_sign, number.all_input_nodes))
            self._signs[number.name] = number.op.startswith("call_") and (tensors or made)
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
    if op_name(node) not in ("getitem", "setitem") or not isinstance(node.args[0], Node):
        return None
    source, index = node.args[0], node.args[1]
    entries = list(index) if isinstance(index, tuple | list) else [index]
    dims, dim = [], 0
    for position, entry in enumerate(entries):
        if entry is Ellipsis:
            dim = _ndim(source) - sum(map(_consumed, entries[position + 1 :]))
            continue
        if any(varies(one) for one in _nodes_in(entry)):
            dims.append(dim)
        dim += _consumed(entry)
    return source, dims


def _ndim(node: Node) -> int:
    value = node.meta["val"]
    return value.ndim if isinstance(value, Tensor) else 1


def _consumed(entry: Any) -> int:
    """How many dimensions an index is for."""
    if entry is None or isinstance(entry, bool):
        return 0
    value = entry.meta["val"] if isinstance(entry, Node) else entry
    return value.ndim if isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8) else 1


def _nodes_in(entry: Any) -> list[Node]:
    parts = (entry.start, entry.stop, entry.step) if isinstance(entry, slice) else (entry,)
    return [part for part in parts if isinstance(part, Node)]
