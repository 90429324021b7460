"""What a capture says of the sizes of its inputs, looked up by the call that has others."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from explaining import portable
from networks import Call
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fx_oto

__all__ = ["Claims"]

Dim = tuple[str, int]  # name of an input, dimension


class Claims:
    """Of the sizes in which a call differs from the example inputs: whether they are open or fixed, and why."""

    def __init__(self, capture: fx_oto.Capture, model: nn.Module, example: Call) -> None:
        self._sizes = capture.sizes
        self._model, self._example = model, list(self._dims(model, example))

    def changed(self, call: Call) -> set[Dim]:
        """The dimensions whose size is not that of the example."""
        pairs = zip(self._example, self._dims(self._model, call), strict=True)
        return {dim for (dim, size), (_, other) in pairs if size != other}

    def on(self, call: Call) -> str | None:
        """``"any"``, ``"fixed: why"``, ``"decided: why"``, or None if nothing is said of the sizes that differ."""
        changed = self.changed(call)
        said = [size for size in self._sizes if any(_is_part(dim, other) for dim in size.dims for other in changed)]
        if not said:
            return None
        fixed = dict.fromkeys(size.fixed for size in said if size.fixed)
        decided = dict.fromkeys(size.decided for size in said if size.decided)
        said_of = {"fixed": fixed, "decided": decided}
        return next((f"{how}: {portable('; '.join(why))}" for how, why in said_of.items() if why), "any")

    @staticmethod
    def _dims(model: nn.Module, call: Call) -> Iterator[tuple[Dim, int]]:
        """Every dimension of every tensor, by the name of the argument that holds it, with its size."""
        for name, value in _arguments(model, call):
            for tensor in (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)):
                yield from (((name, dim), size) for dim, size in enumerate(tensor.shape))


def _arguments(model: nn.Module, call: Call) -> Iterator[tuple[str, Any]]:
    signature = inspect.signature(model.forward)
    for name, value in signature.bind(*call[0], **call[1]).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        else:
            yield name, value


def _is_part(dim: Dim, other: Dim) -> bool:
    """Whether an input is that argument, or one of the tensors inside it."""
    (name, axis), (argument, changed) = dim, other
    return axis == changed and (name == argument or name.startswith(tuple(f"{argument}{mark}" for mark in "_.[")))
