"""Decisions that every process of a distributed training must make alike: the first makes them for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from fx_oto.core.errors import FxOtoError

__all__ = ["is_distributed", "of_first_rank"]

_Value = TypeVar("_Value")


def is_distributed() -> bool:
    """Whether this process takes part in a group of processes."""
    return dist.is_available() and dist.is_initialized()


def of_first_rank(compute: Callable[[], _Value]) -> _Value:
    """Return on every process what the first one computes, or raise what it raises; alone, just compute it.

    A measured latency differs from process to process, and so would what is chosen by it.
    """
    if not is_distributed() or dist.get_world_size() == 1:
        return compute()
    sent: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            sent = [(compute(), None)]
        except FxOtoError as error:
            sent = [(None, error)]
    dist.broadcast_object_list(sent, src=0)
    value, failure = sent[0]
    if failure is not None:
        raise failure
    return value  # type: ignore[no-any-return]
