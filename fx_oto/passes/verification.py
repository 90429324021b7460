"""Verification: the compact model returns what the group-sparse one returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from fx_oto.analysis.dependencies import Dependencies
from fx_oto.analysis.recording import record_tape
from fx_oto.core.context import Context
from fx_oto.core.errors import VerificationError
from fx_oto.core.fx_utils import described, graph_copy, tensor_names
from fx_oto.core.interpreter import PlainInterpreter, run_graph
from fx_oto.core.masks import mask_of
from fx_oto.core.preserve import Dice, unwritten
from fx_oto.framework.stages import Analysis
from fx_oto.ops.custom.registration import taught
from fx_oto.passes.physical_slicing import SlicingPlan
from fx_oto.zigs.families import zero_variables
from fx_oto.zigs.partition import partition

__all__ = ["Verification", "VerificationReport", "relative_error"]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class VerificationReport:
    """How much the compact model's outputs differ from the group-sparse one's, and how much they may.

    Attributes:
        error: the largest absolute difference in any output tensor, relative to the largest value expected in it.
        tolerance: what was allowed: 1e-10 in float64, 1e-5 in float32, 1e-2 in float16, 5e-2 in bfloat16.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_(0.5)
        >>> found = fx_oto.Context.of(fx_oto.compress(gm)).get(fx_oto.VerificationReport)
        >>> found.error <= found.tolerance == 1e-5
        True
    """

    provided_by: ClassVar[str] = "verification"

    error: float
    tolerance: float


@dataclass(frozen=True)
class Verification(Analysis):
    """Run the compact model and the group-sparse one on the example inputs, in eval mode, and compare.

    Where the variables of a ZIG are zero they act alone, without its mask: what the mask would hide, such as an op
    that makes something else of zeros than its rule says, is a difference. Provides ``VerificationReport``.

    Attributes:
        reference: the group-sparse GraphModule that the compact one was made from.

    Raises:
        VerificationError: when it runs: the outputs differ; names the first node that does.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_(0.5)
        >>> stages = fx_oto.Pipeline((fx_oto.PhysicalSlicing(), fx_oto.Verification(gm)))
        >>> [record.name for record in fx_oto.report(stages.run(gm)).records[3:]]
        ['physical-slicing', 'verification']
    """

    name: ClassVar[str] = "verification"
    requires: ClassVar[tuple[type, ...]] = (SlicingPlan,)
    provides: ClassVar[tuple[type, ...]] = (VerificationReport,)
    trusted: ClassVar[bool] = True

    reference: GraphModule = field(repr=False)

    def analyse(self, gm: GraphModule, context: Context) -> VerificationReport:
        """Compare every output tensor.

        Raises:
            VerificationError: the outputs differ; names the first node that does, or the one that draws random numbers.
        """
        dice = Dice()
        try:
            with unwritten(self.reference):
                _unmask(self.reference)
                return self._compared(gm, context, dice)
        finally:
            dice.put_back()

    def _compared(self, gm: GraphModule, context: Context, dice: Dice) -> VerificationReport:
        expected = _outputs(self.reference, context)
        dice.put_back()  # a model that draws numbers of a shape that is left as it was draws the same
        error, tolerance = _worst(expected, _outputs(gm, context))
        if not error <= tolerance:
            again, allowed = _worst(expected, _outputs(self.reference, context))
            if not again <= allowed:
                raise VerificationError(_at_random(self.reference, context, again))
            where = _first_difference(self.reference, gm, context, tolerance)
            raise VerificationError(
                f"the compact model differs from the group-sparse one by {error:.1e} of the output (allowed: "
                f"{tolerance:.0e}){where and f', first at {described(where)}'}. Nothing was changed: "
                f"{_remedy(self.reference, context, where)}"
            )
        return VerificationReport(error, tolerance)


def _worst(expected: list[Tensor], found: list[Tensor]) -> tuple[float, float]:
    """The error of the output that exceeds what is allowed for its type by most, and that tolerance."""
    errors = [(relative_error(*pair), _TOLERANCE.get(pair[0].dtype, 0.0)) for pair in zip(expected, found, strict=True)]
    return max(errors, key=lambda pair: pair[0] - pair[1], default=(0.0, 0.0))


def relative_error(expected: Any, found: Any) -> float:
    """Largest absolute difference of two pytrees of tensors, each relative to the largest value expected there."""
    left, right = _tensors(expected), _tensors(found)
    if [t.shape for t in left] != [t.shape for t in right]:
        return float("inf")
    errors = [0.0]
    for one, other in zip(left, right, strict=True):
        same = (one == other) | ((one != one) & (other != other))  # noqa: PLR0124 - NaN differs from itself
        if not same.all():
            error = (one.double() - other.double()).abs().max().item()
            scale = one.double().abs().max().item()
            errors.append(error / scale if scale else error)
    return max(errors)


def _unmask(gm: GraphModule) -> None:
    """Let zero variables act alone: a mask hides what an op with a rule of the user's makes of zeros."""
    tensors = tensor_names(gm)
    for i, family in enumerate(partition(gm).families):
        mask = mask_of(gm, i)
        if mask is not None:
            mask.masked_fill_(zero_variables(family, tensors).to(mask.device), 1)


