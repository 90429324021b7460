"""Small graphs with labels that are written down, not analysed: what rewrites a graph is tested by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node, symbolic_trace

from fx_oto.analysis.dependencies import Dependencies
from fx_oto.analysis.labels import ZERO, Layer, compress, laid_along
from fx_oto.core.fx_utils import op_name, tensor_leaves
from fx_oto.zigs.cuts import Cuts

NEW = 1000  # atoms of what a node creates, such as padding, begin here


class _Noting(Interpreter):
    """Runs a graph and notes what each node returns."""

    def __init__(self, gm: GraphModule, note: Callable[[Node, Any], Any]) -> None:
        super().__init__(gm)
        self._note = note

    def run_node(self, node: Node) -> Any:
        return self._note(node, super().run_node(node))


def written(body: Callable[..., Any], shape: tuple[int, ...], **tensors: Tensor) -> GraphModule:
    """The graph of ``body(module, x)``, traced on ``x`` of a shape, over a module that has some buffers."""

    class Written(nn.Module):
        def forward(self, x):
            return body(self, x)

    module = Written()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    gm = symbolic_trace(module)

    def note(node: Node, value: Any) -> Any:
        node.meta["val"] = value
        return value

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        _Noting(gm, note).run(torch.empty(shape))
    return gm


def labelled(gm: GraphModule, gone: Collection[int], dim: int = 1) -> Cuts:
    """What is kept of a graph that only moves data: atoms 1, 2, … lie along a dimension of its input.

    What pads with zeros makes atoms of its own, ``NEW``, ``NEW + 1``, …, in order.
    """
    layers: dict[str, tuple[tuple[Layer, ...], ...]] = {}

    def note(node: Node, value: Any) -> Any:
        value = _with_new(value) if "pad" in op_name(node) else value
        if node.op != "get_attr":
            found = [compress(one) for one in tensor_leaves(value)]
            layers[node.name] = tuple((Layer.uniform(one, ZERO),) if one.numel() > 1 else () for one in found)
        return value

    source = next(node for node in gm.graph.nodes if node.op == "placeholder").meta["val"]
    labels = laid_along(torch.arange(1, source.size(dim) + 1), dim, source.ndim)
    _Noting(gm, note).run(labels.expand(source.shape))
    keep = torch.ones(NEW + 100, dtype=torch.bool)
    keep[list(gone)] = False
    return Cuts(
        Dependencies(
            axes=(), roots=torch.arange(len(keep)), variable=keep, works=(), reasons={}, values=layers, producers=(),
            silenced=(), contracting=frozenset(), adjustments=(), gathers={}, unknown=(), unequal=(), worths={},
            tables=frozenset(), contents={},
        ),
        keep,
    )  # fmt: skip


def _with_new(labels: Tensor) -> Tensor:
    """Give what padding created along dimension 1 an atom for each index."""
    line = labels.amax((0, 2))
    line[line == 0] = torch.arange(NEW, NEW + int((line == 0).sum()))
    return laid_along(line, 1, labels.ndim).expand(labels.shape)


def left_of(value: Tensor, cut: dict[int, Tensor]) -> Tensor:
    """What is kept of a tensor."""
    for dim, index in cut.items():
        value = value.index_select(dim, index)
    return value
