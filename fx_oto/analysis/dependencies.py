"""What dependency analysis finds: typed, immutable, and naming nodes and parameters by string."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fx_oto.analysis.labels import Layer
from fx_oto.analysis.vocabulary import TokenInput

__all__ = [
    "ADJUSTABLE",
    "Adjustment",
    "Axis",
    "Dependencies",
    "Gather",
    "NodeValues",
    "Reason",
    "Said",
    "Work",
    "Worth",
]

# For each FX node, by name, the layers of each tensor in its value.
NodeValues = dict[str, tuple[tuple[Layer, ...], ...]]
# How the compact graph computes what removed channels of a value are worth: it is known, a column of a table, what
# they are worth in the node's operand, or what the node makes of that.
Worth = Literal[
    "known", "table", "same", "cast", "joined", "moved", "looked up", "gathered", "normalized", "mixed", "elementwise"
]


@dataclass(frozen=True)
class Axis:
    """One dimension of one parameter or buffer; its atoms are ``start … start + size - 1``."""

    tensor: str
    dim: int
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}]"


@dataclass(frozen=True)
class Reason:
    """Why something is kept whole: what was asked of it, by which op, where in the user's source.

    Attributes:
        why: what was asked of it.
        op: the op that asked.
        node: the FX node that ran it.
        source: ``"path/net.py:12"``.
        since: if it is kept whole only for what it is combined with: why that is, where known.

    Example:
        >>> from fx_oto import Reason
        >>> print(Reason("sort runs along it", op="sort", node="sort_1", source="net.py:12"))
        sort runs along it (op sort at net.py:12)
    """

    why: str
    op: str = ""
    node: str = ""
    source: str = ""
    since: Reason | None = None

    @property
    def origin(self) -> Reason:
        """The reason at the beginning of the chain."""
        return self if self.since is None else self.since.origin

    def __str__(self) -> str:
        at = self.source and f"at {_shortened(self.source)}"
        place = " ".join(part for part in (self.op and f"op {self.op}", at) if part)
        return f"{self.why} ({place})" if place else self.why


def _shortened(source: str) -> str:
    """A source path that a reader can take in: from the working directory, or inside its package."""
    path = Path(source)
    if "site-packages" in path.parts:
        path = Path(*path.parts[path.parts.index("site-packages") + 1 :])
    elif path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return str(path)


# For each kind of adjustment, the ops, in lower case, that slicing knows to adjust.
ADJUSTABLE = {
    "norm": {"layernorm", "layer_norm", "groupnorm", "group_norm", "batch_norm"}
    | {"layernormover", "layer_norm_over", "groupnormover", "group_norm_over", "batch_norm_over"},  # adjusted before
    "mean": {"mean", "rmsnorm", "rms_norm"} | {"mean_over", "rmsnormover", "rms_norm_over"},
    "share": {"l1_loss", "l1loss", "mse_loss", "mseloss", "smooth_l1_loss", "smoothl1loss", "huber_loss", "huberloss"}
    | {"kl_div", "kldivloss", "soft_margin_loss", "softmarginloss", "poisson_nll_loss", "poissonnllloss"}
    | {"gaussian_nll_loss", "gaussiannllloss"},
    "extreme": {"amax", "amin", "max", "min"},
    "var": {"var", "std", "var_mean", "std_mean"} | {"variance_over"},
    "fold": {"linear", "conv1d", "conv2d", "conv3d"},
    "sizes": {"view", "reshape"},
    "slide": {"conv1d", "conv2d", "conv3d", "convolution"},
}


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What a rule has said: the values that it gave layers, and the atoms that it kept whole, ``(n,)`` each time."""

    put: list[Tensor]
    frozen: list[Tensor]


@dataclass(frozen=True, eq=False)
class Adjustment:
    """A node that stays exact only if slicing also changes how it computes.

    Attributes:
        kind: ``"norm"``, ``"mean"``, ``"var"`` and ``"extreme"`` count the missing as zeros, and so does ``"share"``
            after the node, a mean of losses; ``"fold"`` adds to the bias what the removed input channels, worth a
            constant, contributed; ``"sizes"`` checks what is reshaped, for which the code spells sizes out; ``"slide"``
            puts zeros back along which a window slides.
        node: name of the FX node.
        labels: atoms of the axis that is summed over, shape ``(channels,)``.
        removed: what each channel is worth once removed, shape ``(channels,)``; NaN where the compact graph computes
            that.
    """

    kind: str
    node: str
    labels: Tensor
    removed: Tensor


@dataclass(frozen=True, eq=False)
class Gather:
    """A node whose value is a reordering of an earlier node's value along one dimension.

    Attributes:
        entry: name of the earlier FX node.
        dim: the dimension, the same in both values.
        positions: index into the earlier value for each index of this one, shape ``(size,)``.
    """

    entry: str
    dim: int
    positions: Tensor


