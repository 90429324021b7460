"""What is left of every axis and of every value, once the ZIGs that are gone are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from fx_oto.errors import SlicingError
from fx_oto.provenance.dependencies import Dependencies
from fx_oto.provenance.labels import Layer, compress, varying

__all__ = ["Cuts"]


@dataclass(frozen=True, eq=False)
class Cuts:
    """The indices that are kept, derived from which classes of atoms are.

    Attributes:
        found: the dependencies.
        keep: for each atom whether it is kept, shape ``(atoms,)``; atom 0 always is.
    """

    found: Dependencies
    keep: Tensor

    @cached_property
    def axes(self) -> dict[tuple[str, int], Tensor]:
        """Kept indices of each parameter axis that loses some, by tensor name and dimension.

        Raises:
            SlicingError: nothing of an axis would be left.
        """
        cut = {}
        for axis in self.found.axes:
            kept = self.keep[axis.start : axis.start + axis.size]
            if not kept.all():
                if not kept.any():
                    raise SlicingError(
                        f"every index of {axis} is zero, so nothing of it would be left and the network would be cut "
                        "in two: keep at least one ZIG that it belongs to (a smaller target, or a minimum per family)"
                    )
                cut[axis.tensor, axis.dim] = kept.nonzero().reshape(-1)
        return cut

    def of_value(self, node: str) -> list[dict[int, Tensor] | None]:
        """For each tensor in a node's value: kept indices by dimension, or None if no rectangle is left."""
        return [self._of_layers(layers) for layers in self.found.values.get(node, ())]

    def of_tensor(self, node: str) -> dict[int, Tensor]:
        """The same for a node whose value is one tensor; nothing is cut from any other."""
        cuts = self.of_value(node)
        return cuts[0] or {} if len(cuts) == 1 else {}

    def _of_layers(self, layers: Sequence[Layer]) -> dict[int, Tensor] | None:
        cut = {}
        for layer in layers:
            kept = compress(self.keep[layer.labels])
            if kept.all():
                continue
            dims = varying(kept)
            if len(dims) != 1:
                return None
            cut[dims[0]] = kept.reshape(-1).nonzero().reshape(-1)
        return cut

    def apply(self, tensor: Tensor, cut: dict[int, Tensor]) -> Tensor:
        """Select the kept indices of a tensor."""
        for dim, index in cut.items():
            tensor = tensor.index_select(dim, index.to(tensor.device))
        return tensor

    def kept_labels(self, labels: Tensor) -> Tensor:
        """Whether each of these atoms is kept."""
        return self.keep[labels]
