"""Numbers that code reads from tensors: captured again with others in their place, the graph must be the same.

What code makes of a number that remembers where it comes from, the graph computes. ``int`` and ``float`` of a tensor
are plain numbers, which do not: where they turn up in the graph is found by comparing, as with sizes. How code compares
them leaves no trace, so numbers on all sides are tried, as far as the model takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fx_oto.capture.check import ROUNDS
from fx_oto.capture.comparison import Comparison
from fx_oto.capture.groups import Group, groups_of, resized
from fx_oto.capture.refusals import NotCapturedError
from fx_oto.capture.run import CaptureRun
from fx_oto.capture.sheet import Options
from fx_oto.core.context import ExampleInputs

__all__ = ["NO_GROUP", "followed", "reads_plain"]

_Change = Callable[[Any], Any]
_RunWith = Callable[[Options, ExampleInputs], CaptureRun]

# What else may be in a tensor, unlike what code makes of a number by chance.
_OTHERS: tuple[_Change, ...] = (lambda number: 2 * number + 3, lambda number: 13 * number + 101)
_ON_OTHER_SIDES: tuple[_Change, ...] = (
    *(lambda number, more=more: number + more for more in (1, -1)),
    *(lambda number, small=small: 0 * number + small for small in (0, 1, 2, 3)),
    lambda number: number / 2 if isinstance(number, float) else number // 2,
    lambda number: -number if isinstance(number, float) else 3 * number,
    lambda number: 1009 * number + 7,
)
# Of a comparison with a capture that is no other in any size.
NO_GROUP = Group((), 1)


def followed(run: CaptureRun, run_with: _RunWith) -> Comparison | None:
    """What the graph makes of the numbers that a run reads from tensors; None if nobody knows.

    Args:
        run: the capture.
        run_with: captures the model again, in the same mode.
    """
    comparison, num_same = Comparison(run), 0
    for change in (*_OTHERS, *(_ON_OTHER_SIDES if reads_plain(run) else ())):
        try:
            other = _with_others(run, run_with, change)
        except NotCapturedError:
            return None
        if other is not None and comparison.with_other(other, NO_GROUP, NO_GROUP.size) is not None:
            return None
        num_same += other is not None
    if num_same > 1:
        return comparison
    return Comparison(run) if _counts_alike(run, run_with) else None


def reads_plain(run: CaptureRun) -> bool:
    """Whether code was given such numbers as plain ones."""
    return any(node in run.by_values for node, _ in run.events)


def _with_others(run: CaptureRun, run_with: _RunWith, change: _Change) -> CaptureRun | None:
    """The same with other numbers in the place of those that are read from tensors; None if no others fit.

    Raises:
        NotCapturedError: the model's code looks at them, and raises an error.
    """
    options, read = replace(run.options, other_number=change), {number for number, _ in run.numbers_read}
    sizes = {group: max(change(group.size), 1) for group in groups_of(run.inputs)}
    sizes = {group: size for group, size in sizes.items() if group.can_be(size, run.inputs)}
    same = {group: size for group, size in sizes.items() if group.size in read}
    # The length of the longest example may only be another one beside other inputs, which it may follow by itself.
    others = [same, *({group: size} for group, size in sizes.items() if size > group.size)]
    raised: NotCapturedError | None = None
    for inputs in (run.inputs, *(resized(run.inputs, one) for one in others)):
        try:
            return run_with(options, inputs)
        except NotCapturedError as error:
            raised = error if error.raises else raised
    with suppress(NotCapturedError):
        other = run_with(run.options, resized(run.inputs, same))
        if read.isdisjoint(number for number, _ in other.numbers_read):
            return other
    if raised is not None:
        raise raised
    return None


def _counts_alike(run: CaptureRun, run_with: _RunWith) -> bool:
    """Whether it is where other things are chosen, so that each of these numbers is another one at some time."""
    same = [True] * len(run.numbers_read)
    for number in range(1, ROUNDS):
        with suppress(NotCapturedError):
            other = run_with(replace(run.options, steered=number), run.inputs)
            if str(other.graph) != str(run.graph) or len(other.numbers_read) != len(same):
                return False
            pairs = zip(same, run.numbers_read, other.numbers_read, strict=True)
            same = [before and one == two for before, (one, _), (two, _) in pairs]
        if not any(same):
            return True
    return False
