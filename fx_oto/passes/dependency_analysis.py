"""Dependency analysis: which indices of which parameter axes must go together."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from torch.fx import GraphModule

from fx_oto.analysis.dependencies import Dependencies
from fx_oto.analysis.engine import Attention
from fx_oto.analysis.player import Player
from fx_oto.analysis.recording import record_tape
from fx_oto.analysis.tape import Tape
from fx_oto.core.context import Context
from fx_oto.core.errors import SettingsError
from fx_oto.core.warn import warn
from fx_oto.framework.stages import Analysis
from fx_oto.ops.table import rule_for

__all__ = ["DependencyAnalysis", "token_ids"]

_NO_TOKENS = (
    "prune_vocabulary needs an input of token ids that nothing reads but embeddings: here no integers of the example "
    "inputs are looked up, or other code reads them as well, as to compare them with a padding token. Give such code "
    "what it needs as an input of its own, such as attention_mask or position_ids, or leave prune_vocabulary out"
)


def token_ids(given: Any) -> tuple[int, ...]:
    """Ids of tokens as a user gives them: integers in a sequence, an array or a tensor.

    Raises:
        SettingsError: they are something else.
    """
    try:
        return tuple(operator.index(one) for one in given)
    except TypeError as error:
        text = f"keep_tokens must be ids of tokens, such as (0, 101, 102); found {given!r:.80}"
        raise SettingsError(text) from error


@dataclass(frozen=True)
class DependencyAnalysis(Analysis):
    """Follow the provenance of every channel through the ATen calls of the graph.

    Provides ``Dependencies``. An op without a rule freezes what enters it, with an ``FxOtoWarning``.

    Attributes:
        attention: what attention loses: whole ``"heads"``, or the same positions of every head's width, ``"head_dim"``.
        prune_vocabulary: whether tokens can go: rows of embeddings that ids among the inputs look up, and their scores
            in the outputs.
        keep_tokens: the ids of those that cannot.

    Raises:
        SettingsError: ``attention`` is neither; when it runs: there are no such tokens, or nothing is known of ids.

    Example:
        >>> import torch, fx_oto
        >>> gm = fx_oto.trace(torch.nn.Linear(4, 8), torch.randn(2, 4))
        >>> gm = fx_oto.DependencyAnalysis()(gm).graph_module
        >>> [str(axis) for axis in fx_oto.Context.of(gm).get(fx_oto.Dependencies).axes]
        ['weight[0]', 'weight[1]', 'bias[0]']
    """

    name: ClassVar[str] = "dependency-analysis"
    provides: ClassVar[tuple[type, ...]] = (Dependencies,)
    trusted: ClassVar[bool] = True

    attention: Attention = "heads"
    prune_vocabulary: bool = False
    keep_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.attention not in get_args(Attention):
            choices = " or ".join(map(repr, get_args(Attention)))
            raise SettingsError(f"attention must be {choices}, found {self.attention!r}")
        object.__setattr__(self, "keep_tokens", token_ids(self.keep_tokens))
        if self.keep_tokens and not self.prune_vocabulary:
            raise SettingsError("keep_tokens is for prune_vocabulary=True: without it every token is kept")

    def analyse(self, gm: GraphModule, context: Context) -> Dependencies:
        """Play the tape, recording it first if a pass, or the user by hand, has changed the graph.

        Raises:
            SettingsError: there are no tokens to prune, or none of those that are to be kept.
        """
        tape = context.results.get(Tape)
        if tape is None or not tape.is_of(gm):
            tape = record_tape(gm, context.inputs)
        keep_tokens = tuple(self.keep_tokens) if self.prune_vocabulary else None
        given = gm, tape, rule_for, self.attention, keep_tokens
        found, divisors = Player(*given).run(), frozenset[tuple[str, int]]()
        while not found.divisors <= divisors:  # they are not driven to zero, which tells what else can go
            divisors |= found.divisors
            found = Player(*given, divisors=divisors).run()
        if self.prune_vocabulary and not found.tokens:
            raise SettingsError(_NO_TOKENS)
        for reason in found.unknown:
            warn(f"{reason}: what enters it is kept whole. Teach it with fx_oto.register_rule, or ignore this")
        return found

    def refusals(self, gm: GraphModule, context: Context) -> list[str]:
        """Ops without a rule, which keep whole what enters them."""
        return list(map(str, context.get(Dependencies).unknown))
