"""Normalisations: the dimensions of their statistics decide what can go, and how they are rewritten.

Statistics per channel lose nothing. Statistics over channels stay exact when they still divide by the
original count, which slicing sees to; whole norm groups need not even that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from fx_oto.analysis.engine import FIXED, Propagation
from fx_oto.analysis.labels import UNKNOWN, ZERO, Layer, laid_along, zero_stays
from fx_oto.analysis.tape import OpCall
from fx_oto.core.fx_utils import op_name
from fx_oto.nn.norms import batch_norm_over, group_norm_over, layer_norm_over, rms_norm_over
from fx_oto.ops.editor import Editor
from fx_oto.ops.removed.rewriting import Moments
from fx_oto.ops.removed.rules import can_compute_in
from fx_oto.ops.rows_and_columns import one_line

__all__ = [
    "add_known",
    "batch_norm",
    "batch_norm_over_share",
    "fewer_groups",
    "group_norm",
    "layer_norm",
    "layer_norm_over_count",
    "rms_norm_over_count",
    "weight_norm",
]

_NOT_ZERO = "its value is not zero once removed, and the statistics over it would change"


def batch_norm(call: OpCall, p: Propagation) -> None:
    """Statistics per channel (dimension 1): input, affine and running statistics are coupled."""
    source, weight, bias = call.args[:3]
    statistics = [t for t in call.inputs if t is not source and t is not weight and t is not bias]
    of_the_data = _of_the_data(call)
    layers, summed = [], []
    for layer in one_line(p, p.layers(source)):
        if of_the_data and not statistics and 1 not in layer.dims:
            _over_original_count(p, layer)
            summed.append(Layer.uniform(layer.labels))
            continue
        narrowed = p.narrow_to(layer, (1,), "its statistics are taken along it")
        if narrowed is not None:
            worth = narrowed.removed.reshape(-1) if of_the_data else UNKNOWN
            layers.append(Layer(narrowed.labels, _affine(p, weight, bias, narrowed, 1, worth)))
            for tensor in statistics:
                _couple(p, tensor, narrowed.labels.reshape(-1))
    _keep_unmatched(p, (weight, bias, *statistics), layers)
    p.put(call.out, layers + summed)


def _of_the_data(call: OpCall) -> bool:
    """Return whether a batch norm takes its statistics from its input, so that zeros stay zeros."""
    by_name = {argument.name for argument in call.func._schema.arguments}
    running = call.arg("running_mean") if "running_mean" in by_name else None
    training = call.arg("training") if "training" in by_name else "no_training" not in call.name
    return (running is None or bool(training)) and call.arg("epsilon" if "epsilon" in by_name else "eps") > 0


def layer_norm(call: OpCall, p: Propagation) -> None:
    """Statistics over the last dimensions."""
    source, shape, weight, bias = call.args[:4]
    first = source.ndim - len(shape)
    layers = []
    for tracked in one_line(p, p.layers(source)):
        layer = tracked
        if p.loses(call.out) == "heads" and min(layer.dims) < first:
            layer = p.narrow_to(tracked, range(first), "") or tracked
        if all(dim < first for dim in layer.dims):
            layers.append(Layer.uniform(layer.labels))
            continue
        narrowed = p.narrow_to(layer, range(first, source.ndim), "")
        assert narrowed is not None
        if len(shape) > 1:
            p.freeze(narrowed.labels, "a norm runs over several dimensions")
        _over_all(p, source, narrowed)
        layers.append(Layer(narrowed.labels, _affine(p, weight, bias, narrowed, source.ndim - 1)))
    _keep_unmatched(p, (weight, bias), [layer for layer in layers if source.ndim - 1 in layer.dims])
    p.put(call.out, layers)


def group_norm(call: OpCall, p: Propagation) -> None:
    """Statistics over channel groups: whole groups can go, and single channels if there is one group."""
    source, weight, bias = call.args[:3]
    groups = call.arg("group")
    layers = []
    for narrowed in p.narrow(one_line(p, p.layers(source)), (1,), "its statistics are taken along it"):
        # 8 channels in 4 groups are a grid (4, 2): each group has statistics of its own, so whole groups can go and
        # no other notices. With one group, the mean and variance run over all channels: what goes must be zero, and
        # the sums must still be divided by 8.
        worth = UNKNOWN
        if groups == 1:
            _over_all(p, source, narrowed)
        else:
            grid = narrowed.labels.reshape(groups, -1)
            p.unite(grid, grid[:, :1])
            worth = narrowed.removed.reshape(-1) if call.arg("eps") > 0 else UNKNOWN
            if not p.can_adjust("norm"):
                p.freeze(grid, "it is normalised in groups in a way that slicing cannot rewrite")
        layers.append(Layer(narrowed.labels, _affine(p, weight, bias, narrowed, 1, worth)))
    _keep_unmatched(p, (weight, bias), layers)
    p.put(call.out, layers)


def weight_norm(call: OpCall, p: Propagation) -> None:
    """``g · v / ‖v‖``: ``g`` is what makes a slice zero, for where ``v`` were zero, too, there would be 0 / 0.

    What ``v`` loses along the other dimensions is zero, and adds nothing to the norm.
    """
    v, g, dim = call.args[0], call.args[1], int(call.arg("dim"))
    layers = []
    for layer in p.layers(v):
        if dim not in layer.dims:
            p.freeze_where(layer.removed != 0, layer.labels, _NOT_ZERO)
            layers.append(Layer(layer.labels, zero_stays(layer.removed)))
        elif (narrowed := p.narrow_to(layer, (dim,), "")) is not None:
            worth = _couple(p, g, narrowed.labels.reshape(-1))
            p.consume(narrowed.labels)
            layers.append(Layer(narrowed.labels, laid_along(zero_stays(worth), dim, v.ndim)))
    p.put(call.out, layers)


def _over_all(p: Propagation, source: Tensor, layer: Layer) -> None:
    """Statistics over what is left, and over what is gone, which is zero or what the compact graph computes."""
    if (layer.removed != 0).any() and p.can_adjust("norm") and can_compute_in(p, source, layer):
        p.adjust("norm", layer.labels, UNKNOWN)
    else:
        _over_original_count(p, layer)


def _over_original_count(p: Propagation, layer: Layer) -> None:
    p.freeze_where(layer.removed != 0, layer.labels, _NOT_ZERO)
    p.adjust("norm", layer.labels)


def _affine(
    p: Propagation, weight: Tensor | None, bias: Tensor | None, layer: Layer, dim: int, normalised: Tensor = UNKNOWN
) -> Tensor:
    """Couple a norm's weight and bias; the removed value of its result, normalised · weight + bias."""
    # With weight[i] = 0 and bias[i] = 0 the result is 0 whatever the statistics are. Without an affine part it is
    # (0 - mean) / std, which depends on the others.
    worth = UNKNOWN if weight is None else _couple(p, weight, layer.labels.reshape(-1))
    shift = ZERO if bias is None else _couple(p, bias, layer.labels.reshape(-1))
    scaled = torch.where((worth == 0) | (normalised == 0), ZERO, UNKNOWN)
    return laid_along(scaled + shift, dim, layer.labels.ndim)


