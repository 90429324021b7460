"""An interrupt at the n-th call of a Python function, as if the user had pressed Ctrl-C just then."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Interrupted(KeyboardInterrupt):
    """Unlike the user's own."""


@contextmanager
def interrupted_at(number: int) -> Iterator[None]:
    """Raise at the call of this number; nothing happens if there are fewer."""
    left = number

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        if event == "call":
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise Interrupted

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield
    except Interrupted:
        pass
    finally:
        sys.setprofile(before)


def calls_of(work: Callable[[], Any]) -> int:
    """How many Python functions are called."""
    count = 0

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def settings() -> dict[str, Any]:
    """What a job may change for the whole process for a while."""
    fused = torch.backends.cuda
    return {
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "function modes": torch._C._len_torch_function_stack(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "default type": torch.get_default_dtype(),
        "attention": (fused.flash_sdp_enabled(), fused.mem_efficient_sdp_enabled(), fused.math_sdp_enabled()),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "collection": gc.isenabled(),
        "threads": threading.active_count(),
        "torch's dice": torch.random.get_rng_state().tolist(),
        "python's dice": random.getstate(),
        "linear": torch.nn.functional.linear,
        "call": nn.Module.__call__,
        "getattr": nn.Module.__getattr__,
    }


def inside_of(model: nn.Module) -> dict[str, Any]:
    """Everything that modules hold, and the numbers of their tensors."""
    held = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            held[path, name] = (type(value), repr(value) if not isinstance(value, dict) else sorted(map(str, value)))
    tensors = {name: (id(tensor), tensor.tolist()) for name, tensor in model.state_dict(keep_vars=True).items()}
    grads = {name: p.grad if p.grad is None else p.grad.tolist() for name, p in model.named_parameters()}
    return {"attributes": held, "tensors": tensors, "gradients": grads}
