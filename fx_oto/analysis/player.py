"""One analysis: the tape is played, node by node, and what was put off is settled at the end."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fx_oto.analysis.aliases import Part, meet, overwritten, part_of, taken
from fx_oto.analysis.boundaries import Boundaries
from fx_oto.analysis.closure import settle
from fx_oto.analysis.dependencies import Axis, Dependencies, Gather, Reason
from fx_oto.analysis.divisors import AxisName, divisors_among
from fx_oto.analysis.engine import FIXED, Propagation, Rule
from fx_oto.analysis.labels import UNKNOWN, ZERO, Layer, laid_along
from fx_oto.analysis.sizes import PLACE, indexed_at
from fx_oto.analysis.tables import untrained_tables
from fx_oto.analysis.tape import OpCall
from fx_oto.core.errors import FxOtoError
from fx_oto.core.fx_utils import behind, is_random, op_name, tensor_leaves
from fx_oto.core.layouts import is_sparse
from fx_oto.nn.leaves import OpaqueOp
from fx_oto.nn.modes import by_mode, called, written_in

__all__ = ["Player"]

_log = logging.getLogger(__name__)
_TIMES_SPARSE = {"mm", "bmm", "mv", "addmm", "_sparse_addmm"}


class Player(Propagation):
    """Plays the tape on the engine; ``run`` may be called once.

    Args:
        *args: see ``Propagation``.
        divisors: axes of parameters that are not driven to zero, as something is divided by them.
    """

    def __init__(self, *args: Any, divisors: Collection[AxisName] = ()) -> None:
        super().__init__(*args)
        self._divisors = divisors
        self._boundaries = Boundaries(self, self._gm, self._tape)
        self._untrained: list[Tensor] = []
        self._parts: dict[int, tuple[Part, ...] | None] = {}

    def run(self) -> Dependencies:
        """Play the tape, settle the deferred choices, and report."""
        axes = self._parameter_axes()
        self._values.share(self._tape.tensors.values())
        for name, calls, value in self._tape.steps:
            self.node, self.call = name, None
            read = [one for one in self._nodes[name].all_input_nodes if isinstance(one.meta["val"], Tensor)]
            self.given[name] = {one.name: self.layers(one.meta["val"]) for one in read}
            self._enter(self._nodes[name], value)
            for self.call in calls:
                self._play(self.call)
            self.values[name] = tuple(self.layers(leaf) for leaf in tensor_leaves(value))
        self.node, self.call = "", None
        self._boundaries.keep_unread()
        gathers = self._gathers()
        self._boundaries.keep_rectangles(self.values, gathers)
        self._keep_kernels()
        settle(self.atoms, self._obligations, self._frozen)
        self._keep_kernels()  # choices may have tied them to something
        roots = self.atoms.roots()
        return Dependencies(
            axes=axes,
            roots=roots,
            variable=self._variable(roots),
            works=tuple(self._works),
            reasons=self._reasons(roots),
            values=self.values,
            producers=tuple(self._producers),
            silenced=tuple(self._silenced),
            contracting=frozenset(self._contracting),
            adjustments=tuple(self._adjustments),
            gathers=gathers,
            unknown=tuple(self._unknown.values()),
            unequal=tuple(self._unequal),
            worths=self.worths,
            tables=frozenset(self._tables()),
            contents=self._constants.read_of(self._gm.named_buffers()),
            tokens=self.vocabularies.rows,
            divisors=divisors_among(axes, roots, self._tape, self._divided),
            steep=self._steep_classes(roots, in_weights=False),
            steep_weights=self._steep_classes(roots, in_weights=True),
        )

    def _tables(self) -> Iterator[str]:
        for name, _, value in self._tape.steps if self.worths else ():
            leaves = tensor_leaves(value)
            if leaves and all(map(self.is_table, leaves)):
                yield name

    def _gathers(self) -> dict[str, Gather]:
        """The selections that begin and end at nodes of the graph, by the name of the last."""
        named: dict[int, str] = {}
        for name, _, value in self._tape.steps:
            if isinstance(value, Tensor):
                named.setdefault(id(value), name)  # an identity returns what another node has made
        found = {}
        for name, _, value in self._tape.steps:
            selected = self._values[value].selected
            if selected is not None and named.get(id(value)) == name and id(selected[0]) in named:
                entry, dim, positions = selected
                found[name] = Gather(named[id(entry)], dim, positions)
        return found

    def _keep_kernels(self) -> None:
        """Keep whole what convolutions slide along, where something else reads the same weight and could cut it.

        Of all others there is nothing to say: they meet nothing, and are in no group.
        """
        variable = self._variable(self.atoms.roots())
        self._frozen += [(labels, reason) for labels, reason in self._kernels if variable[labels].any()]

    def _variable(self, roots: Tensor) -> Tensor:
        # A row of a convolution's weight makes its channel: once it is zero, the channel is, so it is driven to zero
        # (a variable of the group). The column of the next layer's weight that reads the channel is only cut with it:
        # it is multiplied by zero, whatever it is, and what training makes of it does not matter. Of a linear layer
        # (8, 4) before one of (2, 8), each of the 8 groups has a row of the first as its variable, and a column of the
        # second that is only cut. A tensor that is both, as a tied embedding is, is driven to zero: producers are last.
        # Behind a norm without weights, the channel is not zero though its row is: there the column is driven to zero
        # as well, so that nothing is lost with the channel, whatever it is.
        variable = torch.bincount(roots)[roots] > 1  # what meets nothing is no group
        none = torch.zeros(0, dtype=torch.int64)
        variable[torch.cat([none, *self._consumed])] = False
        variable[torch.cat([none, *(labels for _, labels in (*self._producers, *self._silenced))])] = True
        variable[torch.cat([none, *self._untrained])] = False
        return variable

    def _reasons(self, roots: Tensor) -> dict[int, Reason]:
        reasons: dict[int, Reason] = {}
        for labels, reason in self._frozen:
            for root in roots[labels[labels > 0]].unique().tolist():
                reasons.setdefault(root, reason)
        return reasons

    def _steep_classes(self, roots: Tensor, in_weights: bool) -> dict[int, Reason]:
        found: dict[int, Reason] = {}
        for labels, reached, is_weight, reason in self._steep:
            classes = roots[labels].unique()
            for root in classes[torch.isin(classes, roots[reached])].tolist() if is_weight == in_weights else ():
                found.setdefault(root, reason)
        return found

    def _parameter_axes(self) -> tuple[Axis, ...]:
        axes = []
        parameters = dict(self._gm.named_parameters())
        tables = untrained_tables(self._tape, parameters, self.moves_data)
        self._constants.tables = {id(self._tape.tensors[name]) for name in tables}
        for name, tensor in self._tape.tensors.items():
            layers = []
            for dim, size in enumerate(tensor.shape):
                atoms = self.atoms.fresh(size)
                axes.append(Axis(name, dim, int(atoms[0]) if size else len(self.atoms), size))
                if size > 1:
                    stays = name in tables or (name, dim) in self._divisors
                    worth = ZERO if name in parameters and not stays else UNKNOWN
                    self._untrained += [atoms] if stays else []
                    layers.append(Layer.uniform(laid_along(atoms, dim, tensor.ndim), worth))
            self._values[tensor].layers, self._values[tensor].is_weight = tuple(layers), True
            if is_sparse(tensor):
                self.freeze_value(tensor, "it is sparse, and slicing does not cut sparse tensors")
                self.put(tensor, ())
        self._num_axis_atoms = len(self.atoms)
        return tuple(axes)

    def _enter(self, node: Node, value: Any) -> None:
        if node.op == "placeholder":
            for leaf in tensor_leaves(value):
                self._values[leaf].origin = Reason(f"it is the model's input {node.target!r}", node=node.name)
        elif node.op == "output":
            self._check_outdated(tensor_leaves(value))
        self._boundaries.keep(node, value)
        if (indexed := indexed_at(node, self.sizes.vary)) is not None:
            self._keep_indexed(indexed[0].meta["val"], indexed[1])

    def _keep_indexed(self, source: Any, dims: list[int]) -> None:
        """Along these dimensions, on other inputs other parts are taken; of a list, other tensors."""
        if isinstance(source, Tensor):
            self.keep_along(source, dims, PLACE)
        elif dims:
            parts = [self.layers(part) for part in tensor_leaves(source)]
            labels = [layer.labels for layers in parts for layer in layers]
            if any(len(layers) != 1 or not torch.equal(layers[0].labels, labels[0]) for layers in parts):
                for one in labels:
                    self.freeze(one, PLACE)

    def _play(self, call: OpCall) -> None:
        self._check_outdated(call.inputs)
        rule = self.rule_for(call.func)
        if not self.moves_data(call):
            for value in call.inputs:
                for layer in self.layers(value):
                    if len(layer.dims) > 1:
                        self.rectangle(layer.labels)
        written, refused = call.written, len(self._frozen)
        before = [self.layers(target) for target in written]
        try:
            self._keep_sparse(call)
            rule(call, self)
            if call.macs:
                self.work(call.macs, *self._contracted(call, rule), self._summed(call))
        except FxOtoError:  # what a user taught does not fit
            raise
        except Exception as error:
            self._keep_touched(call, error)
        self._values.pass_on(call, [reason for _, reason in self._frozen[refused:]])
        for target, layers in zip(written, before, strict=True):
            self._note_write(target, layers)
        self._values.share(call.outputs)
        self._note_made(call)

    def _note_made(self, call: OpCall) -> None:
        """What a call has returned, or written into, is drawn if it draws, or reads what is."""
        is_choice = call.func is by_mode  # of which evaluation takes the last
        sources = tensor_leaves(call.args[-1]) if is_choice else call.inputs
        is_drawn = (call.may_draw and not is_choice) or any(self._values[source].is_drawn for source in sources)
        for out in call.outputs:
            self._values[out].made_by, self._values[out].is_drawn = call, is_drawn
        for alias in (one for target in call.written if is_drawn for one in self._values.sharing(target)):
            self._values[alias].is_drawn = True

    def _keep_sparse(self, call: OpCall) -> None:
        """Rules speak of elements that lie where labels say: a sparse tensor may only be multiplied with others."""
        if call.name not in _TIMES_SPARSE and any(map(is_sparse, (*call.inputs, *call.outputs))):
            for value in call.inputs:
                self.freeze_value(value, "it is combined with a sparse tensor")
                self.put(value, ())

    def _note_write(self, target: Tensor, before: Sequence[Layer]) -> None:
        """A call has written into ``target``; in the mode in which it does not, the value is what it was ``before``.

        Where training draws random numbers it is what it is in evaluation, as of ``by_mode``.
        """
        node = self.fx_node
        if node.target is written_in:
            by_chance = node.args[0] and any(map(is_random, behind(node) - behind(node.args[3])))
            self.put(target, before if by_chance else self._agreed(before, self.layers(target)))
        self._keep_steps(target)
        still = {layer.dims for layer in self.layers(target)}
        if not self._values.says_the_same(target, [layer for layer in before if layer.dims in still]):
            self._write_through(target)
        for layer in before:  # what shares its memory still speaks of those that it has lost
            for one in self._values.sharing(target) if layer.dims not in still else ():
                self._values[one].lost += (layer.labels,) if one is not target else ()

    def _write_through(self, target: Tensor) -> None:
        """What shares memory with a tensor is what has been written into that; where this is not told, it is outdated.

        Of ``x``, ``(4, 16)``, and ``y = x[:, 8:]``, then ``y.cos_()``, what is removed of ``x`` is zero along the first
        8 channels, and one along the others.
        """
        aliases = self._values.sharing(target)
        whole = aliases[0]
        told = [one for one in aliases if self._values.is_line(one) and self._values[one].outdated_by is None]
        parts = {id(one): self._part(one, whole) for one in told}
        here = parts.get(id(target)) if id(whole) in parts else None
        layers = self.layers(whole) if here is None or whole is target else self._layers_with(target, whole, here)
        for one in aliases:
            if one is target:
                continue
            there = parts.get(id(one)) if here is not None else None
            if here is None or there is None:
                self._values[one].outdated_by = target
            elif meet(here, there):
                self._values[one].layers = tuple(taken(layers, there, one.ndim))

    def _part(self, view: Tensor, whole: Tensor) -> tuple[Part, ...] | None:
        """Which part of the first tensor in its memory a view is."""
        if id(view) not in self._parts:
            self._parts[id(view)] = part_of(view, whole)
        return self._parts[id(view)]

    def _layers_with(self, target: Tensor, whole: Tensor, parts: Sequence[Part]) -> list[Layer]:
        """The layers of a tensor, into a part of which something has been written."""
        new, found = {layer.dims: layer for layer in self.layers(target)}, []
        for layer in self.layers(whole):
            part = parts[layer.dims[0]]
            labels = layer.labels.reshape(-1)[list(part.places)]
            now = None if part.dim is None else new.pop((part.dim,), None)
            if now is None:
                self.freeze(labels, FIXED)
            else:
                self.unite(labels, now.labels.reshape(-1), FIXED)
            found.append(overwritten(layer, [one.places for one in parts], whole.shape, now))
        for layer in new.values():
            self.freeze(layer.labels, FIXED)
        return found

    def _keep_steps(self, target: Tensor) -> None:
        """A view of every other channel becomes a copy once some are cut, so nothing may be written through it.

        What ``x[:, ::2] += 1`` has added to a copy, Python writes into ``x`` again.
        """
        aliases = self._values.sharing(target)
        whole, (name, args) = aliases[0], called(self.fx_node)
        inner = args[0].meta["val"] if name == "setitem" else target
        here = self._part(target, whole)
        for one in aliases if len(aliases) > 1 else ():
            parts = self._part(one, whole) or ()
            along = {dim for dim, part in enumerate(parts) if part.leaves_out}
            for layer in (layer for layer in self.layers(whole) if along.intersection(layer.dims)):
                if one is inner and not _is_written_back(self.fx_node):
                    self.freeze(
                        layer.labels, "it is written in place through a view that leaves out some between others"
                    )
                elif one is not target and (here is None or meet(here, parts)):
                    self._values[one].outdated_by = target

    def _agreed(self, left: Sequence[Layer], right: Sequence[Layer]) -> list[Layer]:
        """What is true of a tensor whose layers are these or those."""
        why, others, found = "one training mode writes into it", {layer.dims: layer for layer in right}, []
        for layer in left:
            if (other := others.pop(layer.dims, None)) is None:
                self.freeze(layer.labels, why)
                continue
            self.unite(layer.labels, other.labels, why)
            same = torch.equal(*torch.broadcast_tensors(layer.removed, other.removed))
            found.append(layer if same else Layer.uniform(layer.labels))
        for other in others.values():
            self.freeze(other.labels, why)
        return found

    def _keep_touched(self, call: OpCall, error: Exception) -> None:
        """A rule has failed: nothing that the call touches can go, and nothing is known of what it returns."""
        _log.debug("the rule of %s failed at node %s", call.name, self.node, exc_info=error)
        what = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        for value in (*call.inputs, *call.outputs):
            self.freeze_value(value, f"the rule of the op {call.name} failed on it ({what})")
        for out in call.outputs:
            self.put(out, ())

    def _contracted(self, call: OpCall, rule: Rule) -> tuple[list[Layer], list[tuple[Layer, int]]]:
        """Layers along the axes that a contraction runs over, each axis once; and others, see ``work``."""
        if hasattr(rule, "contracted"):
            return list(rule.contracted(call, self)), []
        if isinstance(call.func, OpaqueOp):
            return [], []
        if call.name == "convolution":
            lines = [layer for layer in self.layers(call.args[0]) if len(layer.dims) == 1 and layer.dims > (1,)]
            others = [layer for layer in self.layers(call.args[0]) if layer not in lines]
            beside = [(layer, dim) for layer in others for dim in layer.dims if dim != 1]
            lines = [layer for layer in lines if not self._spread(layer)]
            return [*self.layers(call.args[1]), *lines], beside
        operands = [arg for arg in call.args[:3] if isinstance(arg, Tensor)][-2:]
        if len(operands) < 2 or not operands[1].ndim:
            return [], []
        left, right = (self.layers(operand) for operand in operands)
        last = operands[1].ndim - 1
        inner = [layer for layer in right if last > 0 and last in layer.dims]
        grids = [(layer, last) for layer in inner if len(layer.dims) > 1]
        return [*left, *(layer for layer in inner if layer.dims == (last,))], grids

    def _spread(self, layer: Layer) -> bool:
        """Whether the current node puts zeros back along this axis, so that it stays as long as it was."""
        here = [one for one in reversed(self._adjustments) if one.node == self.node and one.kind == "slide"]
        return any(torch.equal(one.labels, layer.labels.reshape(-1)) for one in here)

    def _summed(self, call: OpCall) -> Layer | None:
        """Along the axis that ``einsum`` sums over: it does not where a single index is left."""
        if op_name(self.fx_node) != "einsum" or call.name != "bmm":
            return None
        left = call.args[0]
        return next((layer for layer in self.layers(left) if left.ndim - 1 in layer.dims), None)

    def _check_outdated(self, values: Iterable[Any]) -> None:
        """What is read must not have changed behind its layers."""
        why = "it was written in place through a view before it is read here"
        for value in values:
            if (target := self._values[value].outdated_by) is not None:
                for alias in (value, target):
                    self.freeze_value(alias, why)
            for labels in self._values[value].lost:
                self.freeze(labels, why)


def _is_written_back(node: Node) -> bool:
    """Whether a node is the operator in ``x[places] += y``, after which Python writes ``x[places]`` itself."""
    view = next(iter(called(node)[1]), None)
    if not isinstance(view, Node) or op_name(view) != "getitem":
        return False
    place = [*view.args, node]
    return any(called(user)[0] == "setitem" and list(called(user)[1]) == place for user in node.users)
