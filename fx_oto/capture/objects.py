"""Objects of any class, in the place of which a graph has a node that makes one like them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import Node
from torch.fx.node import base_types

from fx_oto.errors import TraceError
from fx_oto.graph import tensor_leaves
from fx_oto.modules import is_torchs

if TYPE_CHECKING:
    from fx_oto.capture.writer import Writer

__all__ = ["Rebuilt", "as_size", "node_of_object"]


class Rebuilt(nn.Module):
    """Makes an object like another, of the same class, with other things in it.

    Args:
        empty: such an object with nothing in it.
    """

    def __init__(self, empty: Any) -> None:
        super().__init__()
        self._empty = (empty,)

    def forward(self, items: Mapping[Any, Any]) -> Any:
        """The object: a mapping of these items, or one that has them as attributes."""
        made = copy.copy(self._empty[0])
        (made if isinstance(made, dict) else made.__dict__).update(items)
        return made


def as_size(sizes: list[int]) -> torch.Size:
    """The sizes of a tensor, as torch returns them."""
    return torch.Size(sizes)


def node_of_object(run: Writer, value: Any) -> Any:
    """The node that makes an object; what a graph can hold as it is, is returned.

    Raises:
        TraceError: a graph can neither hold nor make it.
    """
    kind: Any = type(value)
    if isinstance(value, (*base_types, range)) or value is ... or kind.__module__ == "builtins" or is_torchs(kind):
        if isinstance(value, nn.Module | torch.Generator) and not isinstance(value, int | float):
            raise TraceError(f"a graph cannot hold an object of class {kind.__name__}")
        return value
    if hasattr(value, "item") and kind.__module__ == "numpy":
        return value.item()
    node = _made(run, kind, value)
    node.meta["val"], node.meta["is_wrapped"] = value, True
    return node


def _made(run: Writer, kind: Any, value: Any) -> Node:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return run.create("call_function", kind, tuple(map(run.nodes, value)))
    if isinstance(value, tuple | list):
        return run.create("call_function", kind, (list(map(run.nodes, value)),))
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        items = value if isinstance(value, dict) else {name: getattr(value, name) for name in fields}  # a ModelOutput
        return run.create("call_function", kind, (), {name: run.nodes(one) for name, one in items.items()})
    if isinstance(value, dict):
        items = {key: run.nodes(one) for key, one in value.items()}
        if _is_made_of_items(kind, value):
            return run.create("call_function", kind, (list(items.items()),))
        empty = copy.copy(value)
        empty.clear()
        return _rebuilt(run, empty, items)
    if type(getattr(value, "__dict__", None)) is dict and not callable(value) and tensor_leaves(vars(value)):
        return _rebuilt(run, kind.__new__(kind), {name: run.nodes(one) for name, one in vars(value).items()})
    raise TraceError(f"a graph cannot hold an object of class {kind.__name__}")


def _is_made_of_items(kind: Any, value: dict[Any, Any]) -> bool:
    """Whether a mapping is what its class makes of its items."""
    try:
        made = kind(list(value.items()))
    except Exception:  # whatever a class raises of arguments that it does not take
        return False
    same = list(made) == list(value) and all(made[key] is one for key, one in value.items())
    return same and vars(made) == vars(value) if hasattr(value, "__dict__") else same


def _rebuilt(run: Writer, empty: Any, items: dict[Any, Any]) -> Node:
    name = f"made_{sum(isinstance(one, Rebuilt) for one in run.held.values())}"
    run.held[name] = Rebuilt(empty)
    return run.create("call_module", name, (items,))
