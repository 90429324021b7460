"""What is known of a node's value, once it is known of some that it reads; one rule for each kind of op.

An op without a rule returns what is not known. A thin value ``(1, 1, C)`` stands for one of ``(N, L, C)``: most rules
make the call itself on the thin value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fx_oto.nn.modes import by_mode, says_in_place
from fx_oto.ops.branches.known import Known, Writer, zero
from fx_oto.ops.branches.scope import Scope

__all__ = ["BROADCASTING", "CHANNELS_FIRST", "CHANNELS_LAST", "SAME_FORM", "broadcast", "known_of", "out_of_place"]

Rule = Callable[[Scope, Node], "Known | None"]


def known_of(scope: Scope, node: Node) -> Known | None:
    """What is known of a node's value."""
    if not node.op.startswith("call_") or not isinstance(node.meta.get("val"), Tensor) or node in scope.blocked:
        return None
    if scope.gone.is_zero(node):
        return zero(node, node.meta["val"].ndim)
    if not node.args:  # what it works on is given by name
        return None
    if node.op == "call_module" and (scope.module(node)._forward_hooks or scope.module(node)._forward_pre_hooks):
        return None
    rule = _RULES.get(scope.name(node))
    return None if rule is None else rule(scope, node)


# -- contractions ------------------------------------------------------------------------------------------------------


def _linear(scope: Scope, node: Node) -> Known | None:
    source = scope.source(node)
    known = scope.of(source)
    if known is None or known.whole or source is None:
        return None
    ndim = len(scope.shape(node))
    if known.is_zero:
        return _bias(scope, node, ndim, ndim - 1, scope.argument(node, 2, "bias"))
    if node.op == "call_module" and not isinstance(scope.module(node), nn.Linear):
        return None
    return _called(scope, node, known, (*known.shape[:-1], scope.shape(node)[-1]), full=(ndim - 1,))


def _convolution(scope: Scope, node: Node) -> Known | None:
    source = scope.source(node)
    known = scope.of(source)
    if known is None or known.whole or source is None:
        return None
    module = scope.module(node) if node.op == "call_module" else None
    weight: Tensor = scope.argument(node, 1, "weight").meta["val"] if module is None else module.weight  # type: ignore[assignment]
    spatial = weight.ndim - 2
    channel = len(scope.shape(node)) - spatial - 1  # an image may be without a batch
    if known.is_zero:
        return _bias(scope, node, channel + spatial + 1, channel, scope.argument(node, 2, "bias"))
    if not isinstance(module, _ConvNd) or isinstance(module, _ConvTransposeNd) or set(module.kernel_size) != {1}:
        return None  # at a border, zeros that are padded come in
    padded = module.padding not in ("same", "valid") and any(module.padding)
    if padded or math.prod(known.shape[channel + 1 :]) != 1:
        return None
    shape = (*known.shape[:channel], scope.shape(node)[channel], *(1,) * spatial)
    return _called(scope, node, known, shape, full=(channel,))


def _bias(scope: Scope, node: Node, ndim: int, dim: int, given: Any) -> Known | None:
    """The bias along one dimension; zero where there is none."""
    view = [-1 if one == dim else 1 for one in range(ndim)]
    if node.op != "call_module":
        if given is None:
            return zero(node, ndim)
        shape = tuple(scope.shape(given)[0] if one == dim else 1 for one in range(ndim))
        return Known(node, shape, lambda write: write.method("view", given, view), reads=(given,))
    module = scope.module(node)
    if "bias" not in module._parameters:  # it is computed, as of a parametrized module
        return None
    bias, name = module._parameters["bias"], f"{node.target}.bias"
    if bias is None:
        return zero(node, ndim)
    shape = tuple(len(bias) if one == dim else 1 for one in range(ndim))
    return Known(node, shape, lambda write: write.method("view", write.tensor(name), view), holds=(name,))


def _product(scope: Scope, node: Node) -> Known | None:
    """Of matrices: zero, if one of them is."""
    if not any(known is not None and known.is_zero for known in map(scope.of, scope.operands(node))):
        return None
    return zero(node, len(scope.shape(node)))


