"""What is known of a node's value, once it is known of some that it reads; one rule for each kind of op.

An op without a rule returns what is not known. A thin value ``(1, 1, C)`` stands for one of ``(N, L, C)``: most rules
make the call itself on the thin value.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.fx import Node

from fx_oto.nn.modules import is_torchs
from fx_oto.ops.branches import elementwise as each
from fx_oto.ops.branches import layers
from fx_oto.ops.branches.known import Known, zero
from fx_oto.ops.branches.scope import Scope

__all__ = ["CHANNELS_FIRST", "CHANNELS_LAST", "SAME_FORM", "known_of"]

Rule = Callable[[Scope, Node], "Known | None"]


def known_of(scope: Scope, node: Node) -> Known | None:
    """What is known of a node's value."""
    if not node.op.startswith("call_") or not isinstance(node.meta.get("val"), Tensor) or node in scope.blocked:
        return None
    if scope.gone.is_zero(node):
        return zero(node, node.meta["val"].ndim)
    if not node.args:  # what it works on is given by name
        return None
    if node.op == "call_module" and not _is_known(scope.module(node)):
        return None
    rule = _RULES.get(scope.name(node))
    return None if rule is None else rule(scope, node)


def _is_known(module: nn.Module) -> bool:
    """Whether a module does what its class is called: a user's own may be called anything, and hooks do more."""
    kind = type(module)
    own = is_torchs(kind) or kind.__module__.startswith("fx_oto.")
    return own and not (module._forward_hooks or module._forward_pre_hooks)


_NAMED: dict[Rule, str] = {
    layers.linear: "Linear linear",
    layers.convolution: "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d conv1d conv2d conv3d "
    "conv_transpose1d conv_transpose2d conv_transpose3d convolution",
    layers.product: "matmul mm bmm einsum mv dot",
    layers.added_product: "addmm",
    layers.attention: "scaled_dot_product_attention",
    layers.batch_norm: "BatchNorm1d BatchNorm2d BatchNorm3d batch_norm",
    layers.layer_norm: "LayerNorm LayerNormOver layer_norm layer_norm_over",
    layers.rms_norm: "RMSNorm RMSNormOver rms_norm rms_norm_over",
    each.added: "add sub",
    each.multiplied: "mul div truediv",
    each.elementwise: "relu gelu silu sigmoid hardsigmoid hardswish tanh relu6 leaky_relu elu selu celu mish softplus "
    "neg abs exp sqrt square pow clamp ReLU GELU SiLU Sigmoid Hardsigmoid Hardswish Tanh ReLU6 LeakyReLU ELU SELU "
    "CELU Mish Softplus Hardtanh " + " ".join(sorted(each.IDENTITIES)),
    each.dropout: "Dropout Dropout1d Dropout2d Dropout3d dropout dropout1d dropout2d dropout3d",
    each.by_mode: "by_mode",
    each.moved: "view reshape permute transpose flatten unflatten unsqueeze squeeze expand movedim moveaxis swapaxes "
    "roll flip narrow select slice Flatten Unflatten T mT",
    each.item: "getitem",
    each.masked: "Masks",
    each.pooled: "mean sum AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AvgPool1d AvgPool2d AvgPool3d "
    "MaxPool2d "
    "adaptive_avg_pool1d adaptive_avg_pool2d avg_pool2d max_pool2d interpolate Upsample",
}
# By what they do to sizes: those before the last dimension stay, that of the batch does, all do.
CHANNELS_LAST = set(_NAMED[layers.linear].split())
CHANNELS_FIRST = set(_NAMED[layers.convolution].split())
_SAME: tuple[Rule, ...] = (layers.batch_norm, layers.layer_norm, layers.rms_norm, each.added, each.multiplied)
_SAME += (each.elementwise, each.dropout, each.by_mode)
SAME_FORM = {"Masks"}.union(*(_NAMED[one].split() for one in _SAME))
_RULES = {name: rule for rule, names in _NAMED.items() for name in names.split()}
