"""What else of its inputs a model's code goes by, and that leaves no trace in a graph: found by capturing it on others.

Code such as ``if x.dim() == 2: x = x[None]`` takes single examples as well, ``if mask.dtype == torch.bool`` masks of
two kinds, ``for _ in range(steps)`` as many steps as it is told, and ``values()`` of a dictionary come in its order.
Numbers of dimensions, types and numbers that were given are plain once C code has seen them, ``isinstance`` and ``is
None`` tell nobody that they are asked, and operators take ``None`` in the place of masks and bounds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map_only

from fx_oto.capture.arguments import Arguments, is_none
from fx_oto.capture.orders import orders_that_matter
from fx_oto.capture.refusals import unless_refused
from fx_oto.capture.run import CaptureRun
from fx_oto.core.context import ExampleInputs
from fx_oto.core.fx_utils import behind
from fx_oto.core.layouts import is_sparse
from fx_oto.nn.checks import is_check

__all__ = ["Forms"]

_TYPES = (torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64)
_Runs = Sequence[CaptureRun]


@dataclass(frozen=True)
class Forms:
    """What code goes by.

    Attributes:
        ranks: whether that is how many dimensions the inputs have.
        types: with which types it does something else, of tensors by their number among the inputs.
        numbers: which of the numbers among the inputs that are.
        kinds: of which others it is whether they are whole numbers, of type ``int``.
        given: arguments of which it is whether they are given.
        orders: arguments of which it is the order in which entries of dictionaries come.
    """

    ranks: bool
    types: dict[int, list[torch.dtype]]
    numbers: list[int]
    kinds: list[int]
    given: list[str]
    orders: list[str]

    @classmethod
    def of(
        cls,
        runs: _Runs,
        inputs: ExampleInputs,
        again: Callable[[ExampleInputs], list[CaptureRun]],
        with_number: Callable[[tuple[int, float]], list[CaptureRun]],
        given: Sequence[torch.dtype],
    ) -> Forms:
        """Capture a model again, on inputs of other forms.

        Args:
            runs: captures on the example inputs.
            inputs: the example inputs.
            again: captures the model on other inputs.
            with_number: captures it with another number in the place of one: which, and what it is.
            given: types of the inputs with which code is known to do the same.
        """
        before = [_calls(run) for run in runs]

        def differs(other: ExampleInputs) -> bool:
            found = unless_refused(again, other)
            return found is not None and [_calls(run) for run in found] != before

        types: dict[int, list[torch.dtype]] = {}
        for number in sorted({number for run in runs for number in _asked_for_types(run)}):
            own = runs[0].given_tensors()[number].dtype
            others = [one for one in _TYPES if one not in (own, given[number])]
            others = [one for one in others if not (own.is_floating_point and one == torch.int64)]  # bytes are like it
            if told_apart := [one for one in others if differs(_with_type(inputs, number, one))]:
                types[number] = told_apart

        def runs_with(number: int, value: float) -> _Runs | None:
            return unless_refused(with_number, (number, value))

        numbers, kinds = list[int](), list[int]()
        for number, (_, value, _) in enumerate(runs[0].numbers_given):
            if any(_goes_by(runs, runs_with(number, other)) for other in _other_numbers(value)):
                numbers.append(number)
                continue
            whole = round(value) if math.isfinite(value) else 1
            if (found := runs_with(number, whole)) is not None and _goes_by(found, runs_with(number, float(whole))):
                kinds.append(number)
        ranks = runs[0].subject.reads_ranks and any(map(differs, _of_other_ranks(inputs)))
        without = {name: unless_refused(again, one) for name, one in Arguments.of(runs[0].model, inputs).left_out()}
        spelled = [_spelled(run) for run in runs]
        needed = [name for name, others in without.items() if others and list(map(_spelled, others)) != spelled]
        return cls(ranks, types, numbers, kinds, needed, orders_that_matter(runs, inputs, again))

    def of_other_types(self, inputs: ExampleInputs) -> Iterator[ExampleInputs]:
        """Inputs with which code does something else: it may cast these, and might as well cast all."""
        for number, others in self.types.items():
            yield from (_with_type(inputs, number, other) for other in others)

    def fix(self, run: CaptureRun) -> None:
        """Let the graph of a run check them."""
        run.fix_forms(self.ranks, self.types, self.numbers, self.kinds, self.given)
        run.fix_orders(self.orders)


def _calls(run: CaptureRun) -> list[tuple[str, str]]:
    """What is called, in order; numbers, which matter where they are read, aside."""
    return [(node.op, str(node.target)) for node in run.graph.nodes if not node.meta.get("is_number")]


def _spelled(run: CaptureRun) -> list[tuple[str, str, str]]:
    """The same with what is written out; checks of what is given aside."""
    nodes = [node for node in run.graph.nodes if not (node.meta.get("is_number") or node.target is is_none)]
    nodes = [node for node in nodes if not (is_check(node) and getattr(node.args[0], "target", None) is is_none)]
    return [(node.op, str(node.target), str(map_arg((node.args, node.kwargs), lambda _: None))) for node in nodes]


def _asked_for_types(run: CaptureRun) -> Iterator[int]:
    """Inputs whose type, or that of what was made of them, code has asked for."""
    asked = defaultdict(list)
    for value, dtype in run.types_asked:
        if isinstance(value, Node):
            asked[dtype].append(value)
    sources = {dtype: behind(nodes) for dtype, nodes in asked.items()}
    for number, tensor in enumerate(run.given_tensors()):
        if not is_sparse(tensor) and run.node_of_input(number) in sources.get(tensor.dtype, ()):
            yield number


def _with_type(inputs: ExampleInputs, number: int, dtype: torch.dtype) -> ExampleInputs:
    """Inputs of which one tensor, given by its number among them, is of another type."""
    numbers = iter(range(number + 1))
    return inputs.mapped(lambda one: torch.real(one.detach()).to(dtype) if next(numbers, None) == number else one)


def _goes_by(runs: _Runs, others: _Runs | None) -> bool:
    """Whether code does something else with another number, and the graph does not refuse that by itself."""
    if others is None or any(run.decides_otherwise(other) for run, other in zip(runs, others, strict=True)):
        return False
    return [str(run.graph) for run in runs] != [str(other.graph) for other in others]


def _other_numbers(value: float) -> list[float]:
    """Of a whole number those that are near, but no negative one, and about twice as many."""
    if isinstance(value, float):
        return [value / 2 + 0.01, 2 * value + 1]
    return [one for one in (value + 1, value - 1, value + 2, 2 * value + 1) if one >= 0 or value < 0]


def _of_other_ranks(inputs: ExampleInputs) -> Iterator[ExampleInputs]:
    """Single examples, and a batch of what is given."""
    for change in (_first_of, _batch_of):
        args, kwargs = tree_map_only(Tensor, change, (inputs.args, inputs.kwargs))
        yield ExampleInputs(args, kwargs)


def _first_of(tensor: Tensor) -> Tensor:
    return tensor if is_sparse(tensor) or not tensor.numel() or not tensor.ndim else tensor.detach()[0]


def _batch_of(tensor: Tensor) -> Tensor:
    return tensor if is_sparse(tensor) or not tensor.ndim else tensor.detach()[None]
