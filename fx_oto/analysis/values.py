"""What is known of each tensor of the tape: one record, which rules read and write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fx_oto.analysis.dependencies import Reason
from fx_oto.analysis.labels import Layer, Region
from fx_oto.analysis.tape import OpCall
from fx_oto.core.layouts import is_sparse

__all__ = ["Value", "Values", "storage_of"]


@dataclass(eq=False, slots=True)
class Value:
    """The record of one tensor.

    Attributes:
        layers: along which axes elements of it can be removed; none of what is untracked or kept whole.
        is_weight: whether it is a parameter, or one that was only moved around.
        resized: whether it is a weight whose size may depend on the inputs' sizes all the same.
        made_by: the call that returned it last.
        region: the chain of movement that it is part of.
        selected: what it is a selection from, along which dimension, at which positions.
        is_drawn: whether it may depend on random numbers that are drawn in evaluation.
        origin: the refusal further up that left it without layers.
        outdated_by: the tensor through which its memory was changed after its layers were recorded.
        lost: labels along which elements cannot be removed any more since its memory was changed through another one.
        content: its real content, if it was asked for and is the same in every call; see ``Constants``.
        is_judged: whether it was asked for.
        is_table: whether it is computed of buffers and of sizes alone; None if that was not asked.
    """

    layers: tuple[Layer, ...] = ()
    is_weight: bool = False
    resized: bool = False
    made_by: OpCall | None = None
    region: Region | None = None
    selected: tuple[Tensor, int, Tensor] | None = None
    is_drawn: bool = False
    origin: Reason | None = None
    outdated_by: Tensor | None = None
    lost: tuple[Tensor, ...] = ()
    content: Tensor | None = None
    is_judged: bool = False
    is_table: bool | None = None


class Values:
    """The records of all tensors, each made when it is first asked for; the tape keeps the tensors alive."""

    def __init__(self) -> None:
        self._records: defaultdict[int, Value] = defaultdict(Value)
        self._sharing: defaultdict[int, list[Tensor]] = defaultdict(list)

    def __getitem__(self, value: object) -> Value:
        return self._records[id(value)]

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Remember what memory these tensors are in."""
        for tensor in tensors:
            self._sharing[storage_of(tensor)].append(tensor)

    def sharing(self, tensor: Tensor) -> list[Tensor]:
        """The tensors in the memory of one, itself among them, in the order in which they were made."""
        return list({id(one): one for one in (*self._sharing.get(storage_of(tensor), ()), tensor)}.values())

    def is_line(self, tensor: Tensor) -> bool:
        """Whether each layer is along a dimension of its own, and there is nothing more to know of it."""
        record = self[tensor]
        dims = [layer.dims for layer in record.layers]
        plain = record.region is None and record.selected is None and not record.is_weight
        return plain and len(set(dims)) == len(dims) and all(len(one) == 1 for one in dims)

    def says_the_same(self, tensor: Tensor, before: Sequence[Layer]) -> bool:
        """Whether the layers of a tensor say what those did that it had before something was written into it.

        Of ``y = x.view(8)``, then ``y.cos_()``, the layers of ``x`` say that a removed element is zero, but it is one
        now. After ``y.relu_()`` they still tell the truth.
        """
        was, now = (sorted(layers, key=lambda layer: layer.dims) for layers in (before, self[tensor].layers))
        return len(was) == len(now) and all(map(_equivalent, was, now))

    def behind(self, call: OpCall | None) -> Reason | None:
        """Why an operand of a call is without layers; None if all have some, or none is known to have lost them."""
        operands = [self[one] for one in call.inputs] if call is not None else []
        return next((one.origin for one in operands if one.origin is not None and not one.layers), None)

    def pass_on(self, call: OpCall, refused: Sequence[Reason]) -> None:
        """After a call: what it returns without layers owes that to what it refused, or to its operands."""
        lost = [self[out] for out in call.outputs if not self[out].layers]
        origin = next((reason.origin for reason in refused), None) or self.behind(call)
        for one in lost if origin is not None else ():
            one.origin = origin


def storage_of(tensor: Tensor) -> int:
    """A key for the memory that a tensor is in, the same for all its views; of a sparse one, for itself."""
    if is_sparse(tensor):
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)


def _equivalent(left: Layer, right: Layer) -> bool:
    pairs = (left.labels, right.labels), (left.removed, right.removed)
    return all(one is other or torch.equal(one, other) for one, other in pairs)