def _added_product(scope: Scope, node: Node) -> Known | None:
    left, right = (scope.of(scope.argument(node, i, name)) for i, name in ((1, "mat1"), (2, "mat2")))
    added = scope.source(node)
    gone = (left is not None and left.is_zero) or (right is not None and right.is_zero)
    if not gone or added is None or node.kwargs or len(scope.shape(added)) > 1:
        return None
    return Known(node, (1, *scope.shape(added)), lambda write: write.method("unsqueeze", added, 0), reads=(added,))


def _attention(scope: Scope, node: Node) -> Known | None:
    known = scope.of(scope.argument(node, 2, "value"))
    return zero(node, len(scope.shape(node))) if known is not None and known.is_zero else None


def _called(
    scope: Scope, node: Node, known: Known, shape: tuple[int, ...], full: tuple[int, ...] = (), once: bool = False
) -> Known:
    """The call itself on the thin value of its first argument, made full along the dimensions that it runs over."""
    sizes = [scope.shape(node.args[0])[dim] if dim in full else -1 for dim in range(len(known.shape))]  # type: ignore[arg-type]
    expand = any(known.shape[dim] != sizes[dim] for dim in full)

    def write(writer: Writer) -> Node:
        value = writer.of(known)
        value = writer.method("expand", value, *sizes) if expand else value
        if says_in_place(node):
            value = writer.method("clone", value)
        return writer.call(node, (value, *node.args[1:]), node.kwargs)

    reads = tuple(one for one in node.all_input_nodes if one is not node.args[0])
    module = str(node.target) if node.op == "call_module" else None
    return Known(node, shape, write, (known,), reads, module=module, once=once)


# -- norms -------------------------------------------------------------------------------------------------------------


def _batch_norm(scope: Scope, node: Node) -> Known | None:
    """The norm itself of two examples: the mean is that of all, the variance 0, and so are its running statistics."""
    known, shape = scope.of(scope.source(node)), scope.shape(node)
    statistics = _statistics(scope, node)
    if known is None or statistics is None or known.shape[:1] + known.shape[2:] != (1,) * (len(shape) - 1):
        return None
    thin = (1, shape[1], *(1,) * (len(shape) - 2))

    def write(writer: Writer) -> Node:
        sizes = (2, *thin[1:])
        if known.is_zero:
            held = writer.tensor(statistics) if isinstance(statistics, str) else statistics
            value = writer.method("new_zeros", held, sizes)
        else:
            value = writer.method("expand", writer.of(known), *sizes)
        return writer.method("narrow", writer.call(node, (value, *node.args[1:]), node.kwargs), 0, 0, 1)

    parents = () if known.is_zero else (known,)
    reads = tuple(one for one in node.all_input_nodes if one is not node.args[0])
    module = str(node.target) if node.op == "call_module" else None
    return Known(node, thin, write, parents, reads, module=module, once=True)


def _statistics(scope: Scope, node: Node) -> str | Node | None:
    """The running mean of a batch norm, by name or as a node; None where there is none."""
    if node.op != "call_module":
        given = scope.argument(node, 1, "running_mean")
        return given if isinstance(given, Node) and len(node.args) < 9 else None
    module = scope.module(node)
    kept = isinstance(module, _BatchNorm) and module.running_mean is not None
    return f"{node.target}.running_mean" if kept else None


def _layer_norm(scope: Scope, node: Node) -> Known | None:
    known, ndim = scope.of(scope.source(node)), len(scope.shape(node))
    if known is None or known.whole:
        return None
    if node.op != "call_module":
        dims = len(node.args[1]) if isinstance(node.args[1], tuple | list) else 1
        bias = scope.argument(node, 3, "bias")
    else:
        module = scope.module(node)
        dims = len(module.normalized_shape) if hasattr(module, "normalized_shape") else 1  # type: ignore[arg-type]
        bias = None if module._parameters.get("bias") is None else f"{node.target}.bias"
    shape = (1,) * (ndim - dims) + scope.shape(node)[ndim - dims :]
    if not known.is_zero:
        shape = known.shape[: ndim - dims] + shape[ndim - dims :]
        return _called(scope, node, known, shape, full=tuple(range(ndim - dims, ndim)))
    if bias is None:
        return zero(node, ndim)

    def write(writer: Writer) -> Node:
        value = writer.tensor(bias) if isinstance(bias, str) else bias
        sizes = (-1,) if dims == 1 else shape[ndim - dims :]
        return writer.method("view", value, (*(1,) * (ndim - dims), *sizes))

    held = isinstance(bias, str)
    return Known(node, shape, write, reads=() if held else (bias,), holds=(bias,) if held else ())


