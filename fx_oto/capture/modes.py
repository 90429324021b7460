"""Really computing while a model is captured."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["active", "without_modes"]

# The run of this thread, as ``active.run``.
active: Any = threading.local()


@contextmanager
def without_modes() -> Iterator[None]:
    """Really compute, whatever is captured."""
    run, active.run = getattr(active, "run", None), None
    try:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            yield
    finally:
        active.run = run
