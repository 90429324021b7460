"""Where a size of a value that is not computed any more can be read instead."""

from __future__ import annotations

from torch.fx import Node

from fx_oto.core.fx_utils import op_name
from fx_oto.ops.branches.rules import CHANNELS_FIRST, CHANNELS_LAST, SAME_FORM
from fx_oto.ops.branches.scope import Scope

__all__ = ["Size", "read_size", "size_of"]

# A number, a node that returns it, or a node and the dimension of its value that has this size.
Size = int | Node | tuple[Node, int]


def read_size(node: Node) -> tuple[Node, int] | None:
    """What a node reads the size of, and of which dimension; None if it does something else."""
    if op_name(node) not in ("size", "sym_size") or len(node.args) != 2:
        return None
    source, dim = node.args
    if not isinstance(source, Node) or not isinstance(dim, int):
        return None
    return source, dim % source.meta["val"].ndim


def size_of(scope: Scope, node: Node, dim: int) -> Size | None:
    """Follow a dimension of a value back as far as it goes; None where that ends at a value that is not computed.

    Example: queries are ``proj(x).view(batch, length, heads, width).transpose(1, 2)``; their size in dimension 2 is the
    node ``length``, and that in dimension 0 the node ``batch``.
    """
    while node.op.startswith("call_"):
        name, source = scope.name(node), scope.source(node)
        if source is not None and name in ("view", "reshape"):
            given = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
            size = given[dim]
            if isinstance(size, Node) or (isinstance(size, int) and size >= 0):
                return size
        step = None if source is None else _back(scope, node, source, name, dim)
        if step is None:
            break
        node, dim = step
    return None if node in scope.known else (node, dim)


def _back(scope: Scope, node: Node, source: Node, name: str, dim: int) -> tuple[Node, int] | None:
    """The operand that has a size in common with what a node returns, and where."""
    ndim = len(scope.shape(node))
    if name == "transpose":
        swapped = [dim % ndim for dim in node.args[1:3] if isinstance(dim, int)]
        return (source, swapped[1 - swapped.index(dim)] if dim in swapped else dim) if len(swapped) == 2 else None
    if name == "permute":
        order = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        return source, int(order[dim]) % ndim  # type: ignore[arg-type]
    if name in SAME_FORM:
        same = (one for one in scope.operands(node) if scope.shape(one) == scope.shape(node))
        found = next(same, None)
        return None if found is None else (found, dim)
    kept = (name in CHANNELS_LAST and dim < ndim - 1) or (name in CHANNELS_FIRST and dim == 0)
    return (source, dim) if kept else None
