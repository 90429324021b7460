"""An interrupt at the n-th call of a function of the library, as if the user had pressed Ctrl-C just then.

Functions of torch are left out: some are called from C++ that ends the process whatever is raised.
Run as a script, it sends itself real signals while models are prepared, until enough were interrupted.
"""

from __future__ import annotations

import gc
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fx_oto

OURS = str(Path(fx_oto.__file__).parent)


class Interrupted(KeyboardInterrupt):
    """Unlike the user's own."""


def _counts(frame: Any, event: str) -> bool:
    return event == "call" and frame.f_code.co_filename.startswith(OURS)


@dataclass
class Interrupt:
    """Whether the call was reached."""

    raised: bool = False


@contextmanager
def interrupted_at(number: int) -> Iterator[Interrupt]:
    """Raise at the call of this number; nothing happens if there are fewer."""
    left, interrupt = number, Interrupt()

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        if _counts(frame, event):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                interrupt.raised = True
                raise Interrupted

    sys.setprofile(watch)
    try:
        yield interrupt
    except Interrupted:
        pass
    finally:
        sys.setprofile(None)


def calls_of(work: Callable[[], Any]) -> int:
    """How many functions of the library are called."""
    count = 0

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += _counts(frame, event)

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


def signalled(times: int = 120) -> None:
    """Prepare a model and press Ctrl-C meanwhile, at moments spread over the work, until so many were interrupted."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)), torch.randn(2, 6)
    fx_oto.prepare(net, x)  # the first one loads what the others find
    before, model, interrupted, took = settings(), inside_of(net), 0, 0.01
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is started without it
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    while interrupted < times:
        start = time.perf_counter()
        try:
            signal.setitimer(signal.ITIMER_REAL, took * (interrupted + 0.5) / times)
            fx_oto.prepare(net, x)
            signal.setitimer(signal.ITIMER_REAL, 0)
            took = time.perf_counter() - start  # how busy the machine is changes meanwhile
        except KeyboardInterrupt:
            interrupted += 1
        assert settings() == before
        assert inside_of(net) == model


if __name__ == "__main__":
    signalled()
