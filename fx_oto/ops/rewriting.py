"""Rewriting of FX nodes whose arguments no longer hold once channels are gone.

Every node is looked at once, in order. What it was traced with is in ``node.meta["val"]`` (full sizes), what is
kept of its value and of its inputs comes from ``Cuts``. At the end every node carries the value that it has now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from fx_oto.analysis.dependencies import Adjustment
from fx_oto.core.fx_utils import op_name, tensor_leaves
from fx_oto.core.masks import drop_masks
from fx_oto.nn.leaves import leaf_of
from fx_oto.nn.modes import called
from fx_oto.nn.modules import keeps_parameters_whole, resizable
from fx_oto.nn.norms import over_original_count
from fx_oto.ops import attention, contraction, convolution, leaves, normalization, pooling, reductions
from fx_oto.ops.editor import Editor, Handler
from fx_oto.ops.movement import rewriting as movement
from fx_oto.ops.removed.rewriting import Removed
from fx_oto.ops.reshape import rewriting as sizes
from fx_oto.ops.values import note_values
from fx_oto.zigs.cuts import Cuts

__all__ = ["Fold", "rewrite"]

# What the removed input channels of a node contributed to its output, shape ``(outputs,)``.
Fold = Callable[[Node, Adjustment], Tensor]

# Torch takes some arguments under another name as well.
_ALIASES = {"axis": "dim", "keepdims": "keepdim", "x": "input"}


def rewrite(gm: GraphModule, cuts: Cuts, fold: Fold, full: Mapping[str, Tensor]) -> int:
    """Rewrite every node of a graph over sliced parameters, then drop those that nothing reads any more.

    Args:
        gm: the GraphModule to change; node names are those of the analysed graph.
        cuts: what is kept.
        fold: computes what removed channels contributed to a node's output, shape ``(outputs,)``.
        full: tensors before they were cut, by name.

    Returns:
        The multiply-adds of what was put in.

    Raises:
        SlicingError: a node cannot be rewritten; names it.
    """
    drop_masks(gm.graph)
    edit = Editor(gm, cuts)
    adjustments: dict[str, list[Adjustment]] = {}
    for adjustment in cuts.found.adjustments:
        if not cuts.kept_labels(adjustment.labels).all():
            adjustments.setdefault(adjustment.node, []).append(adjustment)
    stale = _find_stale(edit)
    nodes: list[Node] = list(edit.graph.nodes)
    removed = Removed(edit, full)
    worth = {one: _worth(removed, edit.nodes[name], one) for name, every in adjustments.items() for one in every}
    for node in nodes:
        name = node.name
        _positional(node)
        if edit.nodes.get(name) is not node:
            continue  # dropped while an earlier node was rewritten
        if node not in stale and _rewrite(edit, node):
            stale.add(node)
        for adjustment in adjustments.get(name, ()):
            _adjust(edit, edit.nodes[name], adjustment, fold, worth[adjustment])
    removed.follow()
    _erase(edit, stale)
    note_values(edit)
    return removed.macs


def _positional(node: Node) -> None:
    """Bring what a node works on to the first position, and call arguments as ATen does: the handlers rely on it."""
    if node.op != "call_module":
        node.kwargs = {_ALIASES.get(key, key): value for key, value in node.kwargs.items()}
    for name in ("input", "self", "tensor"):
        if not node.args and isinstance(node.kwargs.get(name), Node):
            node.args = (node.kwargs[name],)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != name}


def _find_stale(edit: Editor) -> set[Node]:
    """Nodes inside a chain of movement through a grid: they go, once its end selects from its beginning."""
    # (N, 16) to (N, 4, 4), transposed, and back to (N, 16): the last selects from the first, and the two in between
    # are read by nothing that stays.
    found, stale = edit.cuts.found, set[Node]()
    for node in reversed(edit.graph.nodes):
        replaced = all(user in stale or user.name in found.gathers for user in node.users)
        grids = [layer for tensor in found.values.get(node.name, ()) for layer in tensor if len(layer.dims) > 1]
        if node.users and replaced and not all(edit.cuts.kept_labels(layer.labels).all() for layer in grids):
            stale.add(node)
    return stale


def _rewrite(edit: Editor, node: Node) -> bool:
    """Rewrite one node; returns whether no rectangle is left of it."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    gather = edit.cuts.found.gathers.get(node.name)
    outputs = edit.cuts.of_value(node.name)
    cut = (outputs[0] if outputs else None) or {}
    if gather is not None and gather.dim in cut:
        movement.gather_from_entry(edit, node, gather, cut)
    elif any(cut is None for cut in outputs):
        return True
    elif handler := _handler(edit, node):
        handler(edit, node)
    return False


