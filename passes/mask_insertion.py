"""Masks in the graph: the one place that says which ZIGs are gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fx_oto.framework.context import Context
from fx_oto.framework.fakes import Fakes
from fx_oto.framework.stages import Pass
from fx_oto.groups.explanations import Untraced
from fx_oto.groups.zigs import Partition
from fx_oto.masks import MASKS, Masks, apply_mask
from fx_oto.provenance.dependencies import Dependencies
from fx_oto.provenance.labels import Layer, compress, varying

__all__ = ["MaskInsertion"]


@dataclass(frozen=True)
class MaskInsertion(Pass):
    """Multiply the outputs of each family's producers by its mask.

    All masks are 1, so nothing changes numerically. A producer whose only reader is another producer of the
    same family (a convolution before its normalisation) is left out, for the reader's mask covers it. A leaf module
    that returns several tensors (``nn.LSTM``, ``nn.MultiheadAttention``) gets none: there, zero variables act alone.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> [(name, tuple(mask.shape)) for name, mask in gm.named_buffers()]
        [('zig_masks.family_0', (8,))]
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
        """Families that no mask acts on."""
        used = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
        return [
            f"no mask acts on the family {family.name!r}: it is made in a module that returns several tensors, or no "
            "value is zero without it; its zero variables act alone"
            for i, family in enumerate(context.get(Partition).families)
            if f"{MASKS}.family_{i}" not in used
        ]


class _Inserter:
    def __init__(self, gm: GraphModule, found: Dependencies, partition: Partition, device: torch.device | None) -> None:
        self.gm, self.found, self.device = gm, found, device
        self.fakes = Fakes.of_graph(gm.graph)
        self.nodes = {node.name: node for node in gm.graph.nodes}
        self.mixing = found.contracting | {adjustment.node for adjustment in found.adjustments}
        self.family_of = torch.full((len(found.roots),), -1, dtype=torch.int64)
        self.position_of = torch.zeros(len(found.roots), dtype=torch.int64)
        for i, family in enumerate(partition.families):
            self.family_of[family.classes] = i
            self.position_of[family.classes] = torch.arange(len(family))

    def run(self) -> None:
        sites = {
            (node.name, dim): layer
            for name, labels in self.found.producers
            for node, dim, layer in self._sites(name, labels)
        }
        covered = {
            key: set(self.family_of[self.found.roots[layer.labels]].unique().tolist()) for key, layer in sites.items()
        }
        for (name, dim), layer in sites.items():
            readers = list(self.nodes[name].users)
            elementwise = len(readers) == 1 and readers[0].name not in self.mixing
            if elementwise and covered[name, dim] <= covered.get((readers[0].name, dim), set()):
                continue
            self._insert(self.nodes[name], dim, layer)

    def _sites(self, name: str, labels: Tensor) -> list[tuple[Node, int, Layer]]:
        """Where a mask has the effect of zero variables: the node's value, or else the parameters it is made from."""
        classes = self.found.roots[labels]
        classes = classes[self.family_of[classes] >= 0]
        if not classes.numel():
            return []
        node = self.nodes[name]
        return self._site(node, classes) or [
            s for source in _parameters_behind(node) for s in self._site(source, classes)
        ]

    def _site(self, node: Node, classes: Tensor) -> list[tuple[Node, int, Layer]]:
        layer = self._layer(node, classes)
        if layer is None or not (layer.removed == 0).all():
            return []
        roots = compress(self.found.roots[layer.labels])
        dims = varying(roots)
        return [(node, dims[0], Layer(roots, layer.removed))] if len(dims) == 1 else []

    def _layer(self, node: Node, classes: Tensor) -> Layer | None:
        layers = self.found.values.get(node.name, ())
        if not isinstance(node.meta["val"], Tensor):
            return None
        return next((layer for layer in layers[0] if torch.isin(self.found.roots[layer.labels], classes).any()), None)

    def _insert(self, node: Node, dim: int, layer: Layer) -> None:
        classes = layer.labels.reshape(-1)
        families = self.family_of[classes]
        value = node
        readers = list(node.users)
        for family in families[families >= 0].unique().tolist():
            size = int((self.family_of == family).sum())
            position = torch.where(families == family, self.position_of[classes] + 1, 0)
            mask = self._read(f"family_{family}", value)
            args: list[Any] = [value, dim, mask]
            if not torch.equal(position, torch.arange(1, size + 1)):
                args.append(self._index(family, position, mask))
            with self.gm.graph.inserting_after(args[-1]):
                value = self.gm.graph.call_function(apply_mask, tuple(args))
            value.meta["val"] = node.meta["val"]  # of the same form
        for reader in readers:
            reader.replace_input_with(node, value)

    def _index(self, family: int, position: Tensor, after: Node) -> Node:
        masks = self.gm.get_submodule(MASKS)
        name = f"index_{family}_{len(masks._buffers)}"
        masks.register_buffer(name, position.to(self.device), persistent=False)
        return self._read(name, after)

    def _read(self, name: str, after: Node) -> Node:
        with self.gm.graph.inserting_after(after):
            node = self.gm.graph.get_attr(f"{MASKS}.{name}")
        node.meta["val"] = self.fakes.of(self.gm.get_buffer(f"{MASKS}.{name}"))
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