def _rms_norm(scope: Scope, node: Node) -> Known | None:
    known = scope.of(scope.source(node))
    return zero(node, len(scope.shape(node))) if known is not None and known.is_zero else None


# -- elementwise -------------------------------------------------------------------------------------------------------


def _elementwise(scope: Scope, node: Node) -> Known | None:
    """The call on thin values, where all that it reads together is smaller than the result."""
    read = scope.operands(node)
    known = [one for one in map(scope.of, read) if one is not None]
    if not known:
        return None
    if len(read) == 1 and known[0].is_zero:
        return zero(node, len(scope.shape(node))) if _stays_zero(scope, node) else None
    if any(one.is_zero for one in known):
        return None
    return _combined(scope, node)


def _combined(scope: Scope, node: Node) -> Known | None:
    """The same call of thin values and of others; None where it needs the full size, or reads a zero."""
    full, ndim = scope.shape(node), len(scope.shape(node))
    found = {one: scope.of(one) for one in scope.operands(node)}
    others = [one for one, known in found.items() if known is None]
    parents = tuple(known for known in found.values() if known is not None)
    if any(known.is_zero for known in parents):
        return None
    shapes = [known.shape for known in parents] + [scope.shape(one) for one in others]
    whole = any(known.whole for known in parents)
    if not whole and broadcast(shapes, ndim) == full:
        return None
    if whole and broadcast([scope.shape(one) for one in others], ndim) == full:
        return None

    def write(writer: Writer) -> Node:
        def read(one: Node) -> Node:
            known = found.get(one)
            return one if known is None else writer.of(known)

        args, kwargs = map_arg((node.args, node.kwargs), read)
        if says_in_place(node):
            args = (writer.method("clone", args[0]), *args[1:])
            if node.op != "call_module" and len(found) > 1:
                return out_of_place(writer, node, args, kwargs)
        return writer.call(node, args, kwargs)

    shape = full if whole else broadcast(shapes, ndim)
    reads = tuple(one for one in node.all_input_nodes if found.get(one) is None)
    module = str(node.target) if node.op == "call_module" else None
    return Known(node, shape, write, parents, reads, module=module, whole=whole)


def out_of_place(writer: Writer, node: Node, args: Any, kwargs: Any) -> Node:
    """What ``a += b`` and ``a.add_(b)`` return, where b may be larger than a."""
    return writer.function(BROADCASTING[_plain(node)], *args, **kwargs)


def _plain(node: Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return _NAMES.get(name, name.rstrip("_"))


_NAMES = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "truediv": "div"}


def _sum(scope: Scope, node: Node) -> Known | None:
    """Of a zero and a known value: that value. A zero and what is not known is for ``Sink``."""
    read = scope.operands(node)
    known = [scope.of(one) for one in read]
    if len(read) == 2 and len(node.all_input_nodes) == 2 and all(one is not None for one in known):
        left, right = known
        assert left is not None
        assert right is not None
        if left.is_zero and right.is_zero:
            return zero(node, len(scope.shape(node)))
        if right.is_zero or (left.is_zero and scope.name(node) == "add" and "alpha" not in node.kwargs):
            return _the_same(scope, node, left if right.is_zero else right)
    return _elementwise(scope, node)


def _the_same(scope: Scope, node: Node, known: Known) -> Known | None:
    """A known value that keeps its number of dimensions and its type."""
    if known.is_zero:
        return zero(node, len(known.shape))
    same = known.node.meta["val"].dtype == node.meta["val"].dtype and len(known.shape) == len(scope.shape(node))
    return Known(node, known.shape, lambda write: write.of(known), (known,), whole=known.whole) if same else None


