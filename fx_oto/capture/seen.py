"""Lists and tuples that opaque code returns, as long as its numbers say: where code counts them, the graph checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from fx_oto.capture.arguments import check_length

if TYPE_CHECKING:
    from fx_oto.capture.run import CaptureRun

__all__ = ["SeenList", "SeenTuple"]


class _Seen(Sequence[Any]):
    run: CaptureRun
    node: Node
    plain: Any
    kind: Any
    was_counted: bool

    @classmethod
    def of(cls, run: CaptureRun, node: Node, parts: list[Any]) -> Any:
        """What code is handed for the value of a node."""
        made = cls(parts)  # type: ignore[call-arg]
        made.run, made.node, made.plain, made.was_counted = run, node, cls.kind(parts), False
        return made

    def is_as_it_was(self) -> bool:
        """Whether code has left it alone."""
        mine = list(self.kind.__iter__(self))
        return len(mine) == len(self.plain) and all(one is other for one, other in zip(mine, self.plain, strict=True))

    def _count(self) -> None:
        if not self.was_counted and not self.run.is_over and not self.run.depth:
            self.was_counted = True
            check_length(self.run, self.node, len(self.plain), self.node.name)

    def __len__(self) -> int:
        self._count()
        return int(self.kind.__len__(self))

    def __iter__(self) -> Iterator[Any]:
        self._count()
        return iter(self.kind.__iter__(self))


class SeenList(_Seen, list[Any]):
    """A list of which code does not know how long it is."""

    kind = list


class SeenTuple(_Seen, tuple[Any, ...]):
    """A tuple of which code does not know how long it is."""

    kind = tuple
