"""What elementwise ops and movement return, once what they are given is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from fx_oto.nn import modes
from fx_oto.nn.modes import says_in_place
from fx_oto.ops.branches.known import Known, Writer, zero
from fx_oto.ops.branches.scope import Scope

__all__ = ["BROADCASTING", "IDENTITIES", "added", "broadcast", "by_mode", "dropout", "elementwise", "item"]
__all__ += ["masked", "moved", "multiplied", "out_of_place", "pooled"]


# Ops that combine values of different sizes, by name.
BROADCASTING: dict[str, Callable[..., Any]] = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}
BROADCASTING["truediv"] = torch.div
IDENTITIES = {"Identity", "to", "type_as", "float", "double", "half", "bfloat16", "clone", "contiguous", "detach"}


# -- elementwise -------------------------------------------------------------------------------------------------------


def elementwise(scope: Scope, node: Node) -> Known | None:
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


def added(scope: Scope, node: Node) -> Known | None:
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
    return elementwise(scope, node)


def _the_same(scope: Scope, node: Node, known: Known) -> Known | None:
    """A known value that keeps its number of dimensions and its type."""
    if known.is_zero:
        return zero(node, len(known.shape))
    same = known.node.meta["val"].dtype == node.meta["val"].dtype and len(known.shape) == len(scope.shape(node))
    return Known(node, known.shape, lambda write: write.of(known), (known,), whole=known.whole) if same else None


def multiplied(scope: Scope, node: Node) -> Known | None:
    """A product with a zero is zero, and so is a zero that is divided."""
    factors = scope.operands(node) if scope.name(node) == "mul" else [scope.source(node)]
    if any(known is not None and known.is_zero for known in map(scope.of, factors)):
        return zero(node, len(scope.shape(node)))
    return elementwise(scope, node)


def _stays_zero(scope: Scope, node: Node) -> bool:
    """Whether an elementwise op of one tensor, its first argument, maps zero to zero."""
    if scope.of(scope.source(node)) is None:
        return False
    if scope.name(node) in IDENTITIES:
        return True
    try:
        result = scope.run(node, torch.zeros(1))
    except (RuntimeError, TypeError, AttributeError):
        return False
    return isinstance(result, Tensor) and bool((result == 0).all())


def dropout(scope: Scope, node: Node) -> Known | None:
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


def by_mode(scope: Scope, node: Node) -> Known | None:
    """Of two values that are both known."""
    sides = [scope.of(one) for one in node.args[1:]]
    if node.target is not modes.by_mode or any(one is None for one in sides):
        return None
    known = [one for one in sides if one is not None]
    if all(one.is_zero for one in known):
        return zero(node, len(scope.shape(node)))
    other = next(one for one in known if not one.is_zero)
    if any(one.is_zero for one in known) or len({one.whole for one in known}) > 1:
        return None
    shape = broadcast([one.shape for one in known], len(other.shape))

    def write(writer: Writer) -> Node:
        return writer.function(modes.by_mode, node.args[0], *map(writer.of, known))

    reads = tuple(one for one in node.all_input_nodes[:1] if one is node.args[0])
    return Known(node, shape, write, tuple(known), reads, whole=other.whole)


# -- movement ----------------------------------------------------------------------------------------------------------


def moved(scope: Scope, node: Node) -> Known | None:
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


def masked(scope: Scope, node: Node) -> Known | None:
    """A mask of a family, which hides nothing."""
    known = scope.of(scope.source(node))
    return None if known is None else _the_same(scope, node, known)


def pooled(scope: Scope, node: Node) -> Known | None:
    """Means and the like of zeros are zero."""
    known = scope.of(scope.source(node))
    return zero(node, len(scope.shape(node))) if known is not None and known.is_zero else None


def item(scope: Scope, node: Node) -> Known | None:
    """What attention of torch's returns once no head is left, or a part of a tensor."""
    source = scope.source(node)
    if source is None or isinstance(source.meta.get("val"), Tensor):
        return None if source is None else moved(scope, node)
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
