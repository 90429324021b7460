"""Fake tensors that stand for the values of nodes that a pass makes or changes, without a run of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from fx_oto.core.fx_utils import tensor_leaves, tensor_names

__all__ = ["Fakes"]


class Fakes:
    """Makes fake tensors of one mode; where several nodes have values of one form, they carry the same tensor.

    Args:
        mode: that of the graph's other values.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._made: dict[Any, FakeTensor] = {}

    @classmethod
    def of_graph(cls, graph: Graph) -> Fakes:
        """Those that may be combined with the values of a graph's nodes."""
        leaves = (leaf for node in graph.nodes for leaf in tensor_leaves(node.meta.get("val")))
        mode = next((leaf.fake_mode for leaf in leaves if isinstance(leaf, FakeTensor)), None)
        return cls(mode or FakeTensorMode(allow_non_fake_inputs=True))

    def of(self, tensor: Tensor) -> FakeTensor:
        """One of the same form."""
        return self._make(tensor, tuple(tensor.shape), tensor.stride())

    def resized(self, tensor: Tensor, sizes: Mapping[int, int]) -> FakeTensor:
        """One of the same form except for the sizes of some dimensions, laid out in the same order."""
        shape = tuple(sizes.get(dim, size) for dim, size in enumerate(tensor.shape))
        return self._make(tensor, shape, _dense(shape, tensor.stride()))

    def called(self, gm: GraphModule, node: Node) -> Any:
        """Run a node on the values that its inputs carry, and return its value."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda read: read.meta["val"])
        with torch.no_grad(), self._mode:
            if node.op == "call_module":
                module = gm.get_submodule(str(node.target))
                stand_ins: dict[str, Tensor] = {name: self.of(one) for name, one in tensor_names(module).items()}
                return torch.func.functional_call(module, stand_ins, args, kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _make(self, like: Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> FakeTensor:
        key = shape, strides, like.dtype, like.device
        if key not in self._made:
            meta = torch.empty_strided(shape, strides, dtype=like.dtype, device="meta")
            self._made[key] = FakeTensor(self._mode, meta, like.device)
        return self._made[key]


def _dense(shape: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
    """Strides without gaps, of dimensions in the order that they were in; 0 stays 0, as in what was expanded."""
    strides, step = [0] * len(shape), 1
    for dim in sorted(range(len(shape)), key=lambda dim: (before[dim], -dim)):
        if before[dim]:
            strides[dim] = step
            step *= max(shape[dim], 1)
    return tuple(strides)