def _handler(edit: Editor, node: Node) -> Handler | None:
    if node.op == "call_module":
        module = edit.gm.get_submodule(str(node.target))
        if leaf_of(module) is not None:
            return leaves.resize_leaf
        if resizable(module):
            return leaves.resize_module
        if keeps_parameters_whole(module):
            return leaves.check_whole
    name, _ = called(node)
    if name == "getattr":
        name = str(node.args[1])
    if name in _HANDLERS:
        return _HANDLERS[name]
    reads_tensors = any(tensor_leaves(arg.meta.get("val")) for arg in node.all_input_nodes)
    return None if reads_tensors else sizes.created


def _worth(removed: Removed, node: Node, adjustment: Adjustment) -> Any:
    """What removed channels are worth where the graph computes that: of norms, mean and variance; else None."""
    if not adjustment.removed.isnan().any():
        return None
    source, name = node.all_input_nodes[0], op_name(node).lower()
    ndim = source.meta["val"].ndim
    if "norm" not in name:
        return removed.of(source, adjustment.labels)
    return removed.moments(source, adjustment.labels, tuple(range(1, ndim)) if "group" in name else (ndim - 1,))


def _adjust(edit: Editor, node: Node, adjustment: Adjustment, fold: Fold, worth: Any) -> None:
    """Make a node compute over the original count, or add what removed channels contributed."""
    kept = edit.cuts.kept_labels(adjustment.labels)
    share = float(kept.sum()) / len(kept)
    if rewrite := _BY_KIND.get(adjustment.kind):
        rewrite(edit, node, adjustment)
    elif adjustment.kind == "share":
        reductions.share_of_mean(edit, node, share)
    elif adjustment.kind in ("norm", "mean") and node.op == "call_module":
        module = edit.gm.get_submodule(str(node.target))
        edit.gm.set_submodule(str(node.target), over_original_count(module, len(kept)))
        normalization.add_known(node, 1, worth)
    elif adjustment.kind == "norm" and "batch_norm" in op_name(node):
        normalization.batch_norm_over_share(edit, node, share)
    elif adjustment.kind == "norm":
        normalization.layer_norm_over_count(edit, node, len(kept), worth)
    elif adjustment.kind == "mean" and "rms_norm" in op_name(node):
        normalization.rms_norm_over_count(edit, node, worth)
    elif adjustment.kind == "var":
        reductions.variance_over_share(edit, node, share, worth)
    elif adjustment.kind == "mean":
        reductions.mean_over_share(edit, node, share, worth)
    else:
        contraction.add_folded(edit, node, fold(node, adjustment))


_BY_KIND: dict[str, Callable[[Editor, Node, Adjustment], None]] = {
    "extreme": lambda edit, node, _: reductions.extreme_beside_zero(edit, node),
    "sizes": lambda edit, node, _: sizes.check_sizes(edit, node),
    "slide": lambda edit, node, adjustment: convolution.slide_over_zeros(edit, node, adjustment.labels),
}


def _erase(edit: Editor, stale: set[Node]) -> None:
    """Drop the stale nodes, and what reads them but is read by nothing itself."""
    for node in reversed(list(edit.graph.nodes)):
        unread = node.op != "output" and not node.users and stale.intersection(node.all_input_nodes)
        if node in stale or unread:
            if node.users:
                reader = next(iter(node.users)).name
                raise edit.refuse(node, f"what is left of it is no rectangle, but {reader!r} reads it")
            edit.graph.erase_node(node)


# The names of what nodes call, by how it is rewritten.
_REWRITINGS: dict[Handler, str] = {
    sizes.read_size: "shape size sym_size",
    sizes.read_count: "numel nelement",
    sizes.read_strides: "stride",
    sizes.use_sizes: "view _unsafe_view reshape unflatten expand broadcast_to view_as reshape_as expand_as",
    sizes.broadcast: "broadcast_tensors",
    sizes.created: "new new_zeros new_ones new_full new_empty new_tensor",
    sizes.repeated: "repeat tile",
    movement.split: "split chunk tensor_split hsplit vsplit dsplit split_with_sizes unsafe_split unsafe_chunk "
    "unsafe_split_with_sizes",
    movement.gather: "slice narrow select roll index_select index channel_shuffle native_channel_shuffle "
    "ChannelShuffle",
    movement.getitem: "getitem",
    movement.setitem: "setitem index_put index_put_",
    movement.pad: "pad constant_pad_nd",
    convolution.fewer_groups: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution",
    contraction.count_padding_anew: "embedding",
    contraction.any_width: "grouped_mm _grouped_mm",
    pooling.fewer_places: " ".join(pooling.SIZED),
    normalization.fewer_groups: "group_norm",
    attention.fewer_heads: "MultiheadAttention FewerHeads",
    attention.original_scale: "scaled_dot_product_attention",
}
_HANDLERS = {name: handler for handler, names in _REWRITINGS.items() for name in names.split()}
