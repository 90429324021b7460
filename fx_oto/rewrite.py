"""Rewriting of FX nodes whose arguments no longer hold once channels are gone.

Every node is looked at once, in order. What it was traced with is in ``node.meta["val"]`` (full sizes), what is
kept of its value and of its inputs comes from ``Cuts``. Sizes that the code *read* keep their original value, so
that arithmetic on them stays what it was; sizes that a node *uses* are rewritten from the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fx_oto.cuts import Cuts
from fx_oto.dependencies import Adjustment, Gather
from fx_oto.errors import SlicingError
from fx_oto.graph import op_name, source_line
from fx_oto.labels import compress
from fx_oto.masks import apply_mask
from fx_oto.modules import resizable, resize
from fx_oto.norms import group_norm_over, layer_norm_over, mean_over, over_original_count

__all__ = ["Rewriter"]

_Cut = dict[int, Tensor]


class Rewriter:
    """Rewrites the graph of a GraphModule whose parameters are already sliced.

    Args:
        gm: the GraphModule to change; node names are those of the analysed graph.
        cuts: what is kept.
    """

    def __init__(self, gm: GraphModule, cuts: Cuts) -> None:
        self.gm, self.graph, self.cuts = gm, gm.graph, cuts
        self.nodes = {node.name: node for node in gm.graph.nodes}
        self.adjustments: dict[str, list[Adjustment]] = {}
        for adjustment in cuts.found.adjustments:
            self.adjustments.setdefault(adjustment.node, []).append(adjustment)
        self.stale: set[Node] = set()
        self.origins: dict[Node, str] = {}

    def run(self, fold: Callable[[Node, Adjustment], Tensor]) -> None:
        """Rewrite every node, then drop those that nothing reads any more.

        Args:
            fold: computes what removed channels contributed to a node's output, shape ``(outputs,)``.
        """
        for node in list(self.graph.nodes):
            if node.target is apply_mask:
                self._drop_mask(node)
        self._find_stale()
        for node in list(self.graph.nodes):
            if node.name not in self.nodes or self.nodes[node.name] is not node:
                continue  # dropped while an earlier node was rewritten
            name = node.name
            self._rewrite(node)
            for adjustment in self.adjustments.get(name, ()):
                if not self.cuts.kept_labels(adjustment.labels).all():
                    self._adjust(self.nodes[name], adjustment, fold)
        self._erase_stale()

    def _find_stale(self) -> None:
        """Nodes inside a chain of movement through a grid: they go, once its end selects from its beginning."""
        for node in reversed(self.graph.nodes):
            replaced = all(user in self.stale or user.name in self.cuts.found.gathers for user in node.users)
            layers = self.cuts.found.values.get(node.name, ())
            grids = [layer for tensor in layers for layer in tensor if len(layer.dims) > 1]
            if node.users and replaced and not all(self.cuts.kept_labels(layer.labels).all() for layer in grids):
                self.stale.add(node)

    def _drop_mask(self, node: Node) -> None:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        unused = [node, *(arg for arg in node.args if isinstance(arg, Node) and arg.op == "get_attr")]
        for part in unused:
            if not part.users:
                del self.nodes[part.name]
                self.graph.erase_node(part)

    def _rewrite(self, node: Node) -> None:
        if node.op in ("placeholder", "get_attr", "output"):
            return
        gather = self.cuts.found.gathers.get(node.name)
        outputs = self.cuts.of_value(node.name)
        if gather is not None and outputs and outputs[0]:
            self._gather_from_entry(node, gather, outputs[0])
        elif node in self.stale or any(cut is None for cut in outputs):
            self.stale.add(node)
        elif handler := self._handler(node):
            handler(node)

    def _handler(self, node: Node) -> Callable[[Node], None] | None:
        if node.op == "call_module" and resizable(self.gm.get_submodule(str(node.target))):
            return self._resize
        name = op_name(node)
        if name == "getattr":
            name = str(node.args[1])
        handler = _HANDLERS.get(name)
        if handler is not None:
            return lambda n: handler(self, n)
        sources = [arg for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), Tensor)]
        return self.created if not sources else None

    # -- helpers ---------------------------------------------------------------------------------------

    def _cut(self, node: Any) -> _Cut:
        """Kept indices, by dimension, of a node's tensor value."""
        return self.cuts.of_tensor(self.origins.get(node, node.name)) if isinstance(node, Node) else {}

    def _shape(self, node: Node) -> torch.Size:
        value: Tensor = node.meta["val"]
        return value.shape

    def _replace(self, node: Node, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        with self.graph.inserting_before(node):
            new = self.graph.call_function(function, args, kwargs)
        self._adopt(new, node)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)
        return new

    def _adopt(self, new: Node, node: Node) -> None:
        """Let a node stand for one of the analysed graph."""
        new.meta = dict(node.meta)
        self.origins[new] = name = self.origins.get(node, node.name)
        self.nodes[name] = new

    def _constant(self, name: str, tensor: Tensor, before: Node) -> Node:
        """A buffer of the compact module."""
        device = next((t.device for t in (*self.gm.parameters(), *self.gm.buffers())), None)
        target = f"_{name}_{before.name}"
        self.gm.register_buffer(target, tensor.to(device))
        with self.graph.inserting_before(before):
            return self.graph.get_attr(target)

    def _argument(self, node: Node, position: int, name: str, default: Any = None) -> Any:
        return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)

    def _set_argument(self, node: Node, position: int, name: str, value: Any) -> None:
        if len(node.args) > position:
            node.update_arg(position, value)
        else:
            node.update_kwarg(name, value)

    def _substitute(self, node: Node, value: Any) -> None:
        """Put a value, such as a tuple of sizes, where a node was read."""
        for user in list(node.users):
            user.args = map_arg(user.args, lambda n: value if n is node else n)
            user.kwargs = map_arg(user.kwargs, lambda n: value if n is node else n)
        del self.nodes[node.name]
        self.graph.erase_node(node)

    def _refuse(self, node: Node, why: str) -> SlicingError:
        return SlicingError(
            f"node {node.name!r} ({op_name(node)} at {source_line(node) or 'no source line'}) cannot be rewritten for "
            f"fewer channels: {why}; keep what feeds it whole with unprunable=…, and please report it"
        )

    # -- sizes that are read ---------------------------------------------------------------------------

    def read_size(self, node: Node) -> None:
        """``x.shape``, ``x.size()``, ``x.size(1)``: of a cut dimension, the original size."""
        source = node.args[0]
        cut = self._cut(source)
        if not cut or not isinstance(source, Node):
            return
        shape = self._shape(source)
        dim = self._argument(node, 1, "dim") if op_name(node) != "getattr" else None
        if isinstance(dim, int):
            if dim % len(shape) in cut:
                self._substitute(node, shape[dim])
            return
        with self.graph.inserting_after(node):
            sizes = tuple(
                shape[d] if d in cut else self.graph.call_function(torch.ops.aten.sym_size.int, (source, d))
                for d in range(len(shape))
            )
        for size in sizes:
            if isinstance(size, Node):
                size.meta["val"] = shape[size.args[1]]  # type: ignore[index]
        self._spread_sizes(node, sizes)

    def _spread_sizes(self, node: Node, sizes: Sequence[Any]) -> None:
        for user in list(node.users):
            if op_name(user) == "getitem":
                part = sizes[user.args[1]]  # type: ignore[index]
                if isinstance(part, tuple):
                    self._spread_sizes(user, part)
                else:
                    self._substitute(user, part)
        self._substitute(node, tuple(sizes))

    # -- sizes that are used ---------------------------------------------------------------------------

    def use_sizes(self, node: Node) -> None:
        """``view``, ``reshape``, ``expand`` and ``unflatten`` with literal or computed sizes."""
        cut = self._cut(node)
        source = node.args[0]
        if not isinstance(source, Node) or not (cut or self._cut(source)):
            return
        created = self._created(node, source) if op_name(node).startswith("expand") else set()
        if op_name(node) == "expand_as":
            self._select_created(node, {dim for dim in created if dim in cut and dim not in self._cut(node.args[1])})
            return
        first = 2 if op_name(node) == "unflatten" else 1
        given = node.args[first:] or (node.kwargs.get("shape", node.kwargs.get("size", node.kwargs.get("sizes"))),)
        sizes = list(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else list(given)
        offset = node.args[1] % source.meta["val"].ndim if first == 2 else 0
        for dim, index in cut.items():
            place = dim - offset
            if dim not in created and 0 <= place < len(sizes):
                sizes[place] = self._resized(node, sizes[place], self._shape(node)[dim], len(index))
        node.args = (*node.args[:first], tuple(sizes))
        node.kwargs = {}
        self._select_created(node, created & set(cut))

    def _resized(self, node: Node, size: Any, before: int, after: int) -> Any:
        if isinstance(size, Node):  # computed, and so perhaps a multiple of the batch size
            with self.graph.inserting_before(node):
                scaled = self.graph.call_function(_times_ratio, (size, after, before))
            scaled.meta["val"] = after
            return scaled
        return -1 if size == -1 else after

    def _created(self, node: Node, source: Node) -> set[int]:
        old, new = self._shape(source), self._shape(node)
        lead = len(new) - len(old)
        return {d for d in range(len(new)) if new[d] > 1 and (d < lead or old[d - lead] == 1)}

    def created(self, node: Node) -> None:
        """Factories, such as ``zeros`` and ``new_zeros``: every cut dimension is of their making."""
        self._select_created(node, set(self._cut(node)))

    def _select_created(self, node: Node, dims: set[int]) -> None:
        """Dimensions that a node creates are cut after it."""
        value, readers = node, list(node.users)
        for dim in sorted(dims):
            index = self._constant(f"kept_{dim}", self._cut(node)[dim], value.next)
            with self.graph.inserting_after(index):
                value = self.graph.call_function(torch.index_select, (value, dim, index))
            self._adopt(value, node)
        for reader in readers:
            if value is not node:
                reader.replace_input_with(node, value)

    # -- movement --------------------------------------------------------------------------------------

    def split(self, node: Node) -> None:
        """``split`` and ``chunk`` along a cut dimension become a split into the sizes that are left."""
        source = node.args[0]
        dim = int(self._argument(node, 2, "dim", 0)) % len(self._shape(source))  # type: ignore[arg-type]
        if dim not in self._cut(source):
            return
        parts = self.cuts.of_value(node.name)
        full = [value.shape[dim] for value in node.meta["val"]]
        sizes = [len(cut[dim]) if cut and dim in cut else size for cut, size in zip(parts, full, strict=True)]
        self._replace(node, torch.split, source, sizes, dim)

    def gather(self, node: Node) -> None:
        """Slices, rolls and shuffles along a cut dimension select from what is left of it."""
        source: Any = node.args[0]
        for dim, kept in self._cut(source).items():
            positions = self._positions(node, source, dim)
            if positions is None or torch.equal(positions, torch.arange(self._shape(source)[dim])):
                continue
            self._select(node, source, dim, _places(positions, kept))
            return

    def _positions(self, node: Node, source: Node, dim: int) -> Tensor | None:
        """Index into the source for each index of the result, found by running the node on coordinates."""
        shape = self._shape(source)
        coordinate = torch.arange(shape[dim]).view([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)
        args, kwargs = self._plain((node.args[1:], node.kwargs))
        if node.op == "call_module":
            result = self.gm.get_submodule(str(node.target))(coordinate)
        elif node.op == "call_method":
            result = getattr(coordinate, str(node.target))(*args, **kwargs)
        else:
            result = node.target(coordinate, *args, **kwargs)  # type: ignore[operator]
        moved = compress(result)
        if moved.numel() == 1:
            return None
        if moved.ndim != len(shape) or moved.shape[dim] != moved.numel():
            raise self._refuse(node, "it moves a cut dimension elsewhere")
        return moved.reshape(-1)

    def _plain(self, value: Any) -> Any:
        """Arguments with the sizes they were traced with, and the buffers they name."""

        def content(node: Node) -> Any:
            return self.gm.get_buffer(str(node.target)) if node.op == "get_attr" else node.meta["val"]

        return map_arg(value, content)

    def _select(self, node: Node, source: Node, dim: int, places: Tensor) -> None:
        start, length = int(places[0]), len(places)
        if torch.equal(places, torch.arange(start, start + length)):
            self._replace(node, torch.narrow, source, dim, start, length)
        else:
            self._replace(node, torch.index_select, source, dim, self._constant("kept", places, node))

    def getitem(self, node: Node) -> None:
        """``x[:, 2:8]`` on tensors: the entry of a cut dimension selects from what is left of it."""
        source, entries = node.args[:2]
        assert isinstance(source, Node)
        cut = self._cut(source)
        if not cut or not isinstance(source.meta["val"], Tensor):
            return
        entries = list(entries) if isinstance(entries, tuple) else [entries]
        self._expand_ellipsis(entries, len(self._shape(source)))
        dim = 0
        for place, entry in enumerate(entries):
            if entry is None:
                continue
            if dim in cut and entry != slice(None):
                source, entries[place] = self._take(node, source, dim, entry, cut[dim])
            dim += 1
        node.args = (source, tuple(entries))

    def _expand_ellipsis(self, entries: list[Any], ndim: int) -> None:
        if Ellipsis in entries:
            at = entries.index(Ellipsis)
            count = ndim - sum(entry is not None for entry in entries) + 1
            entries[at : at + 1] = [slice(None)] * count

    def _take(self, node: Node, source: Node, dim: int, entry: Any, kept: Tensor) -> tuple[Node, Any]:
        positions = torch.arange(self._shape(source)[dim])[self._plain(entry)]
        if positions.ndim != 1:
            raise self._refuse(node, "it indexes a cut dimension by something other than a slice or a list")
        places = _places(positions, kept)
        start, length = int(places[0]), len(places)
        if torch.equal(places, torch.arange(start, start + length)):
            return source, slice(start, start + length)
        index = self._constant(f"kept_{dim}", places, node)
        with self.graph.inserting_before(node):
            return self.graph.call_function(torch.index_select, (source, dim, index)), slice(None)

    def pad(self, node: Node) -> None:
        """Constant padding of a cut dimension: as many on each side as are left of the padding."""
        source, amounts = node.args[0], list(self._argument(node, 1, "pad"))
        cut = self._cut(node)
        ndim = len(self._shape(node))
        for dim, index in cut.items():
            place = 2 * (ndim - 1 - dim)
            if place < len(amounts) and any(amounts[place : place + 2]):
                size = self._shape(source)[dim]  # type: ignore[arg-type]
                before = amounts[place]
                amounts[place] = int((index < before).sum())
                amounts[place + 1] = int((index >= before + size).sum())
        self._set_argument(node, 1, "pad", amounts)

    def _gather_from_entry(self, node: Node, gather: Gather, cut: _Cut) -> None:
        """The end of a chain of movement through a grid: select from where the chain began."""
        entry = self.nodes[gather.entry]
        kept = self._cut(entry)[gather.dim]
        places = _places(gather.positions[cut[gather.dim]], kept)
        self._replace(node, torch.index_select, entry, gather.dim, self._constant("order", places, node))

    # -- modules ---------------------------------------------------------------------------------------

    def _resize(self, node: Node) -> None:
        """Let a leaf module's attributes follow its parameters."""
        inputs, outputs = (self._channels(n) for n in (node.args[0], node))
        resize(self.gm.get_submodule(str(node.target)), inputs, outputs)

    def _channels(self, node: Any) -> int:
        """What is left of dimension 1, the channels; 0 where there is none."""
        shape = self._shape(node)
        return len(self._cut(node)[1]) if 1 in self._cut(node) else shape[1] if len(shape) > 1 else 0

    # -- computation -----------------------------------------------------------------------------------

    def groups(self, node: Node) -> None:
        """Functional grouped convolution: groups are channels over channels per group."""
        transposed = "transpose" in op_name(node)
        source, weight = node.args[:2]
        position = 8 if op_name(node) == "convolution" else 6
        groups = self._argument(node, position, "groups", 1)
        if groups == 1:
            return
        channels = self._channels(node if transposed else source)
        self._set_argument(node, position, "groups", channels // self._channels(weight))

    def norm_groups(self, node: Node) -> None:
        """Functional group norm: whole groups went."""
        source = node.args[0]
        if 1 in self._cut(source):
            groups = self._argument(node, 1, "num_groups")
            left = groups * self._channels(source) // self._shape(source)[1]  # type: ignore[arg-type]
            self._set_argument(node, 1, "num_groups", left)

    def _adjust(self, node: Node, adjustment: Adjustment, fold: Callable[[Node, Adjustment], Tensor]) -> None:
        kept = self.cuts.kept_labels(adjustment.labels)
        if adjustment.kind == "norm" and node.op == "call_module":
            module = self.gm.get_submodule(str(node.target))
            self.gm.set_submodule(str(node.target), over_original_count(module, len(kept)))
        elif adjustment.kind == "norm":
            self._norm(node, len(kept))
        elif adjustment.kind == "mean":
            self._mean(node, float(kept.sum()) / len(kept))
        else:
            self._fold(node, fold(node, adjustment))

    def _norm(self, node: Node, count: int) -> None:
        over = group_norm_over if "group" in op_name(node) else layer_norm_over
        weight, bias = self._argument(node, 2, "weight"), self._argument(node, 3, "bias")
        eps = self._argument(node, 4, "eps", 1e-5)
        self._replace(node, over, node.args[0], count, weight, bias, eps)

    def _mean(self, node: Node, share: float) -> None:
        dim = self._argument(node, 1, "dim")
        keepdim = self._argument(node, 2, "keepdim", False)
        self._replace(node, mean_over, node.args[0], dim, keepdim, share)

    def _fold(self, node: Node, contribution: Tensor) -> None:
        spatial = 0 if op_name(node).lower() == "linear" else len(self._shape(node)) - 2
        constant = self._constant("folded", contribution.reshape(-1, *[1] * spatial), node.next)
        readers = list(node.users)
        with self.graph.inserting_after(constant):
            total = self.graph.call_function(torch.add, (node, constant))
        self._adopt(total, node)
        for reader in readers:
            reader.replace_input_with(node, total)

    def _erase_stale(self) -> None:
        for node in reversed(list(self.graph.nodes)):
            if node in self.stale:
                if node.users:
                    raise self._refuse(
                        node, f"what is left of it is no rectangle, but {next(iter(node.users)).name!r} reads it"
                    )
                self.graph.erase_node(node)


def _times_ratio(size: int, after: int, before: int) -> int:
    """A computed size, scaled to what is left of it."""
    return size * after // before


def _places(positions: Tensor, kept: Tensor) -> Tensor:
    """Where those of ``positions`` that are kept lie among what is kept (``kept`` is ascending)."""
    return torch.searchsorted(kept, positions[torch.isin(positions, kept)])


_HANDLERS: dict[str, Callable[[Rewriter, Node], None]] = {
    **dict.fromkeys(("shape", "size", "sym_size"), Rewriter.read_size),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "expand", "expand_as", "unflatten"), Rewriter.use_sizes),
    **dict.fromkeys(
        ("split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk"), Rewriter.split
    ),
    **dict.fromkeys(
        (
            "slice",
            "narrow",
            "roll",
            "index_select",
            "index",
            "channel_shuffle",
            "native_channel_shuffle",
            "ChannelShuffle",
        ),
        Rewriter.gather,
    ),
    "getitem": Rewriter.getitem,
    **dict.fromkeys(("pad", "constant_pad_nd"), Rewriter.pad),
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution"),
        Rewriter.groups,
    ),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), Rewriter.created),
    "group_norm": Rewriter.norm_groups,
}
