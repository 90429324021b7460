"""A partition as a picture and as a networkx graph: which layers are tied together, and what is kept whole."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fx_oto.core.fx_utils import holder, tensor_names
from fx_oto.core.patterns import check_matched, matches
from fx_oto.core.picture import Picture
from fx_oto.core.tables import counted
from fx_oto.core.unused import parameters_of_graph
from fx_oto.viz.folding import Folding, check_fold, grouped, labelled
from fx_oto.viz.layout import interval_lanes
from fx_oto.viz.style import FROZEN, darker, family_colour
from fx_oto.viz.wired_rows import Entry, Line, Mark, Row, Strip, draw_strip
from fx_oto.zigs.families import Family
from fx_oto.zigs.partition import Partition

__all__ = ["draw_couplings", "families_touching", "family_entries"]

_ENTRIES = 100
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MADE = Entry(
    Mark(0, ("#FFFFFF",), "n"), "this layer makes the channels of family n: they are driven to zero and cut out"
)
_READ = Entry(
    Mark(0, ("#888888",), kind="dot"), "this layer reads them: what belongs to a channel that is gone is cut out"
)


def draw_couplings(
    partition: Partition, module: nn.Module, patterns: Sequence[str], fold: int | None, limit: int
) -> Picture:
    """Do the work of ``Partition.draw``."""
    check_fold(fold, limit)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensor_names(module).items()}
    check_matched(patterns, shapes, "parameter or module")
    families = families_touching(partition, patterns)
    touched = {slot.tensor for i in families for slot in partition.families[i].slots}
    names = [name for name in _parameters(module, partition) if name in touched or matches(name, patterns)]
    labels, folding = labelled(list(map(holder, names)), fold, limit)
    table = _Table(partition, shapes, dict(zip(names, labels, strict=True)), families, folding, limit, fold is not None)
    return draw_strip(table.strip(module._get_name()))


def family_entries(partition: Partition, families: Sequence[int], limit: int) -> list[Entry]:
    """A legend: number, colour, name, number of groups and what a group costs; not much longer than the picture."""
    prices = partition.params.marginal.tolist()
    most = max(limit, _ENTRIES)
    entries = [
        Entry(Mark(0, (family_colour(i),), str(i)), _described(partition.families[i], prices[i]))
        for i in families[:most]
    ]
    rest = len(families) - len(entries)
    if rest > 0:
        entries.append(Entry(Mark(0, text="…"), f"{counted(rest, 'more family', 'more families')}: see partition(gm)"))
    return entries


def _described(family: Family, price: float) -> str:
    parameters = counted(round(price), "parameter", "parameters")
    return f"{holder(family.name)}: {counted(len(family), 'group', 'groups')} of {parameters}"


def _parameters(module: nn.Module, partition: Partition) -> list[str]:
    """Every parameter, and every buffer that a family reaches."""
    own = set(parameters_of_graph(module))
    own |= {slot.tensor for family in partition.families for slot in family.slots}
    return [name for name in tensor_names(module) if name in own]


def families_touching(partition: Partition, patterns: Sequence[str]) -> list[int]:
    """Positions of the families with a part in what matches; all, if there are no patterns."""
    return [
        i for i, family in enumerate(partition.families) if any(matches(slot.tensor, patterns) for slot in family.slots)
    ]


@dataclass
class _Table:
    """Rows are modules, or what they are folded to; wires are families."""

    partition: Partition
    shapes: dict[str, tuple[int, ...]]
    row_of: dict[str, str]  # for each parameter, by name
    families: list[int]
    folding: Folding
    limit: int
    asked: bool

    def __post_init__(self) -> None:
        self.members: defaultdict[str, list[str]] = defaultdict(list)
        for name, row in self.row_of.items():
            self.members[row].append(name)
        self.rows = list(self.members)
        self.position = {name: i for i, name in enumerate(self.rows)}
        self.causes = Counter(str(one.reason.origin) for one in self.partition.frozen if one.tensor in self.row_of)

    def strip(self, title: str) -> Strip:
        roles = {i: self._roles(i) for i in self.families}
        wires = [(min(roles[i]), max(roles[i])) for i in self.families]
        lanes = dict(zip(self.families, interval_lanes(wires), strict=True))
        frozen = self._frozen()
        groups = grouped(self.rows)
        rows = [
            Row(
                marks=tuple(_mark(lanes[i], i, roles[i][row]) for i in self.families if row in roles[i]),
                name=name,
                detail=self._detail(name),
                chips=tuple((letter, FROZEN) for letter in sorted(frozen[row])),
                group=groups[row],
                bold=self._is_folded(name),
            )
            for row, name in enumerate(self.rows)
        ]
        lines = [
            Line(lanes[i], *wire, darker(family_colour(i)), width=2.2)
            for i, wire in zip(self.families, wires, strict=True)
        ]
        legend = family_entries(self.partition, self.families, self.limit)
        return Strip(
            f"{title}: what is tied together", self._subtitle(), rows, lines, legend, [*self._notes(), _MADE, _READ]
        )

    def _is_folded(self, row: str) -> bool:
        return any(holder(name) != row for name in self.members[row])

    def _roles(self, family: int) -> dict[int, bool]:
        """The rows that a family reaches, and whether its channels are made there."""
        roles: dict[int, bool] = {}
        for slot in self.partition.families[family].slots:
            row = self.position[self.row_of[slot.tensor]]
            roles[row] = roles.get(row, False) or slot.variable
        return roles

    def _frozen(self) -> defaultdict[int, set[str]]:
        found: defaultdict[int, set[str]] = defaultdict(set)
        order = [cause for cause, _ in self.causes.most_common()]
        for one in self.partition.frozen:
            if one.tensor in self.row_of:
                found[self.position[self.row_of[one.tensor]]].add(_letter(order.index(str(one.reason.origin))))
        return found

    def _detail(self, row: str) -> str:
        if self._is_folded(row):
            return f"{len(set(map(holder, self.members[row])))} layers"
        return "×".join(map(str, max((self.shapes[name] for name in self.members[row]), key=math.prod)))

    def _notes(self) -> list[Entry]:
        notes = [
            Entry(Mark(0, (FROZEN,), _letter(i)), f"kept whole: {cause} ({counted(count, 'axis', 'axes')})")
            for i, (cause, count) in enumerate(self.causes.most_common(len(_LETTERS)))
        ]
        rest = sum(count for _, count in self.causes.most_common()[len(_LETTERS) :])
        return notes + (
            [Entry(Mark(0, (FROZEN,), _letter(99)), f"kept whole: see explain() ({counted(rest, 'axis', 'axes')})")]
            * bool(rest)
        )

    def _subtitle(self) -> str:
        zigs = sum(len(self.partition.families[i]) for i in self.families)
        text = f"{zigs:,} groups in {counted(len(self.families), 'family', 'families')}, {len(self.rows)} rows for "
        text += f"{len(set(map(holder, self.row_of)))} layers"
        if any(map(self._is_folded, self.rows)):
            text += f"; {self.folding.told}{'' if self.asked else self.folding.remedy}"
        return text


def _mark(lane: int, family: int, made: bool) -> Mark:
    fills = (family_colour(family),)
    return Mark(lane, fills, str(family)) if made else Mark(lane, fills, kind="dot")


def _letter(position: int) -> str:
    return _LETTERS[position] if position < len(_LETTERS) else "…"
