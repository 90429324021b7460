"""The record of one run of one pass."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field

from torch.fx import GraphModule

from fx_oto.core.unused import parameters_of_graph

__all__ = ["PassRecord", "Snapshot"]

_FREED = re.compile(r";  (\w+ = )+None(?=\s|$)")


@dataclass(frozen=True)
class Snapshot:
    """A GraphModule at one moment, in numbers and text.

    Attributes:
        nodes: of its graph.
        params: elements of its parameters.
        macs: multiply-adds of one forward pass on the example inputs; None if they were not counted.
        code: its ``forward``, in Python.
        shapes: of its parameters and buffers, by name.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> fx_oto.Snapshot.of(gm, macs=96)
        Snapshot(nodes=6, params=58, macs=96)
    """

    nodes: int
    params: int
    macs: int | None
    code: str = field(repr=False)
    shapes: dict[str, tuple[int, ...]] = field(repr=False)

    @classmethod
    def of(cls, gm: GraphModule, macs: int | None) -> Snapshot:
        """Take a snapshot of ``gm``, which has ``macs`` multiply-adds."""
        used = parameters_of_graph(gm)
        params = sum(parameter.numel() for parameter in used.values())
        shapes = {name: tuple(tensor.shape) for name, tensor in (used | dict(gm.named_buffers())).items()}
        return cls(len(gm.graph.nodes), params, macs, _FREED.sub("", gm.code).strip(), shapes)


@dataclass(frozen=True)
class PassRecord:
    """One run of one pass.

    Attributes:
        name: of the pass.
        options: the pass as it was configured, its ``repr``.
        seconds: wall-clock time, the check of the graph afterwards included.
        peak_memory: bytes by which the process's resident memory rose at most (of accelerators: not counted); None
            where the system does not tell.
        before: the GraphModule that it was given.
        after: the one that it returned.
        modified: whether they differ.
        refusals: what it kept whole or left undone, each with the reason.

    Example:
        >>> import torch, fx_oto
        >>> gm = fx_oto.prepare(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.randn(2, 4))
        >>> record = fx_oto.report(gm).records[-1]
        >>> record.name, record.nodes, record.macs
        ('mask-insertion', (4, 5), (96, 96))
        >>> print(record.diff)
        --- before mask-insertion
        +++ after mask-insertion
        @@ -3,3 +3,4 @@
             _0 = getattr(self, "0")(input_1)
        -    _1 = getattr(self, "1")(_0)
        +    zig_masks = self.zig_masks(_0, 0, 1)
        +    _1 = getattr(self, "1")(zig_masks)
             return _1
    """

    name: str
    options: str
    seconds: float
    peak_memory: int | None
    before: Snapshot
    after: Snapshot
    modified: bool
    refusals: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[int, int]:
        """Nodes of the graph before and after."""
        return self.before.nodes, self.after.nodes

    @property
    def params(self) -> tuple[int, int]:
        """Elements of all parameters before and after."""
        return self.before.params, self.after.params

    @property
    def macs(self) -> tuple[int | None, int | None]:
        """Multiply-adds on the example inputs before and after; None where they were not counted."""
        return self.before.macs, self.after.macs

    @property
    def diff(self) -> str:
        """The change of ``forward``: a unified diff of its Python code, empty if nothing changed."""
        texts = (self.before.code.splitlines(), self.after.code.splitlines())
        lines = difflib.unified_diff(*texts, f"before {self.name}", f"after {self.name}", n=1, lineterm="")
        return "\n".join(lines)

    @property
    def resized(self) -> dict[str, tuple[tuple[int, ...] | None, tuple[int, ...] | None]]:
        """The shapes of each parameter and buffer that changed, before and after; None where there is none."""
        old, new = self.before.shapes, self.after.shapes
        names = [*old, *(name for name in new if name not in old)]
        return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}

    @property
    def cuts(self) -> bool:
        """Whether a parameter or buffer has another shape since."""
        return any(None not in shapes for shapes in self.resized.values())