@dataclass(frozen=True, eq=False)
class Work:
    """A contraction: its cost is proportional to the length of each of its axes.

    Attributes:
        macs: multiply-adds on the example inputs.
        axes: atoms along each tracked axis that it runs over, shape ``(n,)`` each.
        operands: labels of what it multiplies, each with the dimensions in whose length its cost is proportional.
        summed: position in ``axes`` of the one whose operand's last dimension it sums over, if torch only multiplies
            where a single index of that is left; else None.
        node: name of the FX node that makes it.
    """

    macs: int
    axes: tuple[Tensor, ...]
    operands: tuple[tuple[Tensor, tuple[int, ...]], ...] = ()
    summed: int | None = None
    node: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Dependencies:
    """Which indices of which parameter axes must be kept or removed together, and which cannot go.

    Attributes:
        axes: every axis of every parameter and buffer, in the order of their atoms.
        roots: class of each atom: int64, shape ``(atoms,)``.
        variable: whether an atom's index must be zero for its class to be removed, shape ``(atoms,)``: all but
            those that only ever sum over what is zero then.
        works: every contraction, with its multiply-adds on the example inputs.
        reasons: for each frozen class, by its root atom, the first reason.
        values: for each FX node, the layers of each tensor in its value.
        producers: FX nodes that use variables, each with the atoms of those variables: int64, shape ``(n,)``.
        silenced: FX nodes that sum over what is not zero once removed, each with the atoms of the weights that must be:
            int64, shape ``(n,)``.
        contracting: FX nodes that multiply and sum over channels, by name.
        adjustments: nodes that slicing must compute differently.
        gathers: nodes that slicing replaces by an ``index_select``, by name.
        unknown: reasons of the ops without a rule.
        unequal: pairs of atoms along two axes whose lengths must differ, for torch tells them apart by that; each of
            shape ``(n,)``.
        worths: how what removed channels are worth is computed, by node and dimension; None where it cannot be.
        tables: nodes whose values are computed of buffers and of sizes alone.
        contents: copies of the buffers on whose content any of it relies, by name; of the buffer's shape.
        tokens: of inputs that are token ids, the atoms of the rows that they look up: int64, shape ``(tokens,)``. Of
            what is left of these, the ids are counted anew.
        divisors: axes of parameters by which something is divided that would be zero, by name and dimension.
        steep: for each class that can go, but not be zero in a training, by its root atom, the op whose derivative is
            not finite then.
        steep_weights: the same, where nothing but what is zero gets such a gradient.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> found = fx_oto.Context.of(gm).get(fx_oto.Dependencies)
        >>> found
        <Dependencies: 6 axes, 32 atoms, 2 contractions, 6 classes kept whole, 0 ops without a rule>
        >>> [str(axis) for axis in found.axes]
        ['0.weight[0]', '0.weight[1]', '0.bias[0]', '2.weight[0]', '2.weight[1]', '2.bias[0]']
        >>> [work.macs for work in found.works]
        [64, 32]
    """

    provided_by: ClassVar[str] = "dependency-analysis"

    axes: tuple[Axis, ...]
    roots: Tensor
    variable: Tensor
    works: tuple[Work, ...]
    reasons: dict[int, Reason]
    values: NodeValues
    producers: tuple[tuple[str, Tensor], ...]
    silenced: tuple[tuple[str, Tensor], ...]
    contracting: frozenset[str]
    adjustments: tuple[Adjustment, ...]
    gathers: dict[str, Gather]
    unknown: tuple[Reason, ...]
    unequal: tuple[tuple[Tensor, Tensor], ...]
    worths: dict[tuple[str, int], Worth | None]
    tables: frozenset[str]
    contents: dict[str, Tensor]
    tokens: dict[TokenInput, Tensor] = field(default_factory=dict)
    divisors: frozenset[tuple[str, int]] = frozenset()
    steep: dict[int, Reason] = field(default_factory=dict)
    steep_weights: dict[int, Reason] = field(default_factory=dict)

    def __repr__(self) -> str:
        found = f"{len(self.axes)} axes, {self.num_axis_atoms - 1} atoms, {len(self.works)} contractions"
        return (
            f"<Dependencies: {found}, {len(self.reasons)} classes kept whole, {len(self.unknown)} ops without a rule>"
        )

    def axis_of(self, atoms: Tensor) -> Tensor:
        """Position in ``axes`` of each atom; ``len(axes)`` or more for atoms of created dimensions.

        Args:
            atoms: int64, shape ``(n,)`` or any other, which is that of the result.
        """
        starts = torch.tensor([axis.start for axis in self.axes] + [self.num_axis_atoms])
        return torch.searchsorted(starts, atoms, right=True) - 1

    @property
    def num_axis_atoms(self) -> int:
        """One past the last atom that belongs to a parameter or buffer."""
        return self.axes[-1].start + self.axes[-1].size if self.axes else 1
