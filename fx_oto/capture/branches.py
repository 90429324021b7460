"""Code that skips work for which nothing was selected: the graph does the work always, on what may be nothing.

``if mask.any(): out[mask] += expert(x[mask])`` decides by numbers, and ``for i in hit.nonzero(): …`` loops over as many
experts as some token chose. No graph can go one way or another; but where nothing was selected, most such work is done
on no rows and changes nothing. So code is told that something was selected, wherever all that it asks is whether
anything was, and loops are captured over all rows that ``nonzero`` may return. That this is what the model does where
nothing is selected is found by running both: see ``check.check_branches``.

Other code decides by numbers whether to raise an error: see ``raising``.
"""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fx_oto.analysis.disguises import lies_on
from fx_oto.capture.calls import INTEGERS
from fx_oto.capture.counted import Counting
from fx_oto.capture.modes import without_modes
from fx_oto.capture.numbers import shown
from fx_oto.capture.refusals import ON_VALUES, Site
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import op_name

__all__ = ["Branching"]

# What a count that is compared with a number answers where it is not 0; all others depend on how many there are.
_WHERE_SOME = {("gt", 0): True, ("ne", 0): True, ("ge", 1): True, ("eq", 0): False, ("lt", 1): False, ("le", 0): False}
_COMPARING = {name for name, _ in _WHERE_SOME}
_ALSO_CALLED = {"greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne"}
_NEGATING = ("logical_not", "bitwise_not", "not_", "invert")
_MOST = 512  # experts of one layer
_MOVING = frozenset(
    (
        "getitem",
        "unbind",
        "select",
        "squeeze",
        "unsqueeze",
        "view",
        "reshape",
        "flatten",
        "permute",
        "transpose",
        "t",
        "item",
        "cpu",
        "to",
        "int",
        "long",
    )
)
_COUNTING = ("sum", "float", "double", "type_as", "count_nonzero")


class Branching(Counting):
    """Answers code that asks whether anything was selected."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._times = Counter[tuple[int, Site | None]]()

    def branch(self, node: Node) -> bool:
        """The answer, to code that decides by a node's value, where something was selected, or no error is raised.

        Raises:
            TraceError: it asks for more, or may not be answered so.
        """
        frame = self._user_frame()
        site: Site | None = frame and (frame.f_code, frame.f_lasti)  # None in a model of torch's own
        self._times[id(frame), site] += 1
        if self._times[id(frame), site] > _MOST:
            raise TraceError("a loop goes on until the values in a tensor say that it ends")
        if site is not None and (way := self.options.ways.get(site)) is not None:
            self.is_plain = False
            if way.text:
                self.asserts(node, way)
            return way.answer
        if self.options.tried is not None and self.options.tried[0] == site:
            answer, self.has_tried = self.options.tried[1], True
        elif self.options.selects and (found := self._where_some(node)) is not None:
            answer = found
            self._took(node, answer)
        else:
            self.answered = site and (site, None)
            self.raised = TraceError(ON_VALUES)
            raise self.raised
        self.answered = site and (site, answer)
        return answer

    def _took(self, node: Node, answer: bool) -> None:
        self.is_plain = False
        self.branches.append((node, answer))

    def _where_some(self, node: Node) -> bool | None:
        """The one answer wherever there are some rows, however many; None if there are several, or nobody knows."""
        if isinstance(node.meta["val"], Tensor):
            return _where_some(node)
        try:
            with self._unrecorded():
                answers = {bool(self._value(node, count, numbers_stay=False)) for count in self.some_counts}
        except Exception:
            return _where_some(node)
        return answers.pop() if len(answers) == 1 else None

    def length_of_some(self, count: Any) -> int:
        """The plain number of rows that were selected, to code that does the same with any number of them, or none.

        Raises:
            TraceError: it may not be given one.
        """
        node = self.nodes(count)
        if not self.differs_by_values(node):
            return int(shown(count))
        if not self.options.selects:
            raise TraceError(ON_VALUES)
        asked = self.create("call_function", operator.gt, (node, 0))
        asked.meta.update(val=True, is_number=True)
        self._took(asked, True)
        self.counts_rows = True
        return int(shown(count)) if self.options.length is None else self.options.length

    def all_rows(self, tensor: Tensor) -> Tensor | None:
        """All rows that a tensor may have which ``nonzero`` made of a mask of one dimension; None of any other.

        Raises:
            TraceError: the mask says more than whether anything was selected, or that may not be answered.
        """
        node = self.node_of_tensor(tensor)
        path = [node]
        while _name(path[-1]) not in ("nonzero", "argwhere"):
            sources = path[-1].all_input_nodes
            if len(sources) != 1 or _name(path[-1]) not in _MOVING:
                return None
            path.append(sources[0])
        chosen = path.pop()
        (mask,) = chosen.all_input_nodes
        if mask.meta["val"].ndim != 1 or not self.options.op_level:
            return None
        with without_modes():
            rows = torch.arange(len(mask.meta["val"]), device=lies_on(mask.meta["val"]))
            values: dict[Node, Any] = {chosen: (rows,) if isinstance(chosen.meta["val"], tuple) else rows[:, None]}
            for one in reversed(path):
                values[one] = self.called_on(one, values)
        found = values[node]
        if not isinstance(found, Tensor) or len(found) != len(rows) or not self.branch(mask):
            raise TraceError(ON_VALUES)
        return found


def _name(node: Node) -> str:
    name = op_name(node) if node.op in ("call_function", "call_method") else ""
    return _ALSO_CALLED.get(name, name)


def _where_some(node: Node) -> bool | None:
    """What a truth value is, or each of several, where something was selected; None if it tells more than that.

    Of what is selected at all, ``all`` is false where some are, and some are not.
    """
    name, args = _name(node), node.args
    inner = node.all_input_nodes
    if name in _NEGATING:
        answer = _where_some(inner[0])
        return None if answer is None else not answer
    if name in ("any", "all") and len(inner) == 1:
        return name == "any"
    if name in ("eq", "ne") and len(inner) == 2 and all(map(_counts, inner)):  # where rows begin, and where they end
        return name == "ne"
    if name in _COMPARING and len(inner) == 1 and isinstance(args[1], int):
        return _WHERE_SOME.get((name, args[1])) if _counts(inner[0]) else None
    if name in _MOVING and len(inner) == 1 and _type_of(node) is torch.bool:
        return _where_some(inner[0])
    return True if _type_of(node) is not torch.bool and _counts(node) else None


def _counts(node: Node) -> bool:
    """Whether a node's value counts what is selected: as whole numbers, or as these in another type."""
    while _type_of(node) not in (*INTEGERS, torch.bool):
        if _name(node) not in (*_MOVING, *_COUNTING) or len(node.all_input_nodes) != 1:
            return False
        node = node.all_input_nodes[0]
    return True


def _type_of(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return value.dtype
    return torch.int64 if isinstance(value, int) and not isinstance(value, bool) else None
