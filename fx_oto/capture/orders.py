"""The order of the entries of dictionaries that a model is given: found by capturing it on others.

Code such as ``torch.cat(list(features.values()))`` goes by that order, which leaves no trace in a graph; code that
reads by key does not, and takes any. Two graphs are the same if they compute the same of the same, in whatever order;
one that returns a dictionary may put its entries in another.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections import Counter, OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch.fx import Node

from fx_oto.capture.arguments import Arguments, is_given, is_none, is_so, length, sorted_keys
from fx_oto.capture.refusals import unless_refused
from fx_oto.capture.run import CaptureRun
from fx_oto.core.context import ExampleInputs
from fx_oto.nn.checks import is_check
from fx_oto.nn.modes import says_in_place

__all__ = ["orders_that_matter"]

_DICTS = (dict, OrderedDict, defaultdict)


def orders_that_matter(
    runs: Sequence[CaptureRun],
    inputs: ExampleInputs,
    again: Callable[[ExampleInputs], list[CaptureRun]],
) -> list[str]:
    """The arguments that have dictionaries in them, by whose order code goes.

    Args:
        runs: captures on the example inputs.
        inputs: the example inputs.
        again: captures the model on others.
    """
    arguments = Arguments.of(runs[0].model, inputs)
    names = [name for name, value in arguments.given.items() if _turned(value) is not value]

    def matters(turned: Iterable[str]) -> bool:
        given = OrderedDict((key, _turned(one) if key in turned else one) for key, one in arguments.given.items())
        call = inspect.BoundArguments(arguments.signature, given)
        others = unless_refused(again, ExampleInputs(call.args, call.kwargs))
        return others is None or len(others) != len(runs) or not all(map(_compute_the_same, runs, others))

    if not names or not matters(names):
        return []
    return names if len(names) == 1 else [name for name in names if matters([name])] or names


def _turned(value: Any) -> Any:
    """The same with the first entry of each dictionary in it at the end; itself if there is none."""
    if type(value) in _DICTS:
        return _turned_dict(value)
    if isinstance(value, UserDict):
        inside = _turned(value.data)
        made = value if inside is value.data else copy.copy(value)
        made.data = inside
        return made
    if type(value) in (list, tuple):
        parts = [_turned(one) for one in value]
        return type(value)(parts) if any(one is not other for one, other in zip(parts, value, strict=True)) else value
    return value


def _turned_dict(value: dict[Any, Any]) -> dict[Any, Any]:
    entries = {key: _turned(one) for key, one in value.items()}
    if len(value) < 2 and all(entries[key] is value[key] for key in value):
        return value
    made = copy.copy(value)
    made.clear()
    made.update((key, entries[key]) for key in (*list(entries)[1:], *list(entries)[:1]))
    return made


def _compute_the_same(run: CaptureRun, other: CaptureRun) -> bool:
    known: dict[Any, int] = {}
    mine, theirs = _numbered(run, known), _numbered(other, known)
    if _ends(mine) != _ends(theirs):
        return False
    # What is read before something is written, or after, is another thing.
    return not any(map(_writes, mine)) or _in_order(mine) == _in_order(theirs)


def _numbered(run: CaptureRun, known: dict[Any, int]) -> dict[Node, int]:
    """For each node the number of what it computes, the same in all graphs that are numbered with what is known."""
    found: dict[Node, int] = {}

    def spelled(value: Any) -> Any:
        if isinstance(value, Node):
            return Node, found[value]
        if isinstance(value, dict):
            return dict, frozenset((key, spelled(one)) for key, one in value.items())
        if isinstance(value, list | tuple):
            return type(value), tuple(map(spelled, value))
        return (
            (slice, *map(spelled, (value.start, value.stop, value.step))) if isinstance(value, slice) else repr(value)
        )

    for node in run.graph.nodes:
        if not node.meta.get("is_number") or node.users:
            call = (node.op, node.target, spelled(node.args), spelled(dict(node.kwargs)))
            found[node] = known.setdefault(call, len(known))
    return found


def _ends(numbered: dict[Node, int]) -> Counter[int]:
    """What nobody reads: the output, and checks."""
    return Counter(number for node, number in numbered.items() if not node.users)


def _in_order(numbered: dict[Node, int]) -> list[int]:
    """What code calls; entries are read, and keys are checked, before it runs."""
    ours = (sorted_keys, length, is_given, is_none, is_so, operator.eq)
    called = (one for one in numbered.items() if not (one[0].target in ours or is_check(one[0])))
    return [number for node, number in called if not node.meta.get("is_number")]


def _writes(node: Node) -> bool:
    return node.op != "call_module" and says_in_place(node)
