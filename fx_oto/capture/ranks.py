"""How many dimensions the inputs of a graph have: found by capturing the model again, with one more and one fewer.

Code such as ``if x.dim() == 2: x = x[None]`` takes single examples as well. How many there are is a plain number, and
leaves no trace in a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor
from torch.utils._pytree import tree_map_only

from fx_oto.capture.refusals import NotCapturedError, NotHashedError
from fx_oto.capture.run import CaptureRun
from fx_oto.core.context import ExampleInputs
from fx_oto.core.errors import InputError
from fx_oto.core.layouts import is_sparse

__all__ = ["depends_on_ranks"]


def depends_on_ranks(
    runs: Sequence[CaptureRun], inputs: ExampleInputs, again: Callable[[ExampleInputs], list[CaptureRun]]
) -> bool:
    """Whether code that takes inputs of more dimensions, or of fewer, does something else with them.

    Args:
        runs: captures on the example inputs.
        inputs: the example inputs.
        again: captures the model on other inputs.
    """
    before = [_calls(run) for run in runs]
    for other in _others(inputs):
        try:
            found = again(other)
        except (NotCapturedError, NotHashedError, InputError):  # it does not take them
            continue
        if [_calls(run) for run in found] != before:
            return True
    return False


def _calls(run: CaptureRun) -> list[tuple[str, str]]:
    """What is called, in order; numbers, which matter where they are read, aside."""
    return [(node.op, str(node.target)) for node in run.graph.nodes if not node.meta.get("is_number")]


def _others(inputs: ExampleInputs) -> Iterator[ExampleInputs]:
    """Single examples, and a batch of what is given."""
    for change in (_first_of, _batch_of):
        args, kwargs = tree_map_only(Tensor, change, (inputs.args, inputs.kwargs))
        yield ExampleInputs(args, kwargs)


def _first_of(tensor: Tensor) -> Tensor:
    return tensor if is_sparse(tensor) or not tensor.numel() or not tensor.ndim else tensor.detach()[0]


def _batch_of(tensor: Tensor) -> Tensor:
    return tensor if is_sparse(tensor) or not tensor.ndim else tensor.detach()[None]
