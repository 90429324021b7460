"""Physical slicing: cuts out the ZIGs whose variables are all zero."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map_only

from fx_oto.analysis.dependencies import Adjustment, Axis, Dependencies
from fx_oto.analysis.vocabulary import TokenInput
from fx_oto.core.context import Context, ExampleInputs, inputs_now
from fx_oto.core.errors import InputError, NothingToCompressError, SlicingError
from fx_oto.core.fx_utils import (
    check_has_numbers,
    check_held,
    clone_module,
    last_node,
    order_in_memory,
    signature_of,
    tensor_leaves,
    tensor_names,
    with_modes_of,
    without_code,
)
from fx_oto.core.masks import MASKS
from fx_oto.core.original import Original
from fx_oto.core.parameters import parameter_like
from fx_oto.core.preserve import evaluating
from fx_oto.core.tables import Tabular, counted, table
from fx_oto.core.warn import warn
from fx_oto.framework.stages import Pass
from fx_oto.framework.trajectory import Trajectory
from fx_oto.ops.branches import Gone, find_branches
from fx_oto.ops.rewriting import rewrite
from fx_oto.zigs.cuts import Cuts
from fx_oto.zigs.partition import Partition, partition

__all__ = ["PhysicalSlicing", "SlicingPlan"]

_CUT = ("tensor", "dim", "kept", "of")
_PIECE = 1 << 20  # elements of a tensor that are cut at once


@dataclass(frozen=True, eq=False, repr=False)
class SlicingPlan(Tabular):
    """The indices that were kept of each parameter axis; ``str()`` is a table, a notebook shows it as HTML.

    Attributes:
        kept: by tensor name and dimension, the kept indices of each axis that lost some: int64, ascending, shape
            ``(kept,)``.
        cuts: the same for every node's value.
        kept_back: what is zero and was kept all the same, with the reason.
        tokens: of inputs that are token ids, the ids that are left, as the full model counts them: int64, ascending,
            shape ``(tokens,)``. The compact model counts them anew, from 0.
        gone: by name, the ZIGs of each family of which all are zero, as root atoms: int64, shape ``(num_zigs,)``.
            One of each was kept, for a tensor cannot be empty; ``DropBranches`` takes out what is not needed.
        original: the model that was captured, as it was then.
        added_macs: multiply-adds by which the compact model finds what removed channels would be worth.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_zigs_(0, torch.tensor([0, 3]))
        >>> plan = fx_oto.Context.of(fx_oto.compress(gm)).get(fx_oto.SlicingPlan)
        >>> plan.kept["2.weight", 1].tolist()
        [1, 2, 4, 5, 6, 7]
        >>> print(plan)
        3 axes were cut
        <BLANKLINE>
        tensor      dim    kept    of
        --------  -----  ------  ----
        0.weight      0       6     8
        0.bias        0       6     8
        2.weight      1       6     8
    """

    provided_by: ClassVar[str] = "physical-slicing"

    kept: dict[tuple[str, int], Tensor]
    cuts: Cuts
    kept_back: tuple[str, ...] = ()
    gone: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Mapping[TokenInput, Tensor] = field(default_factory=dict)
    original: Original | None = None
    added_macs: int = 0

    def left_of(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of a tensor of the full model, such as a parameter or its gradient.

        Args:
            name: of the parameter or buffer.
            tensor: of its full size, shape ``(…)``; each axis that was cut loses what the axis has lost.
        """
        return _select(tensor, {dim: self.kept[name, dim] for dim in range(tensor.dim()) if (name, dim) in self.kept})

    def left_of_outputs(self, gm: GraphModule, outputs: Any) -> Any:
        """What the compact model returns of the full one's outputs: of scores of tokens, those of the tokens left.

        Args:
            gm: the full or the compact GraphModule.
            outputs: what the full one returns.
        """
        if not self.tokens:
            return outputs
        cuts = (cut or {} for cut in self.cuts.of_value(last_node(gm.graph).name))
        return tree_map_only(Tensor, lambda output: self.cuts.apply(output, next(cuts, {})), outputs)

    def counted_anew(self, gm: GraphModule, inputs: ExampleInputs) -> ExampleInputs:
        """The full model's inputs for the compact one; in the place of tokens that are gone stands one that is left.

        Args:
            gm: the full or the compact GraphModule.
            inputs: what the full one is called with.
        """
        return self._with_ids(gm, inputs, lambda ids, left: torch.searchsorted(left, ids).clamp(max=len(left) - 1))

    def as_in_full(self, gm: GraphModule, inputs: ExampleInputs) -> ExampleInputs:
        """The compact model's inputs for the full one.

        Args:
            gm: the full or the compact GraphModule.
            inputs: what the compact one is called with.
        """
        return self._with_ids(gm, inputs, lambda ids, left: left[ids])

    def _with_ids(
        self, gm: GraphModule, inputs: ExampleInputs, change: Callable[[Tensor, Tensor], Tensor]
    ) -> ExampleInputs:
        if not self.tokens:
            return inputs
        given = signature_of(gm.graph).bind(*inputs.args, **inputs.kwargs).arguments
        left = {id(tensor_leaves(given[one.name])[one.leaf]): kept for one, kept in self.tokens.items()}
        return inputs.mapped(
            lambda ids: change(ids, left[id(ids)].to(ids.device)).to(ids.dtype) if id(ids) in left else ids
        )

    def to_dict(self) -> dict[str, Any]:
        """``axes``, each tensor, dim, size, and the list ``kept`` of its indices; ``kept_back``."""
        axes = [
            {
                "tensor": axis.tensor,
                "dim": axis.dim,
                "size": axis.size,
                "kept": self.kept[axis.tensor, axis.dim].tolist(),
            }
            for axis in self._cut_axes()
        ]
        return {"axes": axes, "kept_back": list(self.kept_back)}

    @property
    def _summary(self) -> str:
        return f"{counted(len(self.kept), 'axis was', 'axes were')} cut"

    def _cut_axes(self) -> list[Axis]:
        return [axis for axis in self.cuts.found.axes if (axis.tensor, axis.dim) in self.kept]

    def _tables(self, style: str) -> tuple[str, ...]:
        kept = [(a.tensor, str(a.dim), str(len(self.kept[a.tensor, a.dim])), str(a.size)) for a in self._cut_axes()]
        tables = (table(kept, _CUT, style, _CUT[1:]),)
        back = [(reason,) for reason in self.kept_back]
        return (*tables, table(back, ("zero, and kept all the same",), style)) if back else tables


