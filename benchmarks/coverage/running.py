"""Running a model so that two runs can be compared: nothing is written into it, and nothing is left to chance."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from networks import Call
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["float_leaves", "run"]

_DROPOUT = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout)
ALMOST_ONE = 1 - 2**-20
aten = torch.ops.aten


class _WithoutDropout(TorchFunctionMode):
    """Dropout keeps all there is, as with a probability of 0.

    What is worth a constant once it is gone is worth that on average behind a dropout, not twice as much.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DROPOUT:
            return args[0]
        return func(*args, **(kwargs or {}))


class _NothingDropped(TorchDispatchMode):
    """Drop path and layer drop keep all there is, and scale it: the draws are ones, or nearly so.

    A compact network cannot draw the same numbers as the full one, for it draws fewer.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.native_dropout.default:
            return args[0] / (1 - args[1]), torch.ones_like(args[0], dtype=torch.bool)
        drawn = func(*args, **(kwargs or {}))
        if func.overloadpacket in (aten.bernoulli, aten.bernoulli_):
            return drawn.fill_(1)
        if func.overloadpacket in (aten.rand, aten.rand_like):
            return drawn.fill_(ALMOST_ONE)
        if func.overloadpacket is aten.uniform_:
            return drawn.fill_(0)
        return drawn


@torch.no_grad()
def run(model: nn.Module, call: Call, training: bool = False, seed: int = 0) -> Any:
    """What a model returns in one of its modes; left in evaluation, with the buffers that it had."""
    args, kwargs = tree_map_only(Tensor, Tensor.clone, call)
    before = [(buffer, buffer.clone()) for buffer in model.buffers()] if training else []
    model.train(training)
    try:
        with _NothingDropped() if training else nullcontext(), _WithoutDropout() if training else nullcontext():
            _seed(seed)
            return model(*args, **kwargs)
    finally:
        model.eval()
        for buffer, content in before:
            buffer.copy_(content)


def _seed(seed: int) -> None:
    import numpy as np  # some libraries draw from it

    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def float_leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