def _couple(p: Propagation, tensor: Tensor, labels: Tensor) -> Tensor:
    """Unite a per-channel tensor with the channels; its removed value, unknown if it is untracked."""
    layers = p.layers(tensor)
    if not layers:
        if tensor.numel() > 1:
            p.freeze(labels, FIXED)
        return UNKNOWN
    p.unite(labels, layers[0].labels.reshape(-1))
    if p.is_weight(tensor):
        p.produce(layers[0].labels)
    return layers[0].removed.reshape(-1)


def _keep_unmatched(p: Propagation, tensors: Sequence[Tensor | None], layers: Sequence[Layer]) -> None:
    if not layers:
        for tensor in tensors:
            p.freeze_value(tensor, FIXED)


def fewer_groups(edit: Editor, node: Node) -> None:
    """Functional group norm: whole groups went."""
    source = node.args[0]
    groups = edit.argument(node, 1, "num_groups")
    if 1 in edit.cut(source) and groups > 1:
        left = groups * edit.channels(source) // edit.shape(source)[1]  # type: ignore[arg-type]
        edit.set_argument(node, 1, "num_groups", left)


def layer_norm_over_count(edit: Editor, node: Node, count: int, known: Moments | None) -> None:
    """Layer and group norm whose statistics divide by the original count."""
    if node.target not in (group_norm_over, layer_norm_over):  # those count what there was at first
        over = group_norm_over if "group" in op_name(node) else layer_norm_over
        weight, bias = edit.argument(node, 2, "weight"), edit.argument(node, 3, "bias")
        eps = edit.argument(node, 4, "eps", 1e-5)
        node = edit.replace(node, over, node.args[0], count, weight, bias, eps)
    add_known(node, 5, known)


def add_known(node: Node, place: int, known: Moments | None) -> None:
    """Tell a norm what channels were worth that go now, beside those that went in earlier rounds."""
    if known is not None:
        before: Any = node.args[place] if len(node.args) > place else ()
        node.args = (*node.args[:place], [*(before or ()), known])


def batch_norm_over_share(edit: Editor, node: Node, share: float) -> None:
    """Batch norm of the data over channels of which a share is left."""
    if node.target is batch_norm_over:  # two of its dimensions are cut, or it is from an earlier round
        node.update_arg(1, node.args[1] * share)  # type: ignore[operator]
        return
    first = 3 if node.target is F.batch_norm else 1  # torch.batch_norm has another order
    weight, bias = edit.argument(node, first, "weight"), edit.argument(node, first + 1, "bias")
    eps = edit.argument(node, 7, "eps", 1e-5)
    edit.replace(node, batch_norm_over, node.args[0], share, weight, bias, eps)


def rms_norm_over_count(edit: Editor, node: Node, known: Moments | None) -> None:
    """The mean of squares over the original count."""
    if node.target is not rms_norm_over:  # two of its dimensions are cut, or it is from an earlier round
        source, dims = node.args[0], len(edit.argument(node, 1, "normalized_shape"))
        shape = tuple(edit.shape(source)[-dims:])  # type: ignore[arg-type]
        weight, eps = edit.argument(node, 2, "weight"), edit.argument(node, 3, "eps")
        node = edit.replace(node, rms_norm_over, source, shape, weight, eps)
    add_known(node, 4, known)