@dataclass(frozen=True)
class PhysicalSlicing(Pass):
    """Index the parameters, resize the modules, rewrite the nodes and recompile.

    The result owns its parameters; the input keeps its own, unchanged. Provides ``SlicingPlan``.

    Raises:
        NothingToCompressError: when it runs: no ZIG is zero.
        SlicingError: when it runs: all ZIGs of a family are zero that an output depends on, or a node cannot
            be rewritten.
        InputError: when it runs: a parameter holds NaN or infinite values, or is on the meta device.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_(0.5)
        >>> fx_oto.PhysicalSlicing()(gm).graph_module.get_submodule("2")
        Linear(in_features=4, out_features=2, bias=True)
    """

    name: ClassVar[str] = "physical-slicing"
    requires: ClassVar[tuple[type, ...]] = (Dependencies, Partition)
    provides: ClassVar[tuple[type, ...]] = (SlicingPlan,)
    preserves: ClassVar[tuple[type, ...]] = (Trajectory,)
    trusted: ClassVar[bool] = True

    def transform(self, gm: GraphModule, context: Context) -> GraphModule:
        """Build the compact GraphModule.

        Raises:
            NothingToCompressError: no ZIG is zero.
            SlicingError: all ZIGs of a family are zero that an output depends on, or a node cannot
            be rewritten.
            InputError: a parameter holds NaN or infinite values, or is on the meta device.
        """
        found = context.get(Dependencies)
        check_held(gm, (axis.tensor for axis in found.axes))
        check_has_numbers(gm, "slicing")
        if context.original is not None:
            context.original.check_shared(gm)
        _check_finite(dict(gm.named_parameters()))
        kept, kept_back, gone = _kept_classes(gm, found)
        cuts = Cuts(found, kept[found.roots])
        left = {one: cuts.kept_labels(rows).nonzero().reshape(-1) for one, rows in found.tokens.items()}
        plan = SlicingPlan(cuts.axes, cuts, kept_back, gone, left, context.original)
        compact = _sliced_copy(gm, plan)
        if context.original is not None:
            context.original.drop_forwards_of_others(compact)
        with evaluating(compact):  # in training, reading a parametrized weight may write into buffers
            fold, full = lambda node, adjustment: _contribution(gm, cuts, node, adjustment), tensor_names(gm)
            plan = replace(plan, added_macs=rewrite(compact, cuts, fold, full))
        with_modes_of(compact, gm)  # also what was put in the place of a module meanwhile
        compact._modules.pop(MASKS, None)
        now = context.keep(self.preserves, self.name).provide(plan)
        for training in [result for result in now.results.values() if isinstance(result, Trajectory)]:
            now = now.provide(copy.deepcopy(training))  # the optimizer may go on writing its own
        inputs = plan.counted_anew(gm, inputs_now(gm, context))
        now = replace(now, original=None, inputs=inputs, kept=_kept_of_first(gm, plan, context))
        return now.attach(compact)

    def macs(self, before: int | None, context: Context) -> int | None:
        """Those that are left of each contraction."""
        plan = context.get(SlicingPlan)
        return None if before is None else before - plan.cuts.saved_macs + plan.added_macs

    def refusals(self, gm: GraphModule, context: Context) -> tuple[str, ...]:
        """ZIGs that are zero and were kept all the same."""
        return context.get(SlicingPlan).kept_back


