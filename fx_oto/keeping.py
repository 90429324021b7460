"""Trying something out on a model and leaving it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fx_oto.graph import memory_of, unchanged
from fx_oto.tracing.dice import Dice

__all__ = ["kept"]


@contextmanager
def kept(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Afterwards everything of a module is as it was, bit for bit, whatever is done to it and however that ends.

    That is: parameters, buffers and gradients, where they lie, ``requires_grad``, what is set on modules such as
    ``training``, and the states of the generators of random numbers of torch, Python and NumPy. One copy of the
    tensors is held meanwhile.

    Yields:
        A function that puts the tensors and the random numbers back at once, as often as is wanted; what is set on
        modules is taken back at the end alone.
    """
    tensors = [_Kept(tensor) for tensor in (*module.parameters(), *module.buffers())]
    dice, devices = Dice(), _device_states(module)

    @torch.no_grad()
    def put_back() -> None:
        for tensor in tensors:
            tensor.put_back()
        dice.put_back()
        for device, state in devices.items():
            torch.get_device_module(device).set_rng_state(state, device)

    with unchanged(module):
        try:
            yield put_back
        finally:
            put_back()


class _Kept:
    """A tensor, its gradient, and copies of their content."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.data, self.requires_grad = tensor, tensor.data, tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None
        written = [memory_of(held) for held in (tensor, self.grad) if held is not None]
        self.contents = [(memory, memory.clone()) for memory in written]

    def put_back(self) -> None:
        if self._moved():
            self.tensor.data = self.data
        for memory, content in self.contents:
            memory.copy_(content)
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.requires_grad)
            self.tensor.grad = self.grad

    def _moved(self) -> bool:
        """Whether it lies elsewhere now, as after ``model.half()``."""
        now, then = self.tensor, self.data
        same = (now.device, now.dtype, now.shape) == (then.device, then.dtype, then.shape)
        return not same or now.data_ptr() != then.data_ptr()


def _device_states(module: nn.Module) -> dict[torch.device, Any]:
    devices = {tensor.device for tensors in (module.parameters(), module.buffers()) for tensor in tensors}
    return {
        device: torch.get_device_module(device).get_rng_state(device)
        for device in devices
        if device.type not in ("cpu", "meta")
    }
