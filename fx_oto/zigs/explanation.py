"""Why not pruned: what becomes of every parameter axis, what keeps it whole, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fx_oto.analysis.dependencies import Reason
from fx_oto.core.tables import Tabular, foldable, table
from fx_oto.zigs.families import FrozenAxis

__all__ = ["AxisExplanation", "Cause", "Explanation"]

_CAUSES = ("cost", "share", "axes", "kept whole because")
_AXES = ("parameter", "dim", "size", "can go", "family", "kept", "cost", "why")
_NUMERIC = ("cost", "share", "axes", "dim", "size", "can go", "kept")


@dataclass(frozen=True)
class AxisExplanation:
    """What becomes of the indices of one axis of one parameter.

    Attributes:
        tensor: name of the parameter.
        dim: the axis.
        size: its length, at least 2: a single index is no choice.
        numel: elements of the parameter at one index.
        families: the families that indices of it belong to, each with how many.
        frozen: what is kept whole, by reason.
        note: why an index is in neither, if so.
        traced: whether the graph uses the parameter.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> axis = fx_oto.partition(gm).explain("2.bias").axes[0]
        >>> axis.tensor, axis.prunable, axis.kept, axis.why
        ('2.bias', 0, 2, "it is part of the model's output (op output)")
    """

    tensor: str
    dim: int
    size: int
    numel: int
    families: tuple[tuple[str, int], ...] = ()
    frozen: tuple[FrozenAxis, ...] = ()
    note: str = ""
    traced: bool = True

    @property
    def prunable(self) -> int:
        """How many indices can go."""
        return sum(count for _, count in self.families)

    @property
    def kept(self) -> int:
        """How many indices are kept whole."""
        return sum(axis.size for axis in self.frozen)

    @property
    def cost(self) -> int:
        """Elements of the parameter at the indices that are kept whole; see ``Explanation``."""
        return self.kept * self.numel

    @property
    def why(self) -> str:
        """The reasons in one line; where several, each with the number of its indices."""
        texts = [_chain(axis.reason) for axis in self.frozen]
        if len(texts) > 1:
            texts = [f"{axis.size}: {text}" for axis, text in zip(self.frozen, texts, strict=True)]
        return "; ".join(filter(None, (*texts, self.note)))

    @property
    def cells(self) -> tuple[str, ...]:
        """The axis as a row of the table."""
        counts = (f"{count:,}" for count in (self.dim, self.size, self.prunable))
        return (self.tensor, *counts, _listed(self.families), f"{self.kept:,}", f"{self.cost:,}", self.why)

    def to_dict(self) -> dict[str, Any]:
        """``tensor``, ``dim``, ``size``, ``prunable``, ``kept``, ``cost``, ``families`` (names) and ``why``."""
        keys = ("tensor", "dim", "size", "prunable", "kept", "cost")
        names = [name for name, _ in self.families]
        return {**{key: getattr(self, key) for key in keys}, "families": names, "why": self.why}


@dataclass(frozen=True)
class Cause:
    """One reason at the beginning of the chain, and all that is kept whole for it.

    Attributes:
        reason: why, which op, where.
        axes: how many axes are kept whole for it, in part or altogether.
        cost: parameters that lie at an index kept whole for it, each counted once.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> cause = fx_oto.partition(gm).explain().causes[0]
        >>> cause.why, cause.axes, cause.cost
        ("it is the model's input 'input'", 1, 32)
    """

    reason: Reason
    axes: int
    cost: int

    @property
    def why(self) -> str:
        """The reason in one line, with its source line as a reader can take it in."""
        return str(self.reason)


@dataclass(frozen=True, repr=False)
class Explanation(Tabular):
    """Why parameters are kept whole; ``str()`` prints tables, a notebook shows HTML, iteration yields the axes.

    The cost of an axis is the number of its parameter's elements at the indices that are kept whole: those that
    would go with these indices, were all of them removed. That is to first order, as a ZIG's price is: an element
    that also lies at a prunable index of another axis can go with that one, and is counted here all the same. The
    cost of a cause counts an element once, however many axes hold it for this cause; one that is held for two causes
    is counted in both, so causes do not add up. Inputs and outputs that no pruning can touch, such as image channels
    and class logits, are causes like any other. What is combined with a tensor that is kept whole is
    counted for the reason why that one is.

    Without patterns the second table lists only axes of which something is kept whole; iteration yields all.

    Attributes:
        axes: every axis longer than 1 of every parameter, the largest cost first.
        causes: what keeps them whole, the largest cost first.
        params: parameters explained.
        prunable: those of them that lie at a prunable index of some axis.
        patterns: what was asked for; everything, if nothing.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> print(str(fx_oto.partition(gm).explain()).partition("parameter  ")[0].rstrip())
        58 parameters: 56 in prunable families, 2 (3.4%) can never go
        <BLANKLINE>
          cost    share    axes  kept whole because
        ------  -------  ------  --------------------------------------------
            32    55.2%       1  it is the model's input 'input'
            18    31.0%       2  it is part of the model's output (op output)
    """

    axes: tuple[AxisExplanation, ...]
    causes: tuple[Cause, ...]
    params: int
    prunable: int
    patterns: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """Parameters that can never go: they lie at no prunable index of any axis."""
        return self.params - self.prunable

    def __iter__(self) -> Iterator[AxisExplanation]:
        return iter(self.axes)

    def __len__(self) -> int:
        """Number of axes."""
        return len(self.axes)

    def _repr_html_(self) -> str:
        causes, axes = self._tables("html")
        folded = foldable(axes, len(self._shown), f"all {len(self._shown)} axes")
        return f"<p><b>{self._summary}</b></p>\n{causes if self.causes else ''}\n{folded}"

    def to_dict(self) -> dict[str, Any]:
        """``params``, ``prunable``, ``kept``; ``causes``: why, axes and cost of each; ``axes``: those of each axis."""
        return {
            "params": self.params,
            "prunable": self.prunable,
            "kept": self.kept,
            "causes": [{"why": cause.why, "axes": cause.axes, "cost": cause.cost} for cause in self.causes],
            "axes": [axis.to_dict() for axis in self.axes],
        }

    @property
    def _shown(self) -> list[AxisExplanation]:
        return [axis for axis in self.axes if self.patterns or axis.kept or not axis.traced]

    @property
    def _summary(self) -> str:
        return (
            f"{self.params:,} parameters: {self.prunable:,} in prunable families, {self.kept:,} "
            f"({self.kept / max(self.params, 1):.1%}) can never go"
        )

    def _tables(self, style: str) -> tuple[str, str]:
        causes = [
            (f"{one.cost:,}", f"{one.cost / max(self.params, 1):.1%}", str(one.axes), one.why) for one in self.causes
        ]
        axes = [axis.cells for axis in self._shown]
        return table(causes, _CAUSES, style, _NUMERIC), table(axes, _AXES, style, _NUMERIC)


def _chain(reason: Reason) -> str:
    text = str(reason)
    return text if reason.since is None else f"{text} – since {_chain(reason.since)}"


def _listed(families: Sequence[tuple[str, int]]) -> str:
    return families[0][0] if len(families) == 1 else ", ".join(f"{name} ({count})" for name, count in families)