def _times(scope: Scope, node: Node) -> Known | None:
    factors = scope.operands(node) if scope.name(node) == "mul" else [scope.source(node)]
    if any(known is not None and known.is_zero for known in map(scope.of, factors)):
        return zero(node, len(scope.shape(node)))
    return _elementwise(scope, node)


def _stays_zero(scope: Scope, node: Node) -> bool:
    """Whether an elementwise op of one tensor, its first argument, maps zero to zero."""
    if scope.of(scope.source(node)) is None:
        return False
    if scope.name(node) in _IDENTITIES:
        return True
    try:
        result = scope.run(node, torch.zeros(1))
    except (RuntimeError, TypeError, AttributeError):
        return False
    return isinstance(result, Tensor) and bool((result == 0).all())


def _dropout(scope: Scope, node: Node) -> Known | None:
    """Zeros stay zero. Of other values each is kept or dropped by itself, so the full size is needed."""
    source = scope.source(node)
    known = scope.of(source)
    if known is None or source is None:
        return None
    if known.is_zero:
        return zero(node, len(scope.shape(node)))
    rate = getattr(scope.module(node), "p", None) if node.op == "call_module" else scope.argument(node, 1, "p")
    if rate == 0:
        return _the_same(scope, node, known)

    def write(writer: Writer) -> Node:
        return writer.call(node, (writer.full(known), *node.args[1:]), node.kwargs)

    reads = tuple(one for one in node.all_input_nodes if one is not source)
    module = str(node.target) if node.op == "call_module" else None
    in_place = says_in_place(node)
    if in_place:
        return None
    return Known(node, scope.shape(node), write, (known,), reads, module=module, whole=True, once=True)


def _by_mode(scope: Scope, node: Node) -> Known | None:
    """Of two values that are both known."""
    sides = [scope.of(one) for one in node.args[1:]]
    if node.target is not by_mode or any(one is None for one in sides):
        return None
    known = [one for one in sides if one is not None]
    if all(one.is_zero for one in known):
        return zero(node, len(scope.shape(node)))
    other = next(one for one in known if not one.is_zero)
    if any(one.is_zero for one in known) or len({one.whole for one in known}) > 1:
        return None
    shape = broadcast([one.shape for one in known], len(other.shape))

    def write(writer: Writer) -> Node:
        return writer.function(by_mode, node.args[0], *map(writer.of, known))

    reads = tuple(one for one in node.all_input_nodes[:1] if one is node.args[0])
    return Known(node, shape, write, tuple(known), reads, whole=other.whole)


# -- movement ----------------------------------------------------------------------------------------------------------


def _moved(scope: Scope, node: Node) -> Known | None:
    """A thin value, moved as the full one would be, where that keeps its elements in order."""
    source = scope.source(node)
    known = scope.of(source)
    if known is None or source is None or known.whole or len(scope.operands(node)) != 1:
        return None
    shape = scope.shape(node)
    if known.is_zero:
        return zero(node, len(shape))
    numbers = torch.arange(math.prod(known.shape)).view(known.shape)
    try:
        moved = scope.run(node, numbers.expand(scope.shape(source)).contiguous())
    except (RuntimeError, TypeError):  # it reads what only a run of the graph tells
        return None
    thin = _compressed(moved) if isinstance(moved, Tensor) and tuple(moved.shape) == shape else None
    if thin is None or not torch.equal(thin.reshape(-1), numbers.reshape(-1)):
        return None
    sizes = tuple(thin.shape)
    return Known(node, sizes, lambda write: write.method("reshape", write.of(known), sizes), (known,))


def _compressed(tensor: Tensor) -> Tensor:
    for dim, size in enumerate(tensor.shape):
        first = tensor.narrow(dim, 0, 1) if size else tensor
        if size > 1 and torch.equal(first.expand_as(tensor), tensor):
            tensor = first
    return tensor


def _masked(scope: Scope, node: Node) -> Known | None:
    known = scope.of(scope.source(node))
    return None if known is None else _the_same(scope, node, known)


