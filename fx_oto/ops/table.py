"""Rules of dependency analysis: what one ATen op does to provenance layers.

Most ops are recognised by what ATen says of them (``torch.Tag.pointwise``, ``torch.Tag.reduction``,
``is_view``); the table below holds the rest. What is in neither freezes what it touches.
"""

from __future__ import annotations

from typing import Any

import torch

from fx_oto.analysis.engine import Rule
from fx_oto.analysis.result_forms import is_pointwise
from fx_oto.analysis.tape import GROUPED
from fx_oto.nn.leaves import OpaqueOp
from fx_oto.nn.modes import by_mode
from fx_oto.nn.recurrence import CELLS, SEQUENCES
from fx_oto.ops import (
    contraction,
    convolution,
    normalization,
    pairs,
    pointwise,
    pooling,
    quantization,
    recurrence,
    reductions,
    refusals,
)
from fx_oto.ops.custom.registration import rule_of
from fx_oto.ops.movement import joining, rows
from fx_oto.ops.movement import rules as movement
from fx_oto.ops.reshape.rules import view

__all__ = ["rule_for"]

# The names of ops, by their rule: those of ATen, and of other libraries with rules here.
_NAMESPACES = ("aten", "torchvision", "transformers")
_RULES: dict[Rule, str] = {
    contraction.matmul: "mm bmm mv dot vdot",
    contraction.grouped_matmul: " ".join(GROUPED),
    contraction.add_matmul: "addmm addmm_ baddbmm baddbmm_ addmv addmv_ _sparse_addmm",
    convolution.convolution: "convolution",
    convolution.deformed: "deform_conv2d",
    pairs.trilinear: "_trilinear",
    pairs.distance: "_cdist_forward _euclidean_dist",
    pairs.distance_of_rows: "_pdist_forward",
    pairs.distance_of_two: "dist",
    contraction.embedding: "embedding",
    contraction.embedding_bag: "_embedding_bag _embedding_bag_forward_only",
    contraction.embedding_renorm: "embedding_renorm_",
    quantization.fake_quantize: "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fake_quantize_learnable_per_tensor_affine "
    "_fake_quantize_learnable_per_channel_affine",
    quantization.OBSERVED: "_fused_moving_avg_obs_fq_helper",
    normalization.batch_norm: "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "cudnn_batch_norm _batch_norm_with_update",
    normalization.layer_norm: "native_layer_norm",
    normalization.group_norm: "native_group_norm",
    normalization.weight_norm: "_weight_norm_interface",
    recurrence.sequence: " ".join(SEQUENCES),
    recurrence.cell: " ".join(CELLS),
    movement.identity: "clone _to_copy lift_fresh_copy alias detach detach_ lift_fresh",
    movement.movement: "flip rot90 pixel_shuffle pixel_unshuffle native_channel_shuffle channel_shuffle "
    "unsafe_split unsafe_split_with_sizes",
    movement.repeat: "repeat",
    movement.index: "index index_select",
    movement.roll: "roll",
    movement.slide: "unfold",
    movement.expand: "expand",
    movement.create: "new_zeros new_ones new_full new_empty",
    movement.pad: "constant_pad_nd",
    movement.as_complex: "view_as_complex",
    movement.as_real: "view_as_real",
    movement.negate_parts: "_conj _neg_view",
    joining.concatenate: "cat stack",
    rows.by_rows: "gather scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ index_add "
    "index_add_ index_copy index_copy_ index_reduce index_reduce_ index_fill index_fill_",
    rows.at_places: "index_put index_put_ _unsafe_index_put",
    rows.in_order: "masked_scatter masked_scatter_",
    rows.pack: "_pack_padded_sequence",
    rows.unpack: "_pad_packed_sequence",
    view: "view _unsafe_view _reshape_alias reshape",
    pooling.regions: "roi_align roi_pool",
    pooling.unpool: "max_unpool2d max_unpool3d",
    pooling.unfold: "im2col",
    pooling.fold: "col2im",
    pooling.triangle: "tril tril_ triu triu_",
    reductions.reduction: "median nanmedian kthvalue mode",  # which have no tag
    reductions.along: "_softmax _safe_softmax _log_softmax cumsum cumsum_ cumprod cumprod_ cummax cummin logcumsumexp "
    "sort topk _fft_r2c _fft_c2r _fft_c2c",
    reductions.renorm: "renorm renorm_",
    reductions.trace: "trace",
    reductions.loss: "mse_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy "
    "binary_cross_entropy_with_logits",
    pointwise.overwrite: "copy_ fill fill_",
    pointwise.glu: "glu",
    pointwise.pointwise: "floor_divide floor_divide_ rsub masked_fill masked_fill_ log_sigmoid_forward "
    "native_dropout zero_ zeros_like ones_like "
    "full_like rand_like randn_like empty_like bernoulli bernoulli_ rrelu_with_noise rrelu_with_noise_ complex polar "
    "normal_ log_normal_ uniform_ exponential_ cauchy_ geometric_ random_ poisson normal "
    "leaky_relu leaky_relu_ ldexp ldexp_",  # of which torch says so from 2.11 on
    refusals.freeze_inputs: "as_strided",
}
_BY_NAME = {name: rule for rule, names in _RULES.items() for name in names.split()}

_WINDOWS = ("pool", "upsample", "reflection_pad", "replication_pad", "grid_sampler")

_STAND_INS: dict[Any, Rule] = {by_mode: pointwise.join}


def rule_for(op: Any) -> Rule:
    """The rule of an operator: registered, named in the table, or told by ATen's own tags."""
    taught = refusals.OPAQUE if isinstance(op, OpaqueOp) else rule_of(op) or _STAND_INS.get(op)
    if taught is not None:
        return taught
    if not any("Tensor" in str(arg.type) for arg in op._schema.arguments):
        return movement.create
    namespace, _, name = str(op._schema.name).partition("::")
    named = _BY_NAME.get(name) if namespace in _NAMESPACES else None
    if rule := named or (_by_kind(op, name) if namespace == "aten" else None):
        return rule
    if _is_pointwise(op):
        return pointwise.pointwise
    if torch.Tag.reduction in op.tags:
        return reductions.reduction
    return refusals.freeze_inputs


def _is_pointwise(op: Any) -> bool:
    """Whether ATen says so, of what writes into its first argument perhaps only of its twin that returns a tensor."""
    try:
        return is_pointwise(op) or is_pointwise(pointwise.functional(op))
    except AttributeError:
        return False


def _by_kind(op: Any, name: str) -> Rule | None:
    if op.is_view:
        return movement.movement
    return pooling.window if any(part in name for part in _WINDOWS) else None
