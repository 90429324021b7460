"""Progress bars of long work: on stderr where that is a terminal, or in a notebook; silent elsewhere and when asked."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["SWITCH", "StepsBar", "log_step", "progress"]

SWITCH = "FX_OTO_PROGRESS"
_PATIENCE = 0.5  # what is done within so many seconds shows no bar, unless one was asked for
_LINES = 20  # that a whole training writes to the log
_LOGGER = logging.getLogger("fx_oto")
_Item = TypeVar("_Item")


def progress(
    items: Iterable[_Item] | None,
    description: str,
    *,
    unit: str = "it",
    total: int | None = None,
    show: bool | None = None,
    leave: bool = True,
) -> tqdm[_Item]:
    """A bar that advances with what is taken from ``items``, or with its method ``update``.

    Args:
        items: what is iterated over; None for a bar that is moved by ``update`` alone.
        description: what is going on, in front of the bar.
        unit: what is counted.
        total: how many there are, where ``len(items)`` does not say it.
        show: True and False are obeyed. None: as the environment variable ``FX_OTO_PROGRESS`` says, ``0`` never and
            ``1`` always; without it only where stderr is a terminal, or in a notebook that has ipywidgets.
        leave: whether the full bar stays.

    Example:
        >>> from fx_oto.core.progress import progress
        >>> sum(progress(range(4), "adding", show=False))
        6
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a notebook without widgets, where there is no bar
        from tqdm.auto import tqdm  # noqa: PLC0415 - looks for a notebook when it is imported
    patience = 0.0 if show else _PATIENCE
    if show is None:
        show = {"0": False, "1": True}.get(os.environ.get(SWITCH, ""))
    options = {"desc": description, "unit": unit, "total": total, "leave": leave, "delay": patience}
    return tqdm(items, file=sys.stderr, disable=None if show is None else not show, **options)  # type: ignore[call-overload,no-any-return]


class StepsBar:
    """Shows the steps of a training, and its group sparsity.

    Args:
        steps: of the whole training; the bar is full then.
        zigs: prunable ZIGs of the model.
    """

    def __init__(self, steps: int, zigs: int) -> None:
        self._bar: tqdm[None] = progress(None, "training", unit="step", total=steps, show=True)
        self._zigs = zigs

    def show(self, step: int, zero: int) -> None:
        """So many steps are done, so many ZIGs are zero."""
        self._bar.set_postfix_str(f"group sparsity {zero / max(self._zigs, 1):.3f}", refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.total is not None and step >= self._bar.total:
            self._bar.close()


def log_step(step: int, total: int, gone: int, zigs: int) -> None:
    """Write to the log how many ZIGs are zero, some twenty times in a training of ``total`` steps."""
    if step % max(total // _LINES, 1) == 0:
        _LOGGER.info("step %d of %d: %d of %d ZIGs are zero", step, total, gone, zigs)