def _pooled(scope: Scope, node: Node) -> Known | None:
    known = scope.of(scope.source(node))
    return zero(node, len(scope.shape(node))) if known is not None and known.is_zero else None


def _item(scope: Scope, node: Node) -> Known | None:
    """What attention of torch's returns once no head is left, or a part of a tensor."""
    source = scope.source(node)
    if source is None or isinstance(source.meta.get("val"), Tensor):
        return None if source is None else _moved(scope, node)
    if source.op != "call_module" or node.args[1] != 0 or type(scope.module(source)).__name__ not in _HEADS:
        return None
    name = str(source.target)
    if not scope.gone.holds(f"{name}.in_proj_weight", 0):
        return None
    ndim = len(scope.shape(node))
    bias = scope.gm.get_submodule(name).out_proj.bias  # type: ignore[union-attr]
    if bias is None:
        return zero(node, ndim)
    tensor, view = f"{name}.out_proj.bias", [*(1,) * (ndim - 1), -1]
    shape = (*(1,) * (ndim - 1), len(bias))  # type: ignore[arg-type]
    return Known(node, shape, lambda write: write.method("view", write.tensor(tensor), view), holds=(tensor,))


_HEADS = ("MultiheadAttention", "FewerHeads")


def broadcast(shapes: list[tuple[int, ...]], ndim: int) -> tuple[int, ...]:
    """The shape of values of these shapes together, of ``ndim`` dimensions."""
    aligned = [(1,) * (ndim - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(max(sizes) for sizes in zip(*aligned, strict=True)) if aligned else (1,) * ndim


# Ops that combine values of different sizes, by name.
BROADCASTING: dict[str, Callable[..., Any]] = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}
BROADCASTING["truediv"] = torch.div
_IDENTITIES = {"Identity", "to", "type_as", "float", "double", "half", "bfloat16", "clone", "contiguous", "detach"}
_NAMED: dict[Rule, str] = {
    _linear: "Linear linear",
    _convolution: "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d conv1d conv2d conv3d "
    "conv_transpose1d conv_transpose2d conv_transpose3d convolution",
    _product: "matmul mm bmm einsum mv dot",
    _added_product: "addmm",
    _attention: "scaled_dot_product_attention",
    _batch_norm: "BatchNorm1d BatchNorm2d BatchNorm3d batch_norm",
    _layer_norm: "LayerNorm LayerNormOver layer_norm layer_norm_over",
    _rms_norm: "RMSNorm RMSNormOver rms_norm rms_norm_over",
    _sum: "add sub",
    _times: "mul div truediv",
    _elementwise: "relu gelu silu sigmoid hardsigmoid hardswish tanh relu6 leaky_relu elu selu celu mish softplus neg "
    "abs exp sqrt square pow clamp ReLU GELU SiLU Sigmoid Hardsigmoid Hardswish Tanh ReLU6 LeakyReLU ELU SELU CELU "
    "Mish Softplus Hardtanh " + " ".join(sorted(_IDENTITIES)),
    _dropout: "Dropout Dropout1d Dropout2d Dropout3d dropout dropout1d dropout2d dropout3d DropPath StochasticDepth",
    _by_mode: "by_mode",
    _moved: "view reshape permute transpose flatten unflatten unsqueeze squeeze expand movedim moveaxis swapaxes roll "
    "flip narrow select slice Flatten Unflatten T mT",
    _item: "getitem",
    _masked: "Masks",
    _pooled: "mean sum AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AvgPool1d AvgPool2d AvgPool3d MaxPool2d "
    "adaptive_avg_pool1d adaptive_avg_pool2d avg_pool2d max_pool2d interpolate Upsample",
}
# By what they do to sizes: those before the last dimension stay, that of the batch does, all do.
CHANNELS_LAST = set(_NAMED[_linear].split())
CHANNELS_FIRST = set(_NAMED[_convolution].split())
_SAME = (_batch_norm, _layer_norm, _rms_norm, _sum, _times, _elementwise, _dropout, _by_mode)
SAME_FORM = {"Masks"}.union(*(_NAMED[one].split() for one in _SAME))
_RULES = {name: rule for rule, names in _NAMED.items() for name in names.split()}
