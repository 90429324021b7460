"""Rows of one tensor that code joins again: ``torch.cat(list(x))`` is ``x.flatten(0, 1)``, however many there are."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fx_oto.capture.calls import LISTS, name_of, without_memory
from fx_oto.capture.recorder import Recorder
from fx_oto.capture.sheet import Item
from fx_oto.core.fx_utils import op_name

__all__ = ["rejoined"]


def rejoined(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """``cat`` and ``stack`` of all rows of a tensor, in their order, as a graph that does not count them."""
    given = {**dict(zip(("tensors", "dim"), args, strict=False)), **kwargs}
    rows, dim = without_memory(given.pop("tensors", None)), without_memory(given.pop("dim", 0))
    whole = _whole_of(run, rows) if type(rows) in LISTS and rows and not given and dim == 0 else None
    if whole is None or (whole.ndim < 2 and name_of(func) != "stack"):
        return NotImplemented
    run.is_plain = False
    copy = run.record(torch.clone, "clone", (whole,), {"memory_format": torch.contiguous_format})
    return copy if name_of(func) == "stack" else run.record(torch.flatten, "flatten", (copy, 0, 1), {})


def _whole_of(run: Recorder, rows: Any) -> Tensor | None:
    """The tensor of which these are all rows, as it was when it was taken apart."""
    places = [_place(run.places.get(id(row))) for row in rows]
    taken = places[0][0] if places[0] is not None else None
    if taken is None or op_name(taken) != "unbind" or places != [(taken, at) for at in range(len(taken.meta["val"]))]:
        return None
    source, *dims = (*taken.args, *taken.kwargs.values())
    if not isinstance(source, Node) or dims not in ([], [0]):
        return None
    whole: Tensor = source.meta["val"]
    is_as_it_was = run.places.get(id(whole)) is source
    learns = {run.differentiable(one) for one in (whole, *rows)}
    return whole if is_as_it_was and len(learns) == 1 else None


def _place(place: Node | Item | None) -> tuple[Node, Any] | None:
    """Which part of which node's value a tensor is, if it is one."""
    if isinstance(place, Item):
        return place.parent, place.key
    if place is None or place.target is not operator.getitem or not isinstance(place.args[0], Node):
        return None
    return place.args[0], place.args[1]
