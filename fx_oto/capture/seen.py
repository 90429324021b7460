"""Lists and tuples as long as numbers say, such as those of opaque code: where code counts them, the graph checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.fx import Node
from torch.utils._pytree import tree_flatten

from fx_oto.capture.arguments import check_length
from fx_oto.capture.numbers import plain
from fx_oto.capture.sheet import Sheet
from fx_oto.core.fx_utils import source_line

__all__ = ["SeenList", "SeenTuple"]


class _Seen:
    run: Sheet
    node: Node
    length: int
    parts: Any
    kind: Any
    was_counted: bool
    is_noted: bool

    @classmethod
    def of(cls, run: Sheet, node: Node, parts: list[Any], is_noted: bool = False) -> Any:
        """What code is handed for a node; of one that ``is_noted``, the run is only told where code counts it."""
        made = cls(parts)  # type: ignore[call-arg]
        made.run, made.node, made.length, made.was_counted = run, node, len(parts), False
        made.is_noted = is_noted
        made.parts = tree_flatten(made.held())
        return made

    def held(self) -> list[Any]:
        """What it holds now, of which the graph hears nothing."""
        return list(self.kind.__iter__(self))

    def is_as_it_was(self) -> bool:
        """Whether code has left it, and what it holds, alone."""
        (mine, structure), (before, then) = tree_flatten(self.held()), self.parts
        return bool(structure == then) and all(one is other for one, other in zip(mine, before, strict=True))

    def counted(self) -> Any:
        """What it holds now, as an ordinary one, once the graph checks how long it was."""
        if self.is_noted:
            self.run.counted_parts.add(self.node.name)
        elif not self.was_counted:
            self.was_counted = True
            self.run.refuse_lengths(self.node)
            check_length(self.run, self.node, self.length, f"{self.node.name} ({source_line(self.node)})")
        return self.kind(self.held())

    def _ask(self) -> None:
        if not self.run.is_over and not self.run.depth:
            self.counted()

    def __len__(self) -> int:
        self._ask()
        return int(self.kind.__len__(self))

    def __iter__(self) -> Iterator[Any]:
        self._ask()
        return iter(self.kind.__iter__(self))

    def __getitem__(self, place: Any) -> Any:
        if not isinstance(place, int) or plain(place) < 0:  # counted from the end, or up to it
            self._ask()
        return self.kind.__getitem__(self, place)


class SeenList(_Seen, list[Any]):
    """A list of which code does not know how long it is."""

    kind = list


class SeenTuple(_Seen, tuple[Any, ...]):
    """A tuple of which code does not know how long it is."""

    kind = tuple
