"""Zero-invariant groups: families of alike groups, the slots they fill, and why the rest is kept whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fx_oto.analysis.dependencies import Reason
from fx_oto.core.context import Context
from fx_oto.core.doors import above
from fx_oto.core.errors import MissingResultError, SettingsError
from fx_oto.core.fx_utils import check_has_numbers, check_held, tensor_names
from fx_oto.core.masks import is_mask, masks_of
from fx_oto.core.patterns import patterns_in
from fx_oto.core.picture import Picture
from fx_oto.core.tables import Tabular, counted, foldable, macs_text, table
from fx_oto.zigs.depth import Depth
from fx_oto.zigs.explanation import Explanation
from fx_oto.zigs.families import Family, FrozenAxis, shortened, zero_variables
from fx_oto.zigs.forecast import FRACTIONS, Forecast, forecast
from fx_oto.zigs.graph import coupling_graph
from fx_oto.zigs.prices import Price

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Partition", "partition"]

_PRUNABLE = ("family", "ZIGs", "params/ZIG", "MACs/ZIG", "slots")
_FROZEN = ("kept whole", "indices", "reason")
_SINGLE = Reason("all of it is tied into a single group, and one group of each family stays")


@dataclass(frozen=True, eq=False, repr=False)
class Partition(Tabular):
    """The zero-invariant groups (ZIGs) of a model: OTOv2's partition of the trainable variables.

    Obtained with ``fx_oto.partition(gm)``. ``str()`` prints a table, a notebook shows it as HTML, and
    ``to_markdown()`` and ``to_json()`` have the same.

    Attributes:
        families: what can go.
        frozen: what cannot, with reasons.
        params: parameters of the model, by what is removed.
        macs: multiply-adds on the example inputs, by what is removed.
        module: the GraphModule that it speaks of; None in the context, where ``fx_oto.partition`` finds it.
        depth: which families may go altogether, and what goes with them; None where that is not known.
        samples: in the example inputs; the table gives multiply-adds per sample.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> print(str(fx_oto.partition(gm).zero_(0.5)).partition("kept whole")[0].rstrip())
        8 zero-invariant groups in 1 family
        <BLANKLINE>
        family      ZIGs    params/ZIG    MACs/ZIG  slots
        --------  ------  ------------  ----------  -----------------------------------
        0.weight       8             7           6  0.weight[0], 0.bias[0], 2.weight[1]
        >>> fx_oto.partition(gm).group_sparsity()
        0.5
    """

    provided_by: ClassVar[str] = "zig-partition"

    families: tuple[Family, ...]
    frozen: tuple[FrozenAxis, ...]
    params: Price
    macs: Price
    module: nn.Module | None = None
    samples: int = 1
    depth: Depth | None = None

    @property
    def num_zigs(self) -> int:
        """Prunable ZIGs of all families."""
        return sum(len(family) for family in self.families)

    def zeros(self) -> list[Tensor]:
        """For each family, which ZIGs are zero in every variable: bool, shape ``(num_zigs,)``, on the CPU."""
        tensors = tensor_names(self._bound("to look for zeros"))
        return [zero_variables(family, tensors) for family in self.families]

    def group_sparsity(self) -> float:
        """The fraction of prunable ZIGs that are zero, in [0, 1]."""
        return sum(int(zero.sum()) for zero in self.zeros()) / max(self.num_zigs, 1)

    def removed(self) -> Tensor:
        """How many ZIGs of each family are zero: int64, shape ``(families,)``."""
        return torch.tensor([int(zero.sum()) for zero in self.zeros()], dtype=torch.int64)

    def forecast(self, *fractions: float) -> Forecast:
        """Parameters and multiply-adds that are left when the same fraction of each family goes, one ZIG of it kept.

        Args:
            fractions: in [0, 1]; by default 0.25, 0.5, 0.75 and 0.9.

        Raises:
            SettingsError: a fraction is outside [0, 1].
        """
        for fraction in fractions:
            _check_fraction(fraction)
        return forecast(self.families, self.params, self.macs, fractions or FRACTIONS, self.samples)

    def zero_(self, fraction: float, generator: torch.Generator | None = None) -> Partition:
        """Set random ZIGs to zero in place, the same fraction of each family, keeping at least one of each.

        Args:
            fraction: in [0, 1]; rounded down to whole ZIGs in each family.
            generator: source of randomness on the CPU; torch's default one if None.

        Returns:
            The partition itself.

        Raises:
            SettingsError: ``fraction`` is outside [0, 1].
            MissingResultError: it is bound to no module: obtain it with ``fx_oto.partition(gm)``.
        """
        _check_fraction(fraction)
        orders = (torch.randperm(len(family), generator=generator) for family in self.families)
        parts = [order[: family.part(fraction)] for order, family in zip(orders, self.families, strict=True)]
        return self._zero(dict(enumerate(parts)))

    def zero_zigs_(self, family: int, zigs: Tensor) -> Partition:
        """Set every variable of these ZIGs of a family to zero, in place.

        Args:
            family: position in ``families``.
            zigs: positions in the family, int64, shape ``(n,)``.

        Returns:
            The partition itself.

        Raises:
            SettingsError: there is no such family, or no such ZIG in it.
        """
        return self._zero({family: self._positions(family, zigs)})

    def mask_(self, family: int, zigs: Tensor) -> Partition:
        """Hide these ZIGs of a family: the GraphModule returns what it would without them, and no parameter changes.

        What is hidden is for trying out alone: ``compress`` refuses it until ``unmask_`` or ``zero_masked_`` decides.

        Args:
            family: position in ``families``.
            zigs: positions in the family, int64, shape ``(n,)``.

        Returns:
            The partition itself.

        Raises:
            MissingResultError: no mask acts on the family, or the partition is bound to no module.
            SettingsError: there is no such family, or no such ZIG in it.

        Example:
            >>> import torch, fx_oto
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> gm, x = fx_oto.prepare(net, torch.randn(2, 4)), torch.randn(2, 4)
            >>> without = fx_oto.partition(gm).mask_(0, torch.tensor([0, 1])).module(x)
            >>> _ = fx_oto.partition(gm).unmask_().zero_zigs_(0, torch.tensor([0, 1]))
            >>> bool(torch.allclose(gm(x), without))
            True
        """
        module = self._bound()
        zigs, masks = self._positions(family, zigs), masks_of(module)
        known = (
            {node.args[1] for node in module.graph.nodes if is_mask(node)} if isinstance(module, GraphModule) else ()
        )
        if masks is None or family not in known:
            name = self.families[family].name
            raise MissingResultError(f"no mask acts on the family {name!r}: its ZIGs can only be set to zero")
        masks.hide(family, zigs)
        return self

    def masked(self) -> list[Tensor]:
        """For each family, which ZIGs are hidden by its mask: bool, shape ``(num_zigs,)``, on the CPU."""
        masks = masks_of(self._bound())
        return [
            masks.of(i).cpu() == 0 if masks is not None and i in masks.hiding else torch.zeros(len(family)) > 0
            for i, family in enumerate(self.families)
        ]

    def unmask_(self) -> Partition:
        """Hide nothing any more; returns the partition itself."""
        masks = masks_of(self._bound())
        if masks is not None:
            masks.open()
        return self

    def zero_masked_(self) -> Partition:
        """Set what is hidden by masks to zero in the parameters, and open the masks; returns the partition itself."""
        return self._zero({i: hidden.nonzero().flatten() for i, hidden in enumerate(self.masked())}).unmask_()

    def explain(self, *patterns: str) -> Explanation:
        """Why not pruned: what becomes of every parameter axis, what keeps it whole, and what that costs.

        Args:
            patterns: glob patterns of parameter or module names; without any, all parameters are explained.

        Raises:
            SettingsError: a pattern matches no parameter.

        Example:
            >>> import torch, fx_oto
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> found = fx_oto.partition(fx_oto.prepare(net, torch.randn(2, 4))).explain("2")
            >>> [(axis.tensor, axis.dim, axis.prunable, axis.kept, axis.cost) for axis in found]
            [('2.weight', 0, 0, 2, 16), ('2.bias', 0, 0, 2, 2), ('2.weight', 1, 8, 0, 0)]
        """
        single = [slot for family in self.families if len(family) == 1 for slot in family.slots]
        kept = tuple(FrozenAxis(slot.tensor, slot.dim, slot.index.numel(), _SINGLE) for slot in single)
        several = tuple(family for family in self.families if len(family) > 1)
        found: Explanation = above("explain")(
            replace(self, families=several, frozen=self.frozen + kept), self._bound(), patterns_in(patterns)
        )
        return found

    def draw(self, *patterns: str, fold: int | None = None, limit: int = 200) -> Picture:
        """Which layers are tied together: one row for each, a wire in its own colour for each family.

        A numbered box says that the layer makes the family's channels, a ring that it only reads them. Letters stand
        for the causes for which indices are kept whole.

        Args:
            patterns: glob patterns of parameter or module names: only the families with a part in what matches.
            fold: modules whose names have more than so many parts share the row of the module at that depth; by
                default nothing is folded up to ``limit`` rows, and as little as needed above.
            limit: the most rows, without ``fold``; where modules at depth 1 are not few enough, neighbours share a row.

        Raises:
            SettingsError: a pattern matches nothing, or ``fold`` or ``limit`` is less than 1.
            MissingPackageError: matplotlib is not installed.

        Example:
            >>> import tempfile, torch, fx_oto
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> picture = fx_oto.partition(fx_oto.prepare(net, torch.randn(2, 4))).draw()
            >>> picture.save(f"{tempfile.mkdtemp()}/families.png").name
            'families.png'
        """
        picture: Picture = above("draw_couplings")(self, self._bound(), patterns_in(patterns), fold, limit)
        return picture

    def to_networkx(self) -> nx.Graph[str]:
        """Parameter axes as nodes, joined where a family couples them; frozen axes carry their reason.

        Nodes are named as ``"layer1.0.conv1.weight[0]"`` and carry ``tensor``, ``dim``, ``size`` (the length of the
        axis, if the partition is bound to a module), ``prunable`` and ``kept`` (how many of its indices can go, and
        cannot), ``frozen`` (whether none can go), ``variable`` (whether training drives them to zero) and ``reason``
        (why some are kept). Within a family, every axis is joined to the family's first one; edges carry ``family``,
        its name, and ``zigs``. Where two axes share several families, the edge carries the largest.

        Example:
            >>> import torch, fx_oto
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> graph = fx_oto.partition(fx_oto.prepare(net, torch.randn(2, 4))).to_networkx()
            >>> sorted(graph.neighbors("0.weight[0]")), graph.nodes["2.weight[0]"]["reason"]
            (['0.bias[0]', '2.weight[1]'], "it is part of the model's output (op output)")
        """
        return coupling_graph(self.families, self.frozen, self.module)

    def _repr_html_(self) -> str:
        prunable, frozen = self._tables("html")
        axes = counted(len(self.frozen), "axis is", "axes are")
        kept = f"{axes} kept whole, in part or altogether; explain() sums up why"
        return f"<p><b>{self._summary}</b></p>\n{prunable}\n{foldable(frozen, len(self.frozen), kept)}"

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain values.

        ``zigs`` is their number, ``params`` and ``macs`` are the full model's; each of ``families`` has name, zigs,
        params_per_zig, macs_per_zig and slots, see ``Slot``; each of ``frozen`` has tensor, dim, size and why.
        """
        return {
            "zigs": self.num_zigs,
            "params": round(self.params.total),
            "macs": round(self.macs.total),
            "families": [
                {
                    "name": family.name,
                    "zigs": len(family),
                    "params_per_zig": round(params, 3),
                    "macs_per_zig": round(macs, 3),
                    "slots": [slot.to_dict() for slot in family.slots],
                }
                for family, params, macs in self._priced()
            ],
            "frozen": [
                {"tensor": axis.tensor, "dim": axis.dim, "size": axis.size, "why": str(axis.reason)}
                for axis in self.frozen
            ],
        }

    @property
    def _summary(self) -> str:
        groups = counted(self.num_zigs, "zero-invariant group", "zero-invariant groups")
        return f"{groups} in {counted(len(self.families), 'family', 'families')}"

    def _priced(self) -> Iterator[tuple[Family, float, float]]:
        """Families, with the parameters and multiply-adds of one of their ZIGs."""
        return zip(self.families, self.params.marginal.tolist(), self.macs.marginal.tolist(), strict=True)

    def _tables(self, style: str) -> tuple[str, str]:
        prunable = [
            (
                family.name,
                f"{len(family):,}",
                f"{round(params):,}",
                macs_text(macs, self.samples),
                shortened(family.slots),
            )
            for family, params, macs in self._priced()
        ]
        frozen = [(f"{axis.tensor}[{axis.dim}]", f"{axis.size:,}", str(axis.reason)) for axis in self.frozen]
        return table(prunable, _PRUNABLE, style, _PRUNABLE[1:4]), table(frozen, _FROZEN, style, _FROZEN[1:2])

    @torch.no_grad()
    def _zero(self, zigs: Mapping[int, Tensor]) -> Partition:
        """Set ZIGs to zero, given by the position of their family."""
        tensors = tensor_names(self._bound("to set ZIGs to zero"))
        for family, mine in zigs.items():
            for slot in self.families[family].variables:
                index = slot.index[mine].reshape(-1).to(tensors[slot.tensor].device)
                tensors[slot.tensor].index_fill_(slot.dim, index, 0)
        return self

    def _positions(self, family: Any, zigs: Any) -> Tensor:
        """Positions of ZIGs in a family, if they are."""
        count = len(self.families)
        if isinstance(family, bool) or not isinstance(family, Integral) or int(family) not in range(count):
            named = (f"; {family!r} is at {i}" for i, one in enumerate(self.families) if one.name == family)
            raise SettingsError(
                f"family must be a position in fx_oto.partition(gm).families, an integer below {count}; found "
                f"{family!r}{next(named, '')}"
            )
        name, size, given = self.families[family].name, len(self.families[family]), torch.as_tensor(zigs)
        if given.dtype == torch.bool and given.shape == (size,):
            given = given.nonzero().flatten()
        if given.numel() and (given.is_floating_point() or given.dtype == torch.bool):
            raise SettingsError(f"zigs must be positions in the family {name!r}, as integers; found {given.dtype}")
        if given.numel() and not -size <= given.min() <= given.max() < size:
            raise SettingsError(
                f"zigs must be positions in the family {name!r}, below {size}; found {given.min()} to {given.max()}"
            )
        return given.long()

    def _bound(self, doing: str | None = None) -> nn.Module:
        if self.module is None:
            raise MissingResultError("this partition is bound to no module: obtain it with fx_oto.partition(gm)")
        if doing is not None:
            check_held(self.module, (slot.tensor for family in self.families for slot in family.variables))
            check_has_numbers(self.module, doing)
        return self.module


def _check_fraction(fraction: float) -> None:
    if not isinstance(fraction, Real) or not 0 <= fraction <= 1:
        raise SettingsError(f"fraction must be a number in [0, 1], found {fraction!r}")


def partition(gm: GraphModule) -> Partition:
    """The ZIGs that ``prepare`` found in a GraphModule, bound to it.

    Args:
        gm: a prepared GraphModule.

    Raises:
        MissingResultError: the module was not prepared.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> fx_oto.partition(fx_oto.prepare(net, torch.randn(2, 4))).num_zigs
        8
    """
    return replace(Context.of(gm).get(Partition), module=gm)
