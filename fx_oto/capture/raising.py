"""Code that decides by numbers whether to raise an error, or to print a warning, and computes the same.

Without numbers, nobody can say which way ``assert torch.isfinite(x).all()`` goes, or ``if (ids >= n).any(): raise …``.
But whatever the numbers are, one of the two answers ends in an error. Which one is found by trying both; code is told
the other, and the graph asserts it. Where both leave the same graph, as after a warning, nothing has to be asserted.
"""

from __future__ import annotations

import dis
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from fx_oto.capture.refusals import NotCapturedError, Site, Way
from fx_oto.capture.sheet import Options, Sheet
from fx_oto.core.fx_utils import is_users, raised_at

__all__ = ["is_same_otherwise", "raising_line", "way_after"]

_RAISE = dis.opmap["RAISE_VARARGS"]  # of raise, and of assert


def raising_line(error: Exception) -> str:
    """The line of the user's code that raises an error by itself; ``""`` of errors of torch's, and of a capture's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    code = None if trace is None else trace.tb_frame.f_code
    if trace is None or code is None or not (is_users(code.co_filename) or code is torch._assert.__code__):
        return ""
    return raised_at(error) if code.co_code[trace.tb_lasti] == _RAISE else ""


def way_after(
    refusal: NotCapturedError, options: Options, run_with: Callable[[Options], Sheet]
) -> tuple[Site, Way] | None:
    """How code goes on where it raises an error otherwise, or may go on in any way; None if it is neither.

    Args:
        refusal: what was told of a run that did not go on.
        options: those of that run.
        run_with: runs the model again.
    """
    decision = refusal.decision
    if decision is None:
        return None
    if decision.way is not None:
        return decision.site, decision.way
    found = set[Any]()
    for answer in (True, False):
        try:
            found.add((None, str(run_with(replace(options, tried=(decision.site, answer))).graph)))
        except NotCapturedError as error:
            then = error.decision
            if then is not None and then.way is not None and then.site == decision.site:
                return then.site, then.way
            found.add(None if then is None else (then.site, then.is_told, then.graph))
    return None if decision.is_told or len(found) > 1 else (decision.site, Way(True))


def is_same_otherwise(run: Sheet, run_with: Callable[[Options], Sheet]) -> bool:
    """Whether the graph is the same where code that may go on in any way is given the other answers."""
    ways = {site: way if way.text else Way(not way.answer) for site, way in run.options.ways.items()}
    if ways == run.options.ways:
        return True
    try:
        return str(run_with(replace(run.options, ways=ways)).graph) == str(run.graph)
    except NotCapturedError:
        return False
