"""Rules of dependency analysis: what one ATen op does to provenance layers.

Most ops are recognised by what ATen says of them (``torch.Tag.pointwise``, ``torch.Tag.reduction``,
``is_view``); the table below holds the rest. What is in neither freezes what it touches.
"""

from __future__ import annotations

from typing import Any

import torch

from fx_oto.analysis.engine import Rule
from fx_oto.nn.leaves import OpaqueOp
from fx_oto.nn.modes import by_mode
from fx_oto.nn.recurrence import CELLS, SEQUENCES
from fx_oto.ops import contraction, normalization, pointwise, pooling, recurrence, reductions, refusals
from fx_oto.ops.custom.registration import rule_of
from fx_oto.ops.movement import joining
from fx_oto.ops.movement import rules as movement
from fx_oto.ops.reshape.rules import view

__all__ = ["rule_for"]

_BY_NAME: dict[str, Rule] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), contraction.matmul),
    **dict.fromkeys(("addmm", "baddbmm"), contraction.add_matmul),
    "convolution": contraction.convolution,
    "embedding": contraction.embedding,
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
        normalization.batch_norm,
    ),
    "_batch_norm_with_update": normalization.batch_norm,
    **dict.fromkeys(SEQUENCES, recurrence.sequence),
    **dict.fromkeys(CELLS, recurrence.cell),
    "native_layer_norm": normalization.layer_norm,
    "native_group_norm": normalization.group_norm,
    "_weight_norm_interface": normalization.weight_norm,
    **dict.fromkeys(
        ("clone", "_to_copy", "lift_fresh_copy", "alias", "detach", "detach_", "lift_fresh"), movement.identity
    ),
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "reshape"), view),
    **dict.fromkeys(
        ("flip", "pixel_shuffle", "pixel_unshuffle", "native_channel_shuffle", "channel_shuffle", "repeat"),
        movement.movement,
    ),
    **dict.fromkeys(("index", "index_select"), movement.index),
    "roll": movement.roll,
    "unfold": movement.slide,
    "im2col": pooling.unfold,
    "col2im": pooling.fold,
    "view_as_complex": movement.as_complex,
    "view_as_real": movement.as_real,
    **dict.fromkeys(("_conj", "_neg_view"), movement.negate_parts),
    "cat": joining.concatenate,
    "stack": joining.stack,
    "expand": movement.expand,
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), movement.create),
    "constant_pad_nd": movement.pad,
    "as_strided": refusals.freeze_inputs,
    "copy_": pointwise.overwrite,
    "glu": pointwise.glu,
    **dict.fromkeys(
        ("hardswish", "hardswish_", "_prelu_kernel", "native_dropout", "fill", "fill_", "zero_", "zeros_like",
         "ones_like", "full_like", "rand_like", "randn_like", "empty_like", "bernoulli", "bernoulli_",
         "rrelu_with_noise", "complex", "polar"),
        pointwise.pointwise,
    ),
    **dict.fromkeys(
        ("_softmax", "_safe_softmax", "_log_softmax", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp",
         "sort", "topk", "_fft_r2c", "_fft_c2r", "_fft_c2c"),
        reductions.along,
    ),
    **dict.fromkeys(("tril", "triu"), pooling.triangle),
}  # fmt: skip

_WINDOWS = ("pool", "upsample", "reflection_pad", "replication_pad", "grid_sampler")

_STAND_INS: dict[Any, Rule] = {by_mode: pointwise.join}


def rule_for(op: Any) -> Rule:
    """The rule of an operator: registered, named in the table, or told by ATen's own tags."""
    taught = refusals.opaque if isinstance(op, OpaqueOp) else rule_of(op) or _STAND_INS.get(op)
    if taught is not None:
        return taught
    namespace, _, name = str(op._schema.name).partition("::")
    if namespace == "aten" and (rule := _aten_rule(op, name)):
        return rule
    if torch.Tag.pointwise in op.tags:
        return pointwise.pointwise
    if torch.Tag.reduction in op.tags:
        return reductions.reduction
    if not any("Tensor" in str(arg.type) for arg in op._schema.arguments):
        return movement.create
    return refusals.freeze_inputs


def _aten_rule(op: Any, name: str) -> Rule | None:
    if name in _BY_NAME:
        return _BY_NAME[name]
    if op.is_view:
        return movement.movement
    return pooling.window if any(part in name for part in _WINDOWS) else None
