"""Small sizes, of which code thinks apart: whether a graph of larger ones does there what the model does, decides.

``if len(x) != 1: y = y.expand(len(x), -1)`` and ``is_causal = length > 1`` save work, and change nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from fx_oto.capture.check import does_the_same, modes_of
from fx_oto.capture.comparison import Difference
from fx_oto.capture.deciding import is_affine
from fx_oto.capture.groups import Group, resized
from fx_oto.core.context import ExampleInputs
from fx_oto.core.interpreter import PlainInterpreter, run_graph
from fx_oto.core.preserve import without_zeros
from fx_oto.nn.checks import is_check
from fx_oto.nn.modes import FLAG, TrainingFlag, holds_in

__all__ = ["keep_small_out", "let_ones_in"]

_STEPS = 64  # of rounding, by which another way to the same may differ
_DIFFER = (operator.ne, operator.gt, operator.lt)


def let_ones_in(
    gm: GraphModule, model: nn.Module, inputs: ExampleInputs, groups: list[Group], both_modes: bool
) -> set[str]:
    """Take checks that sizes are not 1 out of a graph, if it returns there what the model returns, bit by bit.

    Args:
        gm: the graph.
        model: what it was captured of.
        inputs: the example inputs.
        groups: the sizes to try, the most important first; all of them at once, too.
        both_modes: whether training is compared as well.

    Returns:
        What the checks said.
    """
    found = {group: _checks_at(gm, model, resized(inputs, {group: 1}), both_modes) for group in groups}
    taken = [group for group in groups if found[group]]
    while len(taken) > 1 and not _checks_at(gm, model, resized(inputs, dict.fromkeys(taken, 1)), both_modes):
        taken.pop()
    texts = {check: str(check.args[1]) for group in taken for check in found[group]}
    for check in texts:
        _erase(check)
    if texts:
        gm.recompile()
    return set(texts.values())


def _checks_at(gm: GraphModule, model: nn.Module, inputs: ExampleInputs, both_modes: bool) -> set[Node]:
    """What refuses these inputs, if nothing else than that sizes are not 1 does and it is not needed; else empty."""
    unchecked, modes = _Unchecked(gm), modes_of(model, inputs, both_modes)
    if not modes:
        return set()
    with without_zeros(model):
        same = all(does_the_same(unchecked.call, gm, model, inputs, training) for training in modes)
    return unchecked.failed if same and all(map(unchecked.is_of_one, unchecked.failed)) else set()


def keep_small_out(
    gm: GraphModule,
    model: nn.Module,
    inputs: ExampleInputs,
    doubts: Mapping[Group, tuple[tuple[int, int], int, Difference]],
    both_modes: bool,
    source: Callable[[int], str],
) -> set[Group]:
    """Let a graph refuse sizes at which code goes another way that no check of it sees, if that changes anything.

    Args:
        gm: the graph.
        model: what it was captured of.
        inputs: the example inputs.
        doubts: of each size, the smallest and the largest at which code goes another way, the least at which it does
            not, and what it may decide by.
        both_modes: whether training is compared as well.
        source: the name of the node that is the input of a number.

    Returns:
        The sizes that are checked now.
    """
    found: set[Group] = set()
    for group, (elsewhere, least, difference) in doubts.items():
        small = [resized(inputs, {group: size}) for size in sorted(set(elsewhere))]
        modes = (False, True)[: 1 + both_modes]
        wrong = [mode for mode in modes if not all(_is_alike(gm, model, one, mode) for one in small)]
        if wrong:
            only = wrong[0] if len(wrong) < len(modes) else None
            for number, dim in group.dims:
                text = (
                    f"the graph was captured where dimension {dim} of {source(number)} was {group.size}, and takes no "
                    f"less than {least}, for code goes another way there: see {difference}; trace it on such inputs"
                )
                _check_least(gm, source(number), dim, least, only, text)
            found.add(group)
    if found:
        gm.recompile()
    return found


def _is_alike(gm: GraphModule, model: nn.Module, inputs: ExampleInputs, training: bool) -> bool:
    """Whether a graph does what its model does in a mode, or refuses the inputs; without numbers nobody knows."""
    unchecked = _Unchecked(gm)
    if not modes_of(model, inputs, False):
        return False
    with without_zeros(model):
        same = does_the_same(unchecked.call, gm, model, inputs, training, _STEPS)
    return same or bool(unchecked.failed)


def _check_least(gm: GraphModule, source: str, dim: int, least: int, only: bool | None, text: str) -> None:
    """Check a size of an input, in one mode only if it is given."""
    graph, nodes = gm.graph, list(gm.graph.nodes)
    flag = next((node for node in nodes if node.target == FLAG), None) if only is not None else None
    given = [node for node in nodes if node.name == source or node.op == "placeholder" or node is flag]
    with graph.inserting_before(given[-1].next):
        if only is not None and flag is None:
            gm.add_module(FLAG, TrainingFlag())
            flag = graph.call_module(FLAG)
            flag.meta["val"] = False
        size = graph.call_method("size", (next(node for node in nodes if node.name == source), dim))
        enough = graph.call_function(operator.ge, (size, least))
        size.meta |= {"val": least, "is_number": True}
        enough.meta |= {"val": True, "is_number": True}
        if flag is not None:
            enough = graph.call_function(holds_in, (only, flag, enough))
            enough.meta |= {"val": True, "is_number": True}
        graph.call_function(torch._assert, (enough, text)).meta["val"] = None


class _Unchecked(PlainInterpreter):
    """Runs a graph in spite of its checks, and notes which fail."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.failed: set[Node] = set()
        self._alike: set[Node] = set()

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Run it on what the model takes."""
        return run_graph(self, args, kwargs)

    def is_of_one(self, check: Node) -> bool:
        """Whether it holds that two numbers are not alike, and they are alike at one size only."""
        asked = check.args[0]
        if isinstance(asked, Node) and asked.target is holds_in:
            asked = asked.args[-1]
        return isinstance(asked, Node) and asked in self._alike and is_affine(asked)

    def run_node(self, n: Node) -> Any:
        """See the base class."""
        given, _ = self.fetch_args_kwargs_from_env(n)
        if is_check(n) and given[0] is False:
            self.failed.add(n)
            return None
        if n.target in _DIFFER and given[0] == given[1]:
            self._alike.add(n)
        return super().run_node(n)


def _erase(check: Node) -> None:
    """Take it out, and what is computed for it alone."""
    waiting = [check]
    while waiting:
        node = waiting.pop()
        is_number = node is check or (node.meta.get("is_number") and node.op != "placeholder")
        if is_number and not node.users and not node._erased:
            waiting += node.all_input_nodes
            node.graph.erase_node(node)
