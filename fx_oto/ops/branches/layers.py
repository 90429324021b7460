"""What contractions and norms return, once what they are given is known."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fx_oto.nn.modes import says_in_place
from fx_oto.ops.branches.known import Known, Writer, zero
from fx_oto.ops.branches.scope import Scope

__all__ = ["added_product", "attention", "batch_norm", "convolution", "layer_norm", "linear", "product", "rms_norm"]


# -- contractions ------------------------------------------------------------------------------------------------------


def linear(scope: Scope, node: Node) -> Known | None:
    """Of zeros the bias; of a thin value the call itself, where its features are."""
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


def convolution(scope: Scope, node: Node) -> Known | None:
    """Of zeros the bias; of a thin value the call itself, where its kernel is a point."""
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


def product(scope: Scope, node: Node) -> Known | None:
    """Of matrices: zero, if one of them is."""
    if not any(known is not None and known.is_zero for known in map(scope.of, scope.operands(node))):
        return None
    return zero(node, len(scope.shape(node)))


def added_product(scope: Scope, node: Node) -> Known | None:
    """What is added, if a matrix is zero."""
    left, right = (scope.of(scope.argument(node, i, name)) for i, name in ((1, "mat1"), (2, "mat2")))
    added = scope.source(node)
    gone = (left is not None and left.is_zero) or (right is not None and right.is_zero)
    if not gone or added is None or node.kwargs or len(scope.shape(added)) > 1:
        return None
    return Known(node, (1, *scope.shape(added)), lambda write: write.method("unsqueeze", added, 0), reads=(added,))


def attention(scope: Scope, node: Node) -> Known | None:
    """Zero, if the values are."""
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


def batch_norm(scope: Scope, node: Node) -> Known | None:
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


def layer_norm(scope: Scope, node: Node) -> Known | None:
    """Of zeros the bias; of a thin value the call itself."""
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


def rms_norm(scope: Scope, node: Node) -> Known | None:
    """Of zeros zero."""
    known = scope.of(scope.source(node))
    return zero(node, len(scope.shape(node))) if known is not None and known.is_zero else None
