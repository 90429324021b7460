"""Masks in the graph: one switch for each ZIG, to try out a pruning before it is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fx_oto.analysis.dependencies import Dependencies
from fx_oto.analysis.labels import Layer, compress, varying
from fx_oto.core.context import Context, Untraced
from fx_oto.core.fakes import Fakes
from fx_oto.core.masks import MASKS, Masks, is_mask
from fx_oto.framework.stages import Pass
from fx_oto.zigs.partition import Partition

__all__ = ["MaskInsertion"]


@dataclass(frozen=True)
class MaskInsertion(Pass):
    """Let the outputs of each family's producers pass its mask.

    All masks are open, so nothing changes, and nothing is computed. A producer whose only reader is another producer of
    the same family (a convolution before its normalisation) is left out, because the reader's mask covers it. What is
    not zero without a group, as behind a norm without weights, passes it where it is read. A leaf
    module that returns several tensors (``nn.LSTM``, ``nn.MultiheadAttention``) gets none: there, only zero weights
    have an effect.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> [node.name for node in gm.graph.nodes]
        ['input_1', '_0', 'zig_masks', '_1', '_2', 'output']
    """

    name: ClassVar[str] = "mask-insertion"
    requires: ClassVar[tuple[type, ...]] = (Dependencies, Partition)
    preserves: ClassVar[tuple[type, ...]] = (Dependencies, Partition, Untraced)
    trusted: ClassVar[bool] = True

    def transform(self, gm: GraphModule, context: Context) -> GraphModule | None:
        """Add the buffers and the multiplications."""
        found, partition = context.get(Dependencies), context.get(Partition)
        if hasattr(gm, MASKS) or not partition.families:
            return None
        device = next((p.device for p in gm.parameters()), None)
        gm.add_submodule(MASKS, Masks([len(family) for family in partition.families], device))
        _Inserter(gm, found, partition, device).run()
        return gm

    def refusals(self, gm: GraphModule, context: Context) -> list[str]:
        """Families whose mask is not applied, and what to do instead."""
        used = {node.args[1] for node in gm.graph.nodes if is_mask(node)}
        return [
            f"the mask of the family {family.name!r} is not applied: its layer returns several tensors, as nn.LSTM "
            "does, or none of its values is exactly zero without a group. Training and compress are not affected, as "
            f"they look at the weights; to try out a pruning, call partition(gm).zero_zigs_({i}, …)"
            for i, family in enumerate(context.get(Partition).families)
            if i not in used
        ]


@dataclass(frozen=True, eq=False)
class _Site:
    """A value that is zero where ZIGs are gone: along which dimension, and whose indices lie there.

    Attributes:
        dim: the dimension.
        families: the family of each index, -1 where it has none, shape ``(size,)``.
        positions: of each index's ZIG in its family, shape ``(size,)``.
        members: the families, -1 among them if it is there.
    """

    dim: int
    families: Tensor
    positions: Tensor
    members: frozenset[int]


class _Inserter:
    def __init__(self, gm: GraphModule, found: Dependencies, partition: Partition, device: torch.device | None) -> None:
        self.gm, self.found, self.device = gm, found, device
        self.masks = gm.get_submodule(MASKS)
        self.fakes = Fakes.of_graph(gm.graph)
        self.nodes = {node.name: node for node in gm.graph.nodes}
        self.mixing = found.contracting | {adjustment.node for adjustment in found.adjustments}
        self.sizes = [len(family) for family in partition.families]
        self.family_of = torch.full((len(found.roots),), -1, dtype=torch.int64)
        self.position_of = torch.zeros(len(found.roots), dtype=torch.int64)
        for i, family in enumerate(partition.families):
            self.family_of[family.classes] = i
            self.position_of[family.classes] = torch.arange(len(family))
        self._wanted = torch.zeros(len(found.roots), dtype=torch.bool)
        self._known: dict[int, _Site | None] = {}

    def run(self) -> None:
        told = [pair for name, labels in self.found.producers for pair in self._sites(name, labels)]
        told += [pair for name, labels in self.found.silenced for pair in self._read(name, labels)]
        sites = {(node.name, site.dim): site for node, site in told}
        for (name, dim), site in sites.items():
            readers = list(self.nodes[name].users)
            elementwise = len(readers) == 1 and readers[0].name not in self.mixing
            after = sites.get((readers[0].name, dim)) if elementwise else None
            if after is None or not site.members <= after.members:
                self._insert(self.nodes[name], site)

    def _sites(self, name: str, labels: Tensor) -> list[tuple[Node, _Site]]:
        """The places where a mask acts as zero variables do: the node's value, or else the parameters behind it."""
        node = self.nodes[name]
        with self._looking_for(labels):
            return self._zero(node) or [s for source in _parameters_behind(node) for s in self._zero(source)]

    def _read(self, name: str, labels: Tensor) -> list[tuple[Node, _Site]]:
        """What a node reads that is not zero without a group: nobody reads a masked value otherwise than as zero."""
        with self._looking_for(labels):
            return [s for source in self.nodes[name].all_input_nodes for s in self._site(source, self._layer(source))]

    @contextmanager
    def _looking_for(self, labels: Tensor) -> Iterator[None]:
        classes = self.found.roots[labels]
        classes = classes[self.family_of[classes] >= 0]
        self._wanted[classes] = True
        yield
        self._wanted[classes] = False

    def _zero(self, node: Node) -> list[tuple[Node, _Site]]:
        layer = self._layer(node)
        return self._site(node, layer) if layer is not None and (layer.removed == 0).all() else []

    def _site(self, node: Node, layer: Layer | None) -> list[tuple[Node, _Site]]:
        if layer is None:
            return []
        if id(layer.labels) not in self._known:  # most values have the labels of the value before
            self._known[id(layer.labels)] = self._along(layer.labels)
        site = self._known[id(layer.labels)]
        return [] if site is None else [(node, site)]

    def _layer(self, node: Node) -> Layer | None:
        """The first layer in which something lies that is wanted."""
        layers = self.found.values.get(node.name, ())
        if not isinstance(node.meta["val"], Tensor):
            return None
        return next((layer for layer in layers[0] if self._wanted[self.found.roots[layer.labels]].any()), None)

    def _along(self, labels: Tensor) -> _Site | None:
        roots = compress(self.found.roots[labels])
        dims = varying(roots)
        if len(dims) != 1:
            return None
        classes = roots.reshape(-1)
        families = self.family_of[classes]
        return _Site(dims[0], families, self.position_of[classes], frozenset(families.tolist()))

    def _insert(self, node: Node, site: _Site) -> None:
        value = node
        readers = list(node.users)
        for family in sorted(site.members - {-1}):
            args: list[Any] = [value, family, site.dim]
            position = torch.where(site.families == family, site.positions + 1, 0)
            if not torch.equal(position, torch.arange(1, self.sizes[family] + 1)):
                args.append(self._index(family, position, value))
            with self.gm.graph.inserting_after(args[-1] if isinstance(args[-1], Node) else value):
                value = self.gm.graph.call_module(MASKS, tuple(args))
            value.meta["val"] = node.meta["val"]  # of the same form
        for reader in readers:
            reader.replace_input_with(node, value)

    def _index(self, family: int, position: Tensor, after: Node) -> Node:
        name = f"index_{family}_{len(self.masks._buffers)}"
        self.masks.register_buffer(name, position.to(self.device), persistent=False)
        with self.gm.graph.inserting_after(after):
            node = self.gm.graph.create_node("get_attr", f"{MASKS}.{name}")
        node.meta["val"] = self.fakes.of(self.masks.get_buffer(name))
        return node


def _parameters_behind(node: Node) -> list[Node]:
    """Parameters that a node reads, directly or after operations on parameters alone."""
    found, seen, todo = [], set[Node](), list(node.all_input_nodes)
    while todo:
        source = todo.pop()
        if source not in seen and source.op in ("get_attr", "call_function", "call_method"):
            seen.add(source)
            found += [source] if source.op == "get_attr" else []
            todo += source.all_input_nodes
    return found
