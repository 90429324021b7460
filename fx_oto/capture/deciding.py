"""What two captures that are alike leave open: whether code may go another way at a third size."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from fx_oto.capture.arguments import length
from fx_oto.capture.calls import takes_list

__all__ = ["is_affine", "may_decide", "may_split_otherwise"]


def may_split_otherwise(left: Node, right: Node) -> bool:
    """Whether what is split into as many parts as before may come in more, or fewer, at a third size.

    That matters where the last part is read; of a single one, where code counts how many there are.
    """
    parts: Any = left.meta.get("val")
    if not isinstance(parts, tuple | list) or not all(isinstance(part, Tensor) for part in parts):
        return False
    if takes_list(left) or left.meta.get("asks_values"):  # what numbers decide does not follow sizes
        return False
    if not any(user.target is length if len(parts) == 1 else _reads(user, len(parts) - 1) for user in left.users):
        return False
    pairs = list(zip(_values(left.all_input_nodes), _values(right.all_input_nodes), strict=True))
    whole = [(mine, theirs) for mine, theirs in pairs if isinstance(mine, Tensor)]
    if len(whole) != 1 or not (dims := _split_along(whole[0][0], parts)):
        return False
    mine, theirs = (tensor.shape for tensor in whole[0])
    numbers = [(one, other) for one, other in pairs if not isinstance(one, Tensor)]
    return any(mine[dim] != theirs[dim] for dim in dims) or any(one != other for one, other in numbers)


def _reads(user: Node, part: int) -> bool:
    """Whether a node reads this part of its argument, or all."""
    return user.target is not operator.getitem or bool(user.args[1] == part)


def _split_along(whole: Tensor, parts: Sequence[Tensor]) -> list[int]:
    """The dimensions along which a tensor may have been split into parts: of a single part, any."""
    if any(part.ndim != whole.ndim for part in parts):  # unbound: another size is another number of parts
        return []
    sizes = list(zip(whole.shape, *(part.shape for part in parts), strict=True))
    cut = [dim for dim, (size, *of_parts) in enumerate(sizes) if any(one != size for one in of_parts)]
    return [dim for dim in cut or range(whole.ndim) if len(cut) < 2 and sizes[dim][0] == sum(sizes[dim][1:])]


def may_decide(left: Node, right: Node) -> bool:
    """Whether what code asked may be answered otherwise at some size, though it was not at two."""
    if left.target not in _COMPARISONS:
        return True
    same = [a == b for a, b in zip(_values(left.args), _values(right.args), strict=False)]
    follow = left.target in (operator.eq, operator.ne) and not any(same)  # both sides follow the size
    return not ((follow or all(same)) and is_affine(left))


def is_affine(node: Node) -> bool:
    """Whether it is made of sizes by sums and differences: what is alike at two sizes then always is."""
    numbers = [read for read in node.all_input_nodes if read.meta.get("is_number")]
    plain = node.target in (*_COMPARISONS, operator.add, operator.sub, operator.neg, "size")
    return plain and all(map(is_affine, numbers))


_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)


def _values(args: Any) -> list[Any]:
    return [one.meta.get("val") if isinstance(one, Node) else one for one in args]
