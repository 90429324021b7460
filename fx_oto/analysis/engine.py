"""The engine of dependency analysis: it plays the ATen tape on provenance layers.

Each rule (``fx_oto.ops``) is handed one ATen call and this engine, and says what the call does to labels:
which it unites, which it freezes and why, what it lets through. The engine owns the union-find, remembers
layers by value, defers choices that depend on later unions, and settles them at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fx_oto.analysis.atoms import Atoms
from fx_oto.analysis.closure import Crossing, Grouped, Obligation, Rectangle
from fx_oto.analysis.constants import Constants
from fx_oto.analysis.copies import are_as_many, lie_once
from fx_oto.analysis.dependencies import ADJUSTABLE, Adjustment, NodeValues, Reason, Said, Work, Worth
from fx_oto.analysis.heads import before_products
from fx_oto.analysis.labels import ZERO, Layer, Region, laid_along, worth_along
from fx_oto.analysis.sizes import SizesRead
from fx_oto.analysis.tape import OpCall, Tape
from fx_oto.analysis.values import Values
from fx_oto.analysis.vocabulary import Vocabularies
from fx_oto.core.fx_utils import op_name, source_line
from fx_oto.nn.modes import called
from fx_oto.nn.modules import is_opaque

__all__ = ["FIXED", "SLIDES", "Attention", "Propagation", "Rule", "Said"]

# What attention loses: whole heads, or the same part of the width of every head.
Attention = Literal["heads", "head_dim"]
# The commonest reason to keep something whole.
FIXED = "it is combined with a tensor that is kept whole, such as the input"
SLIDES = "a convolution slides along it"


class Propagation:
    """State of one analysis; rules call its methods.

    Args:
        gm: the GraphModule, for source lines and leaf modules.
        tape: its ATen calls.
        rule_for: finds the rule of an operator.
        attention: what attention loses, ``"heads"`` or ``"head_dim"``.
        keep_tokens: those that a vocabulary keeps in any case; None keeps whole vocabularies.

    Attributes:
        values: for each node that has run, the layers of each tensor in its value.
        given: for each, those of the tensors that it read, as they were then, by the nodes that return them.
        worths: how the compact graph computes what removed channels are worth; see ``Dependencies``.
    """

    def __init__(
        self,
        gm: GraphModule,
        tape: Tape,
        rule_for: Callable[[Any], Rule],
        attention: Attention = "heads",
        keep_tokens: tuple[int, ...] | None = None,
    ) -> None:
        self.atoms = Atoms()
        self.attention = attention
        self.call: OpCall | None = None
        self.node = ""
        self.as_whole = False
        self.memo: dict[Any, Any] = {}
        self.values: NodeValues = {}
        self.given: dict[str, dict[str, tuple[Layer, ...]]] = {}
        self.worths: dict[tuple[str, int], Worth | None] = {}
        self._gm, self._tape, self.rule_for = gm, tape, rule_for
        self._nodes: dict[str, Node] = {node.name: node for node in gm.graph.nodes}
        self._num_axis_atoms = 1
        self._put: list[Tensor] = []
        self._made_up: set[int] = set()
        self._values = Values()
        self._constants = Constants(tape, self._values, self._nodes, self._keeps_size)
        self.sizes = SizesRead(gm, self._constants.without_inputs, lambda: self.fx_node)
        self._before_products = before_products(tape, self.moves_data)
        self.vocabularies = Vocabularies.of(gm, tape, self.moves_data, keep_tokens)
        # What rules have said, call by call: what can go is decided by the first four, ``Dependencies`` has the others.
        self._frozen: list[tuple[Tensor, Reason]] = []
        self._obligations: list[Obligation] = []
        self._consumed: list[Tensor] = []
        self._kernels: list[tuple[Tensor, Reason]] = []
        self._producers: list[tuple[str, Tensor]] = []
        self._silenced: list[tuple[str, Tensor]] = []
        self._divided: list[tuple[Tensor, Tensor]] = []
        self._steep: list[tuple[Tensor, Tensor, bool, Reason]] = []
        self._contracting: set[str] = set()
        self._works: list[Work] = []
        self._adjustments: list[Adjustment] = []
        self._unknown: dict[tuple[str, str], Reason] = {}
        self._unequal: list[tuple[Tensor, Tensor]] = []

    # -- what rules read -------------------------------------------------------------------------------

    def layers(self, value: Any) -> tuple[Layer, ...]:
        """The layers of a tensor; none when it is untracked or not a tensor."""
        return self._values[value].layers

    def is_weight(self, value: Any) -> bool:
        """Whether a tensor is a parameter, or one that was only moved around."""
        return self._values[value].is_weight

    def constant(self, value: Tensor) -> Tensor | None:
        """The real content of a tensor that is the same in every call, None for any other."""
        return self._constants.content(value)

    def is_table(self, value: Tensor) -> bool:
        """Whether a tensor is computed of buffers and of sizes alone."""
        return self._constants.is_table(value)

    def calls_of(self, node: str) -> tuple[OpCall, ...]:
        """The calls that a node makes."""
        return self._tape.made_at(node)

    def moves_data(self, call: OpCall) -> bool:
        """Whether all that a call does is to move data."""
        return bool(getattr(self.rule_for(call.func), "moves_data", False))

    def is_fixed(self, value: Tensor, dim: int) -> bool:
        """Whether a dimension has the size of a parameter's or buffer's, and so the same in every call."""
        if value.ndim and self.is_weight(value) and not self._values[value].resized:
            return True
        roots = [self.atoms.find(layer.labels) for layer in self.layers(value) if dim in layer.dims]
        return any(bool(((root > 0) & (root < self._num_axis_atoms)).all()) for root in roots)

    def _keeps_size(self, value: Tensor, dim: int) -> bool:
        """Whether a dimension is as long in every call: ``is_fixed``, and channels lie there as often."""
        if self.is_weight(value) or not self.is_fixed(value, dim):
            return self.is_fixed(value, dim)
        labels = [layer.labels.movedim(dim, 0) for layer in self.layers(value) if dim in layer.dims]
        return lie_once(labels) or are_as_many(value, dim, self.maker, self._keeps_size)

    @property
    def fx_node(self) -> Node:
        """The current node."""
        return self._nodes[self.node]

    @property
    def indexes(self) -> bool:
        """Whether the current node indexes with brackets; what it takes at places that vary is kept whole already."""
        return called(self._nodes[self.node])[0] in ("getitem", "setitem")

    @property
    def reads_drawn(self) -> bool:
        """Whether what the current call reads may depend on random numbers that are drawn in evaluation."""
        return self.call is not None and any(self._values[value].is_drawn for value in self.call.inputs)

    def made_by(self, value: Tensor) -> OpCall | None:
        """The call that made a tensor, if it is all that a function or method node does."""
        call = self._values[value].made_by
        if call is None or self._tape.made_at(call.node) != (call,):
            return None
        return call if self._nodes[call.node].op in ("call_function", "call_method") else None

    def maker(self, value: Tensor) -> OpCall | None:
        """The call that returned a tensor, or wrote into it, last; None of parameters and inputs."""
        return self._values[value].made_by

    def region(self, value: Tensor) -> Region | None:
        """The movement region that a tensor is part of."""
        return self._values[value].region

    def loses(self, value: Tensor) -> Attention | None:
        """What goes of a grid of heads and widths that a value may hold; None if no attention follows at once."""
        return self.attention if id(value) in self._before_products else None

    @property
    def rewritable(self) -> bool:
        """Whether slicing can rewrite what the current node computes: not inside opaque leaves and users' ops."""
        return not self.as_whole and not is_opaque(self._nodes[self.node], self._gm)

    def can_adjust(self, kind: str) -> bool:
        """Whether slicing can make the current node compute differently: see ``Adjustment.kind``."""
        node = self._nodes[self.node]
        if kind == "fold" and node.op != "call_module":  # the contribution is computed from the parameter itself
            weight = [*node.args[1:2], node.kwargs.get("weight")][0]
            if not isinstance(weight, Node) or weight.op != "get_attr":
                return False
        return self.rewritable and op_name(node).lower() in ADJUSTABLE[kind]

    # -- what rules say --------------------------------------------------------------------------------

    def put(self, value: Tensor, layers: Iterable[Layer]) -> None:
        """Give a value its layers; those that do not vary are frozen, for they cannot be cut out."""
        kept = []
        self._put.append(value)
        for layer in layers:
            if layer.dims:
                kept.append(layer)
            else:
                self.freeze(layer.labels, "a single index is selected, and nothing of it would be left")
        self._values[value].layers = tuple(kept)

    def made_up(self, size: int) -> Tensor:
        """Atoms for a dimension that an op creates, such as ``expand``; shape ``(size,)``."""
        atoms = self.atoms.fresh(size)
        self._made_up.add(int(atoms[0]))
        return atoms

    def is_made_up(self, layer: Layer) -> bool:
        """Whether a layer belongs to a dimension that an op created."""
        return layer.labels.numel() > 0 and int(layer.labels.min()) in self._made_up

    def put_weight(self, value: Tensor) -> None:
        """Remember that a value is a parameter that was only moved around."""
        record, inputs = self._values[value], self.call.inputs if self.call else ()
        record.is_weight = True
        record.resized |= self.sizes.are_read or any(self._values[read].resized for read in inputs)

    def put_region(self, value: Tensor, region: Region) -> None:
        """Remember that a value is part of a movement region."""
        self._values[value].region = region

    def put_gather(self, value: Tensor, entry: Tensor, dim: int, positions: Tensor) -> None:
        """Remember that a value is ``entry.index_select(dim, positions)``."""
        self._values[value].selected = entry, dim, positions

    def unite(self, left: Tensor, right: Tensor, why: str = "it is combined with something that is kept whole") -> None:
        """Couple atoms elementwise under broadcasting; what meets atom 0 is frozen."""
        if left is right:
            return
        for one, other in ((left, right), (right, left)):
            if not one.all():
                self.freeze(torch.where(one == 0, other, 0), why)
        self.atoms.unite(left, right)

    def freeze(self, labels: Tensor, why: str) -> None:
        """Keep whole the classes of these atoms."""
        labels = labels.reshape(-1)
        if labels.any():
            self._frozen.append((labels, self.reason(why)))

    def freeze_where(self, bad: Tensor, labels: Tensor, why: str) -> None:
        """Keep whole the classes of those atoms for which ``bad``, broadcastable to them, is true."""
        if bad.any():
            self.freeze(torch.where(bad, labels, 0), why)

    def freeze_value(self, value: Any, why: str) -> None:
        """Keep whole everything that a value depends on."""
        for layer in self.layers(value):
            self.freeze(layer.labels, why)

    def keep_along(self, value: Any, dims: Collection[int], why: str) -> None:
        """Keep whole what varies along some dimensions of a value; what varies along others may go."""
        layers = self.layers(value)
        if dims and layers:
            self.put(value, self.narrow(layers, set(range(value.ndim)).difference(dims), why))

    def produce(self, labels: Tensor) -> None:
        """Mark atoms whose indices are variables that the zero-invariant group drives to zero."""
        self._producers.append((self.node, labels.reshape(-1)))

    def consume(self, labels: Tensor) -> None:
        """Mark atoms whose indices are only summed over here: cut with their group, but not driven to zero."""
        self._consumed.append(labels.reshape(-1))

    def silence(self, labels: Tensor) -> None:
        """Mark atoms whose indices sum over what is not zero once removed: they are driven to zero with their group."""
        self._silenced.append((self.node, labels[labels > 0].reshape(-1)))

    def keep_from_zero(self, value: Tensor, labels: Tensor) -> None:
        """Note that something is divided by a value, and which of its atoms must not make it zero."""
        self._divided.append((value, labels[labels > 0].reshape(-1)))

    def steep(self, labels: Tensor, reached: Tensor, is_weight: bool) -> None:
        """Note atoms that, being zero, have a gradient that is not finite, and which atoms of what it ends in.

        That is a parameter, or what a contraction returns, and all that is before it.
        """
        reason = self.reason("its derivative is not finite")
        self._steep.append((labels[labels > 0].reshape(-1), reached, is_weight, reason))

    def slide(self, labels: Tensor) -> None:
        """Mark atoms of a weight's axes along which a convolution slides: they stay, whatever else reads the weight."""
        labels = labels.reshape(-1)
        self._consumed.append(labels)
        self._kernels.append((labels[labels > 0], self.reason(SLIDES)))

    def rectangle(self, labels: Tensor) -> None:
        """Ask that whatever is removed from these labels leaves a rectangle."""
        if not labels.all():  # a part of each slice stays
            self.freeze(labels, FIXED)
            return
        self._obligations.append(Rectangle(labels))

    def grouped(self, grid: Grouped) -> None:
        """Ask that a grouped contraction stays a grid of equal groups."""
        self._obligations.append(grid)

    def crossing(self, grid: Tensor, thin: Tensor) -> None:
        """Combine a grid with what varies along one of its axes only, whichever axis survives."""
        self._obligations.append(Crossing(grid, thin, self.reason(FIXED)))

    def work(
        self,
        macs: int,
        layers: Iterable[Layer],
        others: Iterable[tuple[Layer, int]] = (),
        summed: Layer | None = None,
    ) -> None:
        """Note a contraction that the current call makes.

        Args:
            macs: its multiply-adds.
            layers: along the axes that it runs over, each axis once.
            others: that it runs over as well, along one of their dimensions, if it is that one which is cut.
            summed: the one of ``layers`` over whose last dimension it sums, if torch only multiplies where one index of
                that is left.
        """
        self._contracting.add(self.node)
        macs, layers = self._tape.on_example(self.node, macs), tuple(layers)
        operands = [(one.labels, one.dims) for one in layers] + [(one.labels, (dim,)) for one, dim in others]
        axes = tuple(one.labels.reshape(-1) for one in layers)
        over = next((i for i, one in enumerate(layers) if one is summed), None)
        self._works.append(Work(macs, axes, tuple(operands), over, self.node))

    def mixes(self) -> None:
        """Note that what the current node returns at one index may depend on what it is given at others."""
        self._contracting.add(self.node)

    @contextmanager
    def watched(self) -> Iterator[Said]:
        """Note what is said in a while: which values get layers, and which labels are kept whole."""
        refused = len(self._frozen)
        told = Said([], [])
        self._put = told.put
        yield told
        told.frozen.extend(labels for labels, _ in self._frozen[refused:])

    def keep_unequal(self, left: Tensor, right: Tensor) -> None:
        """Ask that something of ``right`` is put back if as much as of ``left`` would be left of it."""
        self._unequal.append((left, right))

    def narrow_to(self, layer: Layer, dims: Iterable[int], why: str) -> Layer | None:
        """Restrict a layer to some dimensions: along the others its labels are united.

        Of labels (1, 4, 6), heads of a width, restricted to dimension 1, the 6 of each head are united, and (1, 4, 1)
        are left; what a removed element is worth stays known where it is the same along the others.

        Returns:
            The layer with size 1 along every other dimension, or None (and frozen) if it does not vary along ``dims``.
        """
        keep = set(dims)
        if not keep.intersection(layer.dims):
            self.freeze(layer.labels, why)
            return None
        labels = layer.labels
        for dim in layer.dims:
            if dim not in keep:
                self.unite(labels, labels.narrow(dim, 0, 1))
                labels = labels.narrow(dim, 0, 1)
        return Layer(labels, worth_along(layer.removed, keep))

    def rows_of(self, grid: Layer, dim: int) -> Layer:
        """A layer of its own along one dimension of a grid, which goes with the grid if that axis of it survives."""
        first = grid.labels.movedim(dim, 0).flatten(1)[:, 0]
        kinds, which = first.unique(return_inverse=True)  # (B * 6, 16): the 6 rows of each example are the same
        rows = laid_along(self.atoms.fresh(len(kinds))[which], dim, grid.labels.ndim)
        self.crossing(grid.labels, rows)
        return Layer(rows, worth_along(grid.removed, {dim}))

    def narrow(self, layers: Iterable[Layer], dims: Collection[int], why: str) -> list[Layer]:
        """``narrow_to`` for several layers, without those that do not vary along ``dims``."""
        narrowed = [self.narrow_to(layer, dims, why) for layer in layers]
        return [layer for layer in narrowed if layer is not None]

    def adjust(self, kind: str, labels: Tensor, removed: Tensor = ZERO) -> None:
        """Ask slicing to compute the current node over the original count, or with a corrected bias."""
        if not self.can_adjust(kind):
            self.freeze(labels, f"the {kind} over it is computed in a way that slicing cannot rewrite")
            return
        labels = labels.reshape(-1)
        self._adjustments.append(Adjustment(kind, self.node, labels, removed.reshape(-1).expand(labels.shape)))

    def unknown_op(self, name: str) -> None:
        """Note that the current call has no rule and something tracked enters it."""
        reason = self.reason(f"no rule is known for the op {name}")
        self._unknown.setdefault((name, reason.source), reason)

    def reason(self, why: str) -> Reason:
        """``why``, with op, node and source line of the current call."""
        node = self._nodes.get(self.node)
        if node is None:
            return Reason(why)
        op = self.call.name if self.call is not None else op_name(node)
        since = self._values.behind(self.call) if why == FIXED else None
        return Reason(why, op, node.name, source_line(node), since)


Rule = Callable[[OpCall, Propagation], None]