def _kept_of_first(gm: GraphModule, plan: SlicingPlan, context: Context) -> dict[tuple[str, int], tuple[Tensor, int]]:
    """What is kept of the very first model: where an earlier round kept 1, 3 and 4, indices 0 and 2 are 1 and 4."""
    kept, tensors = dict(context.kept), tensor_names(gm)
    for (name, dim), now in plan.kept.items():
        if name in tensors:
            before, size = kept.get((name, dim), (None, tensors[name].size(dim)))
            kept[name, dim] = (now if before is None else before[now], size)
    return kept


def _check_finite(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):
            raise InputError(
                f"{name} holds NaN or infinite values, so outputs cannot be compared: the training has diverged. "
                "Restore a checkpoint, or lower the learning rate"
            )


def _kept_classes(gm: GraphModule, found: Dependencies) -> tuple[Tensor, tuple[str, ...], dict[str, Tensor]]:
    """The classes that are kept, a mask of shape ``(atoms,)``; texts on those kept although zero; families all zero."""
    zigs = partition(gm)
    if not zigs.families:
        raise NothingToCompressError(
            "no axis of this model can be pruned: print(fx_oto.partition(gm)) gives the reasons"
        )
    kept, zeros = torch.ones(len(found.roots), dtype=torch.bool), zigs.zeros()
    _check_masks(zigs, zeros)
    gone = {}
    for family, zero in zip(zigs.families, zeros, strict=True):
        if zero.all():
            gone[family.name] = family.classes
            zero[0] = False  # a tensor cannot be empty
        kept[family.classes[zero]] = False
    _check_connected(gm, found, gone)
    kept_back = tuple(_keep_one_of_each_value(kept, found))
    for reason in kept_back:
        warn(reason)
    kept_back += tuple(_keep_unequal(kept, found))
    if kept.all() and not gone:
        raise NothingToCompressError(_nothing_zero(gm, zigs))
    return kept, kept_back, gone


def _check_connected(gm: GraphModule, found: Dependencies, gone: Mapping[str, Tensor]) -> None:
    """What is gone altogether must be a branch, beside which something else leads to the outputs."""
    cut_off = find_branches(gm, Gone(found, list(gone.values()))).cut_off if gone else ()
    if cut_off:
        families = ", ".join(map(repr, list(gone)[:4])) + (" …" if len(gone) > 4 else "")
        raise SlicingError(
            f"all ZIGs of {'the families' if len(gone) > 1 else 'the family'} {families} are zero, so the network "
            f"would be cut in two: what {cut_off[0]!r} computes for an output would depend on no input. Keep at least "
            "one of each family that is not the inner width of a branch, by a smaller target or min_kept"
        )


def _check_masks(zigs: Partition, zeros: Sequence[Tensor]) -> None:
    """What is hidden by masks alone is neither there nor gone."""
    hidden = [int((masked & ~zero).sum()) for masked, zero in zip(zigs.masked(), zeros, strict=True)]
    if any(hidden):
        found = [f"{count} of {f.name!r}" for count, f in zip(hidden, zigs.families, strict=True) if count]
        raise SlicingError(
            f"masks hide ZIGs whose parameters are not zero: {', '.join(found[:4])}{' …' if len(found) > 4 else ''}. "
            "Masks are for trying out: call fx_oto.partition(gm).zero_masked_() to set those ZIGs to zero, or "
            "fx_oto.partition(gm).unmask_() to keep them"
        )


