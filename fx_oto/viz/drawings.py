"""Pictures of GraphModules: the FX graph coloured by family, and the widths before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count, pairwise

import torch
from torch.fx import GraphModule, Node

from fx_oto.analysis.dependencies import Dependencies
from fx_oto.core.context import Context
from fx_oto.core.fx_utils import op_name, tensor_leaves
from fx_oto.core.masks import MASKS, is_mask
from fx_oto.core.patterns import check_matched, matches
from fx_oto.core.picture import Picture
from fx_oto.core.tables import counted
from fx_oto.viz.couplings import family_entries
from fx_oto.viz.folding import Folding, check_fold, folded, grouped, prefix, span
from fx_oto.viz.layout import value_lanes
from fx_oto.viz.style import FROZEN, darker, family_colour
from fx_oto.viz.wired_rows import Entry, Line, Mark, Row, Strip, draw_strip
from fx_oto.zigs.partition import Partition

__all__ = ["draw_graph"]

_MOST_STRIPES, _MOST_CHIPS = 6, 4
_WORDS = {"placeholder": "input", "get_attr": "tensor", "output": ""}
_NOTES = (
    (Mark(0, (FROZEN,)), "kept whole: partition(gm).explain() says why"),
    (Mark(0), "no channels lie in this value"),
    (Mark(0, ("#FFFFFF",), barred=True), "a mask is applied to this value"),
)


def draw_graph(gm: GraphModule, *patterns: str, fold: int | None = None, limit: int = 200) -> Picture:
    """The FX graph of a prepared GraphModule, a row for each node, coloured by the families whose channels it carries.

    A box is a node, numbered and coloured as its family is everywhere; a box of several stripes carries several. A
    wire is a value on its way to the nodes that read it; its shape stands where it is another than in the row above.
    Nodes that compute sizes are not drawn, nor are masks, which show as a bar below what they mask.

    Args:
        gm: a prepared GraphModule.
        patterns: glob patterns of node or module names; neighbours that match none share a row.
        fold: nodes of modules whose names have more than so many parts share the row of the module at that depth;
            by default nothing is folded up to ``limit`` rows, and as little as needed above; where modules at depth 1
            are not few enough, neighbours share a row.
        limit: the most rows, without ``fold``.

    Raises:
        MissingResultError: ``gm`` was not prepared.
        SettingsError: a pattern matches nothing, or ``fold`` or ``limit`` is less than 1.
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> picture = fx_oto.draw_graph(fx_oto.prepare(net, torch.randn(2, 4)))
        >>> picture.figure.axes[0].texts[1].get_text()
        '1 family; 5 rows for 5 nodes (1 more compute masks and sizes)'
    """
    check_fold(fold, limit)
    context = Context.of(gm)
    graph = _Graph(gm, context.get(Dependencies), context.get(Partition))
    return draw_strip(graph.strip(patterns, fold, limit))


@dataclass
class _Shown:
    """A node as it is drawn."""

    node: Node
    path: str
    families: list[int] = field(default_factory=list)
    frozen: bool = False
    masked: bool = False

    @property
    def fills(self) -> tuple[str, ...]:
        """The colours of its stripes."""
        return (*map(family_colour, self.families), *((FROZEN,) * self.frozen))

    def matches(self, patterns: Sequence[str]) -> bool:
        return any(matches(name, patterns) for name in (self.node.name, self.path))


class _Graph:
    def __init__(self, gm: GraphModule, found: Dependencies, partition: Partition) -> None:
        self.gm, self.found, self.partition = gm, found, partition
        self.family_of = torch.full((len(found.roots),), -1, dtype=torch.int64)
        for i, family in enumerate(partition.families):
            self.family_of[family.classes] = i
        self.nodes = [self._shown(node) for node in _late_tensors(gm) if _is_drawn(node)]

    def strip(self, patterns: Sequence[str], fold: int | None, limit: int) -> Strip:
        names = [*(node.node.name for node in self.nodes), *(node.path for node in self.nodes)]
        check_matched(patterns, names, "node or module")
        wanted = [node.matches(patterns) for node in self.nodes]
        kinds = [_kind(node.node) if asked else None for node, asked in zip(self.nodes, wanted, strict=True)]
        folding = folded([_inside(node) for node in self.nodes], fold, limit, kinds)
        inputs = self._inputs(folding.rows)
        lanes = value_lanes(inputs)
        rows = self._rows(folding, wanted, lanes)
        shown = sorted({family for node in self.nodes for family in node.families})
        return Strip(
            f"{self.gm._get_name()}: the graph, coloured by family",
            self._subtitle(folding, wanted, fold),
            rows,
            _lines(inputs, lanes, [self._colour(run) for run in folding.rows]),
            family_entries(self.partition, shown, limit),
            [Entry(*note) for note in _NOTES],
        )

    def _shown(self, node: Node) -> _Shown:
        masked = any(map(is_mask, node.users))
        shown = _Shown(node, _path(node), masked=masked)
        layers = [
            self.family_of[self.found.roots[layer.labels.reshape(-1)]].unique_consecutive().tolist()
            for value in self.found.values.get(node.name, ())
            for layer in value
        ]
        prunable = [layer for layer in layers if max(layer, default=-1) >= 0]
        for family in (one for layer in prunable or layers for one in layer):
            shown.frozen |= family < 0
            if family >= 0 and family not in shown.families:
                shown.families.append(family)
        return shown

    def _inputs(self, runs: Sequence[Sequence[int]]) -> list[list[int]]:
        """For each row, the rows that it reads."""
        row_of = {self.nodes[i].node: row for row, run in enumerate(runs) for i in run}
        inputs: list[list[int]] = []
        for row, run in enumerate(runs):
            sources = (_unmasked(source) for i in run for source in self.nodes[i].node.all_input_nodes)
            inputs.append(sorted({row_of[source] for source in sources if source in row_of} - {row}))
        return inputs

    def _rows(self, folding: Folding, wanted: Sequence[bool], lanes: Sequence[int]) -> list[Row]:
        members = [[self.nodes[i] for i in run] for run in folding.rows]
        groups = grouped([nodes[0].path for nodes in members])
        rows = [
            _row(nodes, any(wanted[i] for i in run), lanes[row], folding.depth, groups[row])
            for row, (run, nodes) in enumerate(zip(folding.rows, members, strict=True))
        ]
        shapes = [_shape(nodes[0].node) if len(nodes) == 1 else "" for nodes in members]
        changed = [shape if shape != before else "" for before, shape in pairwise(["", *shapes])]
        return [
            replace(row, detail="  ".join(filter(None, (row.detail, shape))))
            for row, shape in zip(rows, changed, strict=True)
        ]

    def _colour(self, run: Sequence[int]) -> str:
        """The colour of a row's value: that of its last node, whose value it usually is."""
        return darker((self.nodes[run[-1]].fills or (FROZEN,))[0])

    def _subtitle(self, folding: Folding, wanted: Sequence[bool], fold: int | None) -> str:
        total = len(self.gm.graph.nodes)
        text = f"{counted(len(self.partition.families), 'family', 'families')}; "
        text += f"{len(folding.rows)} rows for {len(self.nodes)} nodes"
        text += f" ({total - len(self.nodes)} more compute masks and sizes)"
        if any(len(run) > 1 and any(wanted[i] for i in run) for run in folding.rows):
            text += f"; {folding.told}{folding.remedy if fold is None else ''}"
        return text


