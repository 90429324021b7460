"""Token ids: inputs that do nothing but look up rows of embeddings. With rows that go, the ids are counted anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from fx_oto.analysis.tape import OpCall, Tape
from fx_oto.core.fx_utils import tensor_leaves

__all__ = ["TokenInput", "Vocabularies"]

_READ_SHAPES = {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"}


@dataclass(frozen=True)
class TokenInput:
    """A tensor of integers among the inputs: the name of its argument, and which of the tensors in that it is."""

    name: str
    leaf: int


@dataclass
class Vocabularies:
    """The token ids of one analysis, and the rows that they look up.

    Attributes:
        kept: tokens that are kept in any case.
        ids: by ``id``, tensors that hold nothing but token ids.
        rows: the atoms of the rows that each input looks up, int64, shape ``(tokens,)``.
    """

    kept: tuple[int, ...] = ()
    ids: dict[int, TokenInput] = field(default_factory=dict)
    rows: dict[TokenInput, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, gm: GraphModule, tape: Tape, moves: Callable[[OpCall], bool], kept: tuple[int, ...] | None
    ) -> Vocabularies:
        """Find the inputs, and what is only moved of them, that nothing reads but embeddings.

        Of an input that is compared with a padding token, or counted up, other numbers would mean something else. Of
        several inputs, those count that look up the longest table: others are positions and types.

        Args:
            gm: the GraphModule.
            tape: its ATen calls.
            moves: whether a call does nothing but move data.
            kept: tokens that are kept in any case; None if all are.
        """
        if kept is None:
            return cls()
        found = {id(leaf): token for token, leaf in _integers(gm, tape)}
        others: set[TokenInput] = set()
        lengths: dict[TokenInput, int] = {}
        for call in tape.calls:
            held = {found[id(tensor)] for tensor in call.inputs if id(tensor) in found}
            is_lookup = call.name == "embedding" and id(call.args[0]) not in found
            if is_lookup:
                lengths |= {token: max(call.args[0].size(0), lengths.get(token, 0)) for token in held}
                continue
            if call.name in _READ_SHAPES:
                continue
            if held and moves(call) and len(call.inputs) == 1:
                found.update(dict.fromkeys(map(id, call.outputs), *held))
            else:
                others |= held
        others |= {found[id(leaf)] for leaf in _returned(gm, tape) if id(leaf) in found}
        tokens = {token for token in lengths if token not in others}
        longest = max((lengths[token] for token in tokens), default=0)
        tokens = {token for token in tokens if lengths[token] == longest}
        return cls(kept, {key: token for key, token in found.items() if token in tokens})

    def of_length(self, size: int) -> list[Tensor]:
        """The atoms of the vocabularies of so many tokens."""
        return [rows for rows in self.rows.values() if len(rows) == size]


def _integers(gm: GraphModule, tape: Tape) -> Iterator[tuple[TokenInput, Tensor]]:
    names = {node.name: str(node.target).strip("*") for node in gm.graph.nodes if node.op == "placeholder"}
    for name, _, value in tape.steps:
        for i, leaf in enumerate(tensor_leaves(value) if name in names else ()):
            if leaf.dtype in (torch.int32, torch.int64):
                yield TokenInput(names[name], i), leaf


def _returned(gm: GraphModule, tape: Tape) -> Iterator[Tensor]:
    outputs = {node.name for node in gm.graph.nodes if node.op == "output"}
    return (leaf for name, _, value in tape.steps if name in outputs for leaf in tensor_leaves(value))
