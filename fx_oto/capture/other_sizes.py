"""Code that does not let sizes remember is shown other numbers in their place.

The tensors stay as they are. Where the graph is the same, nothing that such code does depends on the sizes: neither on
those that cannot be tried, for two inputs must fit, nor in a way that does not show at those that were, as ``n % 3``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from fx_oto.analysis.tape import DIMS
from fx_oto.capture.comparison import Comparison, Difference
from fx_oto.capture.groups import Group
from fx_oto.capture.numbers import Origin
from fx_oto.capture.other_numbers import NO_GROUP
from fx_oto.capture.refusals import NotCapturedError, NotHashedError
from fx_oto.capture.run import CaptureRun

__all__ = ["OtherSizes", "Shown"]

_Place = tuple[str, int]
# Of a size, and of how many others code has asked for before; those far off are others modulo 2, 3, 4, 6 and 8, too.
_NEAR_AND_FAR: tuple[Callable[[int, int], int], ...] = (
    lambda size, before: size + 1 + before,
    lambda size, before: 13 * size + 12 * (9 + before) - 1,
)


class OtherSizes:
    """Numbers in the place of sizes of which nobody knows what becomes of them; no two sizes have the same by chance.

    Args:
        shows: whether code sees another number in the place of a size: of a node, by name, and a dimension.
        change: another number in the place of a size, of which there were so many before.
        are_handed: whether code that asks for a plain number is given the other one, too.
    """

    def __init__(self, shows: Callable[[_Place], bool], change: Callable[[int, int], int], are_handed: bool) -> None:
        self._shows, self._change, self._asked = shows, change, dict[Any, int]()
        self.are_handed = are_handed

    def __call__(self, size: int, origin: Origin) -> int:
        """A size, or the number in its place."""
        node, *dims = origin.args
        if origin.function == "size" and not self._shows((node.name, *dims)):
            return size
        return self._change(size, self._asked.setdefault((node.name, *dims), len(self._asked)))


class Shown:
    """Finds out whether captures depend on plain numbers that are made of sizes.

    Args:
        comparisons: of each capture on the example inputs.
        seen_as: captures the model as in one, where code sees other numbers in the place of sizes.
    """

    def __init__(
        self, comparisons: Mapping[CaptureRun, Comparison], seen_as: Callable[[OtherSizes, CaptureRun], CaptureRun]
    ) -> None:
        self._comparisons, self._seen_as = comparisons, seen_as

    def is_same_with_any(self, are_handed: bool) -> bool:
        """Whether nothing depends on any; ``are_handed`` says whether they are for code that asks, too."""
        seen = (self._seen(run, lambda _: True, are_handed=are_handed) for run in self._comparisons)
        return not self._given_numbers() and all(one == (True, None) for one in seen)

    def unless_known(self, tried: Mapping[Group, tuple[list[CaptureRun], int]]) -> Difference | None:
        """A place that depends on other sizes than those that were tried, or where nobody knows."""
        if (given := self._given_numbers()) is not None:
            return Difference(given)
        for at, run in enumerate(self._comparisons):
            ran, found = self._seen_unless(run, {group: (others[at], size) for group, (others, size) in tried.items()})
            if not ran:
                nodes = list(run.graph.nodes)
                return Difference(next((node for node in nodes if node.meta.get("is_number")), nodes[-1]))
            if found is not None:
                return found
        return None

    def _seen_unless(
        self, run: CaptureRun, tried: Mapping[Group, tuple[CaptureRun, int]]
    ) -> tuple[bool, Difference | None]:
        known = {
            place
            for group, (other, size) in tried.items()
            for place, *both in _sizes_that_changed(run, other)
            if both == [group.size, size]
        }
        return self._seen(run, lambda place: place not in known, are_handed=True)

    def of_changed(self, group: Group, others: list[CaptureRun]) -> Difference | None:
        """A place that depends on sizes that are others in captures where a size of the inputs is."""
        for run, other in zip(self._comparisons, others, strict=True):
            changed = {place for place, *_ in _sizes_that_changed(run, other)}
            _, found = self._seen(run, changed.__contains__, group)
            if found is not None:
                return found
        return None

    def _given_numbers(self) -> Node | None:
        return next((node for run in self._comparisons for node in run.graph.nodes if _is_given_numbers(node)), None)

    def _seen(
        self, run: CaptureRun, shows: Callable[[_Place], bool], group: Group = NO_GROUP, are_handed: bool = False
    ) -> tuple[bool, Difference | None]:
        """Whether code runs where it sees others in the place of some sizes, and what differs."""
        comparison = self._comparisons[run]
        before = comparison.places
        try:
            for change in _NEAR_AND_FAR:
                other = self._seen_as(OtherSizes(shows, change, are_handed), run)
                if (found := comparison.with_other(other, group, group.size)) is not None:
                    return True, found
                if are_handed:  # of sizes that can be tried, others have told how many parts there are
                    comparison.count(other.counted_parts)
            before = comparison.places
        except (NotCapturedError, NotHashedError):
            return False, None
        finally:
            comparison.places = before  # what one number may explain by chance
        return True, None


def _sizes_that_changed(run: CaptureRun, other: CaptureRun) -> Iterator[tuple[_Place, int, int]]:
    """The dimensions of values that are of another size in another capture, as far as those are alike, and both."""
    for mine, theirs in zip(run.graph.nodes, other.graph.nodes, strict=False):
        if (mine.op, mine.target) != (theirs.op, theirs.target):
            break
        before, then = mine.meta.get("val"), theirs.meta.get("val")
        if isinstance(before, Tensor) and isinstance(then, Tensor):
            sizes = enumerate(zip(before.shape, then.shape, strict=False))
            yield from (((mine.name, dim), *both) for dim, both in sizes if both[0] != both[1])


def _is_given_numbers(node: Node) -> bool:
    """Whether it is an ATen call, as under ``vmap``, which is given plain sizes, and not what they are made of."""
    if not isinstance(node.target, OpOverload):
        return False
    named = {**dict(zip((one.name for one in node.target._schema.arguments), node.args, strict=False)), **node.kwargs}
    given = tree_leaves([value for name, value in named.items() if name not in DIMS])
    return any(isinstance(one, int | float) and not isinstance(one, bool) for one in given)
