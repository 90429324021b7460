"""Running a user's op or leaf on small tensors, to see what it makes of removed values or where it moves elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fx_oto.analysis.fakes import tensors_in
from fx_oto.analysis.tape import OpCall

__all__ = ["run_on"]


def run_on(
    call: OpCall, values: Sequence[Tensor], function: Callable[..., Any] | None = None, seed: int = 0
) -> tuple[Tensor, ...] | None:
    """Run what a call runs on other tensors in the place of ``call.inputs``.

    On the CPU with the values as they are, else in the types that the model gives it, else on its device. What it
    draws depends on ``seed``; the state of torch's random number generators is left as it was.

    Returns:
        What it returns, on the CPU; None where it cannot be run.
    """
    for adapted in _ways(values, call.inputs):
        remaining = iter(adapted)
        args, kwargs = tree_map(
            lambda leaf, rest=remaining: next(rest) if isinstance(leaf, Tensor) else leaf, (call.args, call.kwargs)
        )
        devices = {tensor.device for tensor in adapted if tensor.is_cuda}
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
                torch.default_generator.manual_seed(seed)
                for device in devices:
                    torch.cuda.default_generators[device.index].manual_seed(seed)
                results = tensors_in([(function or call.func)(*args, **kwargs)])
        except Exception:  # whatever it cannot do
            continue
        return tuple(result.detach().cpu() for result in results)
    return None


def _ways(values: Sequence[Tensor], like: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    pairs = list(zip(values, like, strict=True))
    yield [value if one.is_floating_point() else value.to(one.dtype) for value, one in pairs]
    yield [value.to(one.dtype) for value, one in pairs]
    if not any(one.device.type in ("meta", "cpu") for one in like):
        yield [value.to(one.device, one.dtype) for value, one in pairs]
