"""Puts what removed channels are worth into the compact graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn.functional import embedding

from fx_oto.analysis.dependencies import Worth
from fx_oto.analysis.labels import Layer, laid_along
from fx_oto.core.fx_utils import op_name
from fx_oto.nn.norms import beside, layer_norm_over, moments_of, normalized_beside, worth_beside
from fx_oto.ops.editor import Cut, Editor
from fx_oto.ops.removed.rules import SIZED, along, parts_of, without_writing
from fx_oto.ops.reshape.mixing import entries_of

__all__ = ["Moments", "Removed"]

# How many channels are gone, and nodes: the mean and the variance of what they are worth.
Moments = tuple[int, Node, Node]

_SUMS = {"add", "iadd", "add_"}


class Removed:
    """Puts nodes into a graph that compute what removed channels are worth, before the others are rewritten.

    Args:
        edit: the editor of the graph.
        full: tensors before they were cut, by name.
    """

    def __init__(self, edit: Editor, full: Mapping[str, Tensor]) -> None:
        self._edit, self._graph, self._full = edit, edit.graph, full
        self._found: dict[tuple[str, int], Node] = {}
        self._whole: dict[Node, Node] = {}
        self._moments: dict[tuple[Node, tuple[int, ...]], tuple[Node, Node]] = {}
        self._mixed: list[tuple[Node, str, Node, dict[str, Node]]] = []

    def follow(self) -> None:
        """Let what mixes others do as the nodes that it repeats, now that these are rewritten."""
        for node, name, new, given in self._mixed:
            last, instead = self._edit.nodes[name], {self._edit.nodes[read]: found for read, found in given.items()}
            new.args, new.kwargs = self._reading((node.args, node.kwargs), instead)
            self._add_behind(new, node, last)

    def _reading(self, arguments: Any, instead: Mapping[Node, Node]) -> Any:
        return map_arg(arguments, lambda one: instead.get(one, one))

    def _add_behind(self, new: Node, node: Node, last: Node) -> Node:
        """Add to ``new`` what was added to ``node`` for hidden channels that are gone, up to ``last``."""
        if last is node:
            return new
        before = self._add_behind(new, node, last.args[0])  # type: ignore[arg-type]
        with self._graph.inserting_after(before):
            added = self._graph.node_copy(last, lambda one: before if one is last.args[0] else one)
        before.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)
        return added

    @property
    def macs(self) -> int:
        """The multiply-adds of what was put in, once the values of all nodes are noted."""
        macs_left = self._edit.cuts.macs_left
        return sum(
            macs_left(name) * new.meta["val"].numel() // node.meta["val"].numel() for node, name, new, _ in self._mixed
        )

    def moments(self, node: Node, labels: Tensor, dims: tuple[int, ...]) -> Moments:
        """How many channels are gone; the mean and the variance, over some dimensions, of what they are worth."""
        found = self.of(node, labels)
        if (found, dims) not in self._moments:
            before = found.next
            with self._graph.inserting_before(before):
                both = self._graph.call_function(moments_of, (found, list(dims)))
                parts = [self._graph.call_function(operator.getitem, (both, place)) for place in (0, 1)]
            self._moments[found, dims] = parts[0], parts[1]
        return int(self._gone(labels).sum()), *self._moments[found, dims]

    def of(self, node: Node, labels: Tensor) -> Node:
        """What they are worth in a node's value: of as many dimensions, of size 1 along some that do not vary."""
        layer = self._layer(node, labels)
        assert layer is not None
        key = node.name, layer.dims[0]
        if key not in self._found:
            self._found[key] = self._made(node, layer)
        return self._found[key]

    def _layer(self, node: Node, labels: Tensor) -> Layer | None:
        return along(self._edit.layers(node), labels, self._edit.cuts.found.roots.__getitem__)

    def _gone(self, labels: Tensor) -> Tensor:
        return ~self._edit.cuts.kept_labels(labels.reshape(-1))

    def _made(self, node: Node, layer: Layer) -> Node:
        how = self._edit.cuts.found.worths[node.name, layer.dims[0]]
        makes: dict[Any, Callable[[Node, Layer], Node]] = {
            "known": self._known,
            "table": self._columns,
            "joined": self._joined,
            "looked up": self._looked_up,
            "gathered": self._gathered,
            "normalized": self._normalized,
        }
        if how in makes:
            return makes[how](node, layer)
        if how == "same":
            return self.of(node.all_input_nodes[0], layer.labels)
        if how == "elementwise" and (rest := self._beside_zero(node, layer)) is not None:
            return rest
        return self._repeated(node, layer, how)

    def _repeated(self, node: Node, layer: Layer, how: Worth | None) -> Node:
        """What a node makes of what its operands are worth."""
        dim, labels = layer.dims[0], layer.labels
        read = node.all_input_nodes[:1] if how == "cast" else node.all_input_nodes
        given = {one: self.of(one, labels) for one in read if self._layer(one, labels) is not None}
        before = node.next
        with self._graph.inserting_before(before):
            if how in ("moved", "mixed"):  # of what mixes others one channel may stand for all, but all else is needed
                size = -1 if how == "mixed" else int(self._gone(labels).sum())
                given = {one: self._spread(one, found, labels, size) for one, found in given.items()}
            new = self._graph.node_copy(node, lambda one: given.get(one, one))
        if how == "mixed":
            self._mixed.append((node, node.name, new, {one.name: found for one, found in given.items()}))
        if op_name(node) in SIZED:
            self._resize(new, node, dim, int(self._gone(labels).sum()))
        elif (target := without_writing(node)) is not None:
            new.target = target
        return new

    def _looked_up(self, node: Node, layer: Layer) -> Node:
        before = node.next
        if node.op == "call_module":
            name, places = f"{node.target}.weight", node.all_input_nodes[0]
            rows = self._edit.cuts.axes.get((name, 0))
            lost = self._lost(self._full[name], 1, layer, {} if rows is None else {0: rows})
            columns = self._edit.constant(f"removed_{node.name}", lost, before, node)
        else:
            weight = next(one for one in node.all_input_nodes if self._layer(one, layer.labels) is not None)
            places = next(one for one in node.all_input_nodes if one is not weight)
            columns = self.of(weight, layer.labels)
        with self._graph.inserting_before(before):
            return self._graph.call_function(embedding, (places, columns))

    def _gathered(self, node: Node, layer: Layer) -> Node:
        """The rows that a node picks, by the index of one channel."""
        source, dim = node.all_input_nodes[0], self._edit.argument(node, 1, "dim")
        found, index = self.of(source, layer.labels), self._edit.argument(node, 2, "index")
        before = node.next
        with self._graph.inserting_before(before):
            found = self._spread(source, found, layer.labels, int(self._gone(layer.labels).sum()))
            one = self._graph.call_method("narrow", (index, layer.dims[0], 0, 1))
            return self._graph.call_function(torch.take_along_dim, (found, one, dim))

    def _normalized(self, node: Node, layer: Layer) -> Node:
        source, size = node.all_input_nodes[0], layer.labels.numel()
        moments = self.moments(source, layer.labels, (layer.dims[0],))
        norm = self._edit.gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        before = self._edit.argument(node, 5 if norm is None else 1, "known") or ()  # from earlier rounds
        eps = self._edit.argument(node, 4, "eps", 1e-5) if norm is None else norm.eps
        count = node.args[1] if node.target is layer_norm_over else getattr(norm, "count", size)
        given: Any = (source, self.of(source, layer.labels), count, eps, [*before, moments])
        with self._graph.inserting_after(node):
            return self._graph.call_function(normalized_beside, given)

    def _joined(self, node: Node, layer: Layer) -> Node:
        gone = [
            (one, labels, self.of(one, labels)) for one, labels in parts_of(node, layer) if self._gone(labels).any()
        ]
        before = node.next
        with self._graph.inserting_before(before):
            parts = [self._spread(one, found, labels, int(self._gone(labels).sum())) for one, labels, found in gone]
            return self._graph.call_function(torch.cat, (parts, layer.dims[0]))

    def _known(self, node: Node, layer: Layer) -> Node:
        dim = layer.dims[0]
        if layer.removed.numel() == 1:
            with self._graph.inserting_after(node):
                return self._graph.call_function(worth_beside, (node, dim, float(layer.removed)))
        line = laid_along(layer.removed.reshape(-1)[self._gone(layer.labels)], dim, layer.labels.ndim)
        found = self._edit.constant(f"removed_{node.name}", line, node.next, node)
        with self._graph.inserting_after(found):
            return self._graph.call_method("type_as", (found, node))

    def _columns(self, node: Node, layer: Layer) -> Node:
        """Those of a table that are gone."""
        gone, dim, name = self._gone(layer.labels).nonzero().reshape(-1), layer.dims[0], f"removed_{node.name}"
        if node.op == "get_attr":
            cut = {other: index for other, index in self._edit.cut(node).items() if other != dim}
            return self._edit.constant(name, self._lost(self._full[str(node.target)], dim, layer, cut), node.next, node)
        whole = self._whole_of(node)
        index = self._edit.constant(name, gone, whole.next, node)
        with self._graph.inserting_after(index):
            return self._graph.call_function(torch.index_select, (whole, dim, index))

    def _lost(self, table: Tensor, dim: int, layer: Layer, cut: Cut) -> Tensor:
        """The columns of a tensor that are gone, cut along its other dimensions as the tensor is."""
        return self._edit.cuts.apply(table.detach(), {**cut, dim: self._gone(layer.labels).nonzero().reshape(-1)})

    def _whole_of(self, node: Node) -> Node:
        """A table before it is cut."""
        if node not in self._whole:
            self._whole[node] = self._made_whole(node)
        return self._whole[node]

    def _made_whole(self, node: Node) -> Node:
        is_cut = any(cut is None or cut for cut in self._edit.cuts.of_value(node.name))
        if node.op == "get_attr":
            content = self._full[str(node.target)].detach() if is_cut else None
            return node if content is None else self._edit.constant("whole", content, node.next, node)
        tables = self._edit.cuts.found.tables
        given = {one: self._whole_of(one) for one in node.all_input_nodes if one.name in tables}
        if not is_cut and all(one is whole for one, whole in given.items()):
            return node
        with self._graph.inserting_after(node):
            return self._graph.node_copy(node, lambda one: given.get(one, one))

    def _beside_zero(self, node: Node, layer: Layer) -> Node | None:
        """Of a sum with what is worth 0, what the other is worth."""
        pair = [self._layer(one, layer.labels) for one in node.all_input_nodes]
        if op_name(node) not in _SUMS or node.kwargs or len(pair) != 2 or len(node.args) != 2 or None in pair:
            return None
        zeros = [bool((one.removed == 0).all()) for one in pair if one is not None]
        if not any(zeros):
            return None
        other = node.all_input_nodes[zeros.index(True) - 1]
        found, missing = self.of(other, layer.labels), layer.labels.ndim - other.meta["val"].ndim
        before = node.next
        with self._graph.inserting_before(before):
            if missing:
                found = self._graph.call_function(operator.getitem, (found, (None,) * missing))
            if other.meta["val"].dtype != node.meta["val"].dtype:
                found = self._graph.call_method("type_as", (found, node))
        return found

    def _spread(self, node: Node, found: Node, labels: Tensor, size: int) -> Node:
        """What they are worth in a value, as large as that, but of a size along the channels; of -1, of its own."""
        layer = self._layer(node, labels)
        assert layer is not None
        return self._graph.call_function(beside, (node, found, layer.dims[0], size))

    def _resize(self, new: Node, node: Node, dim: int, size: int) -> None:
        sizes = entries_of(node)
        sizes[dim] = -1 if sizes[dim] == -1 else size
        new.args, new.kwargs = (new.args[0], tuple(sizes)), {}
        if new.target == "view":  # what is expanded cannot be viewed
            new.target = "reshape"
