"""Where tensors leave the analysis's sight, or stay in the compact graph: what keeps their shape, or all of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from fx_oto.analysis.dependencies import NodeValues
from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.tape import Tape
from fx_oto.core.fx_utils import op_name, tensor_leaves
from fx_oto.nn.modes import by_mode
from fx_oto.nn.modules import keeps_parameters_whole

__all__ = ["Boundaries"]

# What is no tensor and holds none.
_PLAIN: tuple[type, ...] = (Tensor, int, float, complex, str, bytes, type(None), type, slice, range, torch.SymInt)
_PLAIN += (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)


class Boundaries:
    """Outputs, objects and modules that slicing does not know, what nothing reads, and grids that stay in the graph.

    Args:
        p: the engine, which is told what is kept whole.
        gm: the GraphModule.
        tape: its ATen calls.
    """

    def __init__(self, p: Propagation, gm: GraphModule, tape: Tape) -> None:
        self._p, self._gm, self._tape = p, gm, tape

    def keep(self, node: Node, value: Any) -> None:
        """What a node takes out of sight; ``value`` is what it returned."""
        if node.op == "output":
            in_training = [leaf for read in node.all_input_nodes for leaf in _in_training_only(read)]
            for leaf in (*tensor_leaves(value), *in_training):
                self._keep_output(leaf)
        elif node.op.startswith("call_"):
            self._keep_inside_object(node, value)
            self._keep_what_meets_training(node, value)
            if node.op == "call_module":
                self._keep_module(str(node.target))

    def _keep_output(self, value: Tensor) -> None:
        """All of it, but scores of the tokens of a vocabulary: tokens go on both sides, or on none."""
        layers = {layer.dims: layer.labels for layer in self._p.layers(value)}
        for dim, size in enumerate(value.shape):
            vocabularies = self._p.vocabularies.of_length(size)  # which of several is scored, nothing tells
            scores = layers.pop((dim,), None) if vocabularies else None
            for tokens in vocabularies:
                if scores is None:
                    self._p.freeze(tokens, "an output holds as many numbers, of which none can go")
                else:
                    self._p.unite(scores.reshape(-1), tokens)
        for labels in layers.values():
            self._p.freeze(labels, "it is part of the model's output")

    def keep_unread(self) -> None:
        """Parameters that no op reads."""
        read = {id(value) for call in self._tape.calls for value in call.inputs}
        for tensor in self._tape.tensors.values():
            if id(tensor) not in read:
                self._p.freeze_value(tensor, "it is not used by the traced graph")

    def keep_rectangles(self, values: NodeValues, gathers: Collection[str]) -> None:
        """A grid may lose any shape only if all that reads it is replaced, at the end of a chain of movement.

        Channels are shuffled by ``x.view(n, 2, 4, h, w).transpose(1, 2).reshape(n, 8, h, w)``. Slicing replaces the
        last node by a selection from ``x``, so of the grid (2, 4) in between any of the 8 channels may go, such as
        three. If something else reads the grid, it stays in the graph, and then whole rows or columns of it must go.

        Args:
            values: the layers of each tensor in the nodes' values.
            gathers: nodes that are replaced by a selection from the beginning of such a chain, by name.
        """
        passing: set[Node] = set()
        for node in reversed(self._gm.graph.nodes):
            readers = [user for user in node.users if tensor_leaves(user.meta.get("val"))]
            if readers and all(user in passing or user.name in gathers for user in readers):
                passing.add(node)
                continue
            self._p.node = node.name
            if node.name not in gathers:
                self._keep_pixels_whole(node, values)
            for layer in (layer for layers in values.get(node.name, ()) for layer in layers if len(layer.dims) > 1):
                self._p.rectangle(layer.labels)

    def _keep_pixels_whole(self, node: Node, values: NodeValues) -> None:
        """Of the channels that become pixels, or were pixels, all go that belong to one channel on the other side."""
        direction = op_name(node).lower().replace("_", "")
        if direction not in ("pixelshuffle", "pixelunshuffle"):
            return
        ends = (node.all_input_nodes[0], node)
        deep, flat = ends if direction == "pixelshuffle" else ends[::-1]
        block = deep.meta["val"].size(-3) // flat.meta["val"].size(-3)
        # 12 channels become 3 of 2 x 2 times the pixels: they are a grid (3, 4), and the 4 of one row go together.
        for layer in (layer for layers in values[deep.name] for layer in layers):
            channels = layer.labels.ndim - 3
            if channels in layer.dims:
                grid = layer.labels.unflatten(channels, (-1, block))
                self._p.unite(grid, grid.narrow(channels + 1, 0, 1))

    def _keep_inside_object(self, node: Node, value: Any) -> None:
        if all(isinstance(leaf, _PLAIN) for leaf in tree_leaves(value)):
            return
        returned = tensor_leaves(value) if _is_returned(node) else []
        for read in node.all_input_nodes:
            for leaf in tensor_leaves(read.meta["val"]):
                if any(leaf is one for one in returned):
                    continue
                self._p.freeze_value(leaf, f"it goes into an object of class {type(value).__name__}, which is opaque")

    def _keep_what_meets_training(self, node: Node, value: Any) -> None:
        """The tape is one of evaluation: what a tensor meets that there is in training only, it does not show."""
        if alone := [leaf for read in node.all_input_nodes for leaf in _in_training_only(read)]:
            met = tensor_leaves([value, *(read.meta["val"] for read in node.all_input_nodes)])
            for leaf in (*alone, *met):
                self._p.freeze_value(leaf, "it meets a tensor that there is in training only")

    def _keep_module(self, target: str) -> None:
        module = self._gm.get_submodule(target)
        if keeps_parameters_whole(module):
            names = {id(tensor): name for name, tensor in self._gm.named_parameters()}
            for parameter in module.parameters():
                stand_in = self._tape.tensors[names[id(parameter)]]
                self._p.freeze_value(stand_in, f"slicing does not know the module class {type(module).__name__}")


def _is_returned(node: Node) -> bool:
    """Whether nothing reads a value but the graph's output, of both modes perhaps."""
    return all(user.op == "output" or (user.target is by_mode and _is_returned(user)) for user in node.users)


def _in_training_only(node: Node) -> list[Tensor]:
    """The tensors of ``by_mode`` where training has one and evaluation has a number, or None."""
    if node.target is not by_mode:
        return []
    _, training, evaluation = (tensor_leaves(map_arg(one, lambda read: read.meta["val"])) for one in node.args)
    return training if len(training) > len(evaluation) else []