def _outputs(gm: GraphModule, context: Context) -> list[Tensor]:
    inputs = context.inputs.copied()
    with unwritten(gm):
        return [tensor.clone() for tensor in _tensors(gm(*inputs.args, **inputs.kwargs))]


def _tensors(value: Any) -> list[Tensor]:
    """Every tensor in a nested value, also in the attributes of objects that torch does not look into."""
    found = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module):
            found += _tensors(vars(leaf))
    return found


class _Keeper(PlainInterpreter):
    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.kept[n.name] = value.clone()
        return value


def _values(gm: GraphModule, context: Context) -> dict[str, Tensor]:
    keeper = _Keeper(gm)
    inputs = context.inputs.copied()
    with unwritten(gm):
        run_graph(keeper, inputs.args, inputs.kwargs)
    return keeper.kept


def _first_difference(reference: GraphModule, compact: GraphModule, context: Context, tolerance: float) -> Node | None:
    cuts = context.get(SlicingPlan).cuts
    expected = _values(reference, context)
    found = _values(compact, context)
    node: Node
    for node in compact.graph.nodes:
        if node.name in expected and node.name in found and node.op != "get_attr":
            left = cuts.apply(expected[node.name], cuts.of_tensor(node.name))
            if relative_error(left, found[node.name]) > tolerance:
                return node
    return None


def _remedy(reference: GraphModule, context: Context, where: Node | None) -> str:
    """What to do: mend the rule of the user's that is nearest, at the first node that differs or before it."""
    now, contents = dict(reference.named_buffers()), Context.of(reference).get(Dependencies).contents
    changed = [name for name, content in contents.items() if name not in now or not torch.equal(now[name], content)]
    if changed:
        return (
            f"the content of the buffer {changed[0]} has changed since the model was prepared, and what can be removed "
            "was found by it. Prepare the model again, and train on with a new optimizer"
        )
    steps = record_tape(graph_copy(reference), context.inputs).steps
    names = [name for name, _, _ in steps]
    end = names.index(where.name) + 1 if where is not None and where.name in names else len(names)
    for name, calls, _ in reversed(steps[:end]):
        for rule in filter(None, map(taught, reversed(calls))):
            node = next(node for node in reference.graph.nodes if node.name == name)
            return f"{rule}, which is yours, is the one to suspect, at {described(node)}: mend the rule"
    return "please report this model"


def _at_random(reference: GraphModule, context: Context, error: float) -> str:
    first, second = _values(reference, context), _values(reference, context)
    differ = (n for n in reference.graph.nodes if n.name in first and relative_error(first[n.name], second[n.name]))
    where = next((f", first at {described(node)}" for node in differ), "")
    return (
        "the group-sparse model does not return the same twice, in evaluation: its outputs differ by "
        f"{error:.1e}{where}, so nothing can be compared with them. Nothing was changed. Let the model draw random "
        "numbers only in training, or take them as an input; a seed is not enough, for with fewer channels fewer "
        "numbers are drawn"
    )
