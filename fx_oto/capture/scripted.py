"""Functions that ``torch.jit.script`` has compiled: their own code runs in their place, in which more can be seen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.jit import ScriptFunction

__all__ = ["own_code_of_scripted_functions"]


@contextmanager
def own_code_of_scripted_functions() -> Iterator[None]:
    """Let this thread run the code that functions were compiled from; torch keeps it for its own compiler.

    TorchScript calls operators past ``__torch_function__``, and fails where one writes into a tensor without numbers.
    """
    kind: Any = ScriptFunction
    compiled, mine = kind.__call__, threading.get_ident()

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        code = getattr(function, "_torchdynamo_inline", None) if threading.get_ident() == mine else None
        return compiled(function, *args, **kwargs) if code is None else code(*args, **kwargs)

    kind.__call__ = call
    try:
        yield
    finally:
        kind.__call__ = compiled