def _nothing_zero(gm: GraphModule, zigs: Partition) -> str:
    training = Context.of(gm).results.get(Trajectory)
    if all(len(family) == 1 for family in zigs.families):
        return (
            "nothing can be cut: every family of this model has a single ZIG, and one ZIG of each family must stay; "
            "print(fx_oto.partition(gm).explain()) shows what ties its channels together"
        )
    remedy = (
        "train with fx_oto.DHSPG(gm, …) until its target is reached, pass train=… to compress, or set the smallest to "
        "zero at once, to train afterwards: fx_oto.prune(gm, target_macs=0.5)"
    )
    found = "" if training is None else training.revived(zigs.zeros()) or training.unfinished
    return f"none of the {zigs.num_zigs} ZIGs is zero, so there is nothing to cut: {found or remedy}"


def _keep_one_of_each_value(kept: Tensor, found: Dependencies) -> Iterator[str]:
    """Put one ZIG back where nothing of a value would be left, such as one part of a split: it stays, being zero."""
    seen: set[int] = set()
    for node, value in found.values.items():
        for layer in (layer for layers in value for layer in layers if id(layer.labels) not in seen):
            seen.add(id(layer.labels))
            classes = found.roots[layer.labels]
            if not kept[classes].any():
                kept[classes.reshape(-1)[0]] = True
                yield f"every channel of node {node!r} is zero; one of them is kept, because a tensor cannot be empty"


def _keep_unequal(kept: Tensor, found: Dependencies) -> Iterator[str]:
    """Put ZIGs back where two lengths would become the same and must not: they stay, being zero."""
    pairs = [(found.roots[left], found.roots[right]) for left, right in found.unequal]
    while alike := [right for left, right in pairs if kept[left].sum() == kept[right].sum()]:
        kept[alike[0][~kept[alike[0]]][0]] = True
        yield (
            "two sizes that must differ, such as hidden_size and proj_size of nn.LSTM, would become equal: one more "
            "unit is kept"
        )


def _sliced_copy(gm: GraphModule, plan: SlicingPlan) -> GraphModule:
    """The graph, over copies of the modules whose tensors have been cut."""
    names: dict[int, str] = {id(tensor): name for name, tensor in tensor_names(gm).items()}
    done: dict[int, Tensor] = {}

    def cut(tensor: Tensor) -> Tensor:
        if id(tensor) not in done:
            done[id(tensor)] = _cut_tensor(tensor, names.get(id(tensor), ""), plan)
        return done[id(tensor)]

    return with_modes_of(without_code(clone_module(gm, cut), gm.graph, gm.__class__.__name__), gm)


def _cut_tensor(tensor: Tensor, name: str, plan: SlicingPlan) -> Tensor:
    data = plan.left_of(name, tensor.detach())
    return parameter_like(data, tensor) if isinstance(tensor, nn.Parameter) else data


def _select(tensor: Tensor, kept: dict[int, Tensor]) -> Tensor:
    """A copy of what is kept, made in pieces: between two dimensions, all of it would need memory once more."""
    if not kept:
        return tensor.clone()
    (first, index), *rest = ((dim, one.to(tensor.device)) for dim, one in sorted(kept.items()))
    shape = [len(kept[dim]) if dim in kept else size for dim, size in enumerate(tensor.shape)]
    order = order_in_memory(tensor)  # such as of channels last
    cut = tensor.new_empty([shape[dim] for dim in order]).permute([order.index(dim) for dim in range(tensor.dim())])
    step = max(len(index) * _PIECE // max(tensor.numel(), 1), 1)
    for start in range(0, len(index), step):
        piece = tensor.index_select(first, index[start : start + step])
        for dim, one in rest:
            piece = piece.index_select(dim, one)
        cut.narrow(first, start, piece.size(first)).copy_(piece)
    return cut


def _contribution(gm: GraphModule, cuts: Cuts, node: Node, adjustment: Adjustment) -> Tensor:
    """Sum what the removed channels, each worth a constant, contributed to each kept output of a linear node."""
    parameter: Any = None if node.op == "call_module" else [*node.args[1:], node.kwargs.get("weight")][0]
    weight = gm.get_parameter(f"{node.target}.weight" if parameter is None else str(parameter.target))
    name = next(name for name, tensor in gm.named_parameters() if tensor is weight)
    gone = ~cuts.kept_labels(adjustment.labels)
    columns = weight.detach()[:, gone.to(weight.device)]
    columns = columns.flatten(2).sum(-1) if columns.ndim > 2 else columns
    total = columns @ adjustment.removed[gone].to(columns)
    index = cuts.axes.get((name, 0))
    return total if index is None else total[index.to(total.device)]