def _late_tensors(gm: GraphModule) -> list[Node]:
    """The nodes in order, but every parameter just before its first reader: some graphs begin with all of them."""
    order: dict[Node, None] = {}
    for node in gm.graph.nodes:
        if node.op != "get_attr":
            order.update(dict.fromkeys([source for source in node.all_input_nodes if source.op == "get_attr"]))
            order[node] = None
    return list(order)


def _is_drawn(node: Node) -> bool:
    """Return whether a tensor of the model passes through a node: masks and sizes are not drawn."""
    if is_mask(node) or str(node.target).startswith(f"{MASKS}."):
        return False
    return node.op == "output" or "val" not in node.meta or bool(tensor_leaves(node.meta["val"]))


def _unmasked(node: Node) -> Node:
    while is_mask(node):
        node = node.all_input_nodes[0]
    return node


def _path(node: Node) -> str:
    """The module that a node belongs to, or is; its own name for those of the model itself."""
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path or node.name


def _inside(shown: _Shown) -> str:
    """The path by which it is folded: nodes of the model itself are not."""
    return shown.path if shown.path != shown.node.name or shown.node.op == "call_module" else ""


def _kind(node: Node) -> str:
    """Inputs and the output share no row with what computes, if there is room."""
    return "end" if node.op in ("placeholder", "output") else "inner"


def _row(nodes: Sequence[_Shown], wanted: bool, lane: int, depth: int | None, group: int) -> Row:
    first = nodes[0]
    families = list(dict.fromkeys(family for node in nodes for family in node.families))
    fills = tuple(map(family_colour, families[:_MOST_STRIPES]))
    frozen = any(node.frozen for node in nodes)
    alone = len(nodes) == 1
    if alone or not families:
        fills += (FROZEN,) * frozen
    number = str(families[0]) if len(fills) == 1 and families else ""
    kind = "box" if alone else "pile"
    mark = Mark(lane, fills, number, kind, barred=nodes[-1].masked)
    chips = () if number else _chips(families)
    if alone:
        return Row((mark,), first.path, _detail(first.node), chips, group)
    ends = [prefix(node.path, depth or 1) for node in (first, nodes[-1])]
    name = span(*ends) if wanted else "…"
    return Row((mark,), name, f"{len(nodes)} nodes", chips, group, bold=wanted)


def _chips(families: Sequence[int]) -> tuple[tuple[str, str], ...]:
    chips = [(str(family), family_colour(family)) for family in families[:_MOST_CHIPS]]
    rest = len(families) - len(chips)
    return (*chips, *([(f"+{rest}", "")] if rest else []))


def _detail(node: Node) -> str:
    return _WORDS[node.op] if node.op in _WORDS else op_name(node)


def _shape(node: Node) -> str:
    values = tensor_leaves(node.meta.get("val"))
    return "×".join(map(str, values[0].shape)) if values else ""


def _lines(inputs: Sequence[Sequence[int]], lanes: Sequence[int], colours: Sequence[str]) -> list[Line]:
    """A trunk down the lane of each value, and a bend to every reader in another lane."""
    readers: list[list[int]] = [[] for _ in inputs]
    for row, sources in enumerate(inputs):
        for source in sources:
            readers[source].append(row)
    lines = []
    for source, rows in zip(count(), readers):
        lane, colour = lanes[source], colours[source]
        straight = [row if lanes[row] == lane else row - 1 for row in rows]
        if rows and max(straight) > source:
            lines.append(Line(lane, source, max(straight), colour))
        lines += [Line(lane, row - 1, row, colour, to=lanes[row]) for row in rows if lanes[row] != lane]
    return lines
