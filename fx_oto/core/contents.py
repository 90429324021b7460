"""What tensors hold, to be put back after code has written into them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from fx_oto.core.fx_utils import tensor_leaves

__all__ = ["Content", "Kept", "Writes", "contents_kept"]

_PLAIN = (Tensor, nn.Parameter)


class Content:
    """A tensor, where its data lies, and a copy of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.data = tensor, tensor.data
        self._memory = memory_of(self.data)
        self._content = self._memory.clone()

    def put_back(self) -> None:
        """Write the copy where the data was, which is the tensor's again."""
        if is_moved(self.tensor, self.data):
            self.tensor.data = self.data
        self._memory.copy_(self._content)


def is_moved(tensor: Tensor, then: Tensor) -> bool:
    """Whether other data was set than it had, as by ``model.half()``, or by ``tensor.data = …``."""
    now = tensor.data
    if isinstance(now, FakeTensor) or now.layout != torch.strided:  # which have no one place
        return False
    same = (now.device, now.dtype, now.shape) == (then.device, then.dtype, then.shape)
    return not same or now.data_ptr() != then.data_ptr()


@contextmanager
def contents_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Undo afterwards what is written into tensors."""
    before = [Content(tensor) for tensor in tensors]
    try:
        yield
    finally:
        for content in before:
            content.put_back()


class Kept(Content):
    """A tensor and its gradient, and copies of their content."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self._requires_grad = tensor.requires_grad
        self._grad = tensor.grad if tensor.is_leaf else None
        self._of_grad = None if self._grad is None else Content(self._grad)

    def put_back(self) -> None:
        """Put the tensor and its gradient back as they were."""
        super().put_back()
        if self._of_grad is not None:
            self._of_grad.put_back()
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self._requires_grad)
            self.tensor.grad = self._grad


class Writes(TorchDispatchMode):
    """Keeps what parameters hold that calls are about to write into.

    Args:
        parameters: those that are watched; of subclasses of tensors nothing is known.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._placed = [(one, one.data) for one in parameters if type(one) in _PLAIN and type(one.data) is Tensor]
        self._owners: dict[Any, list[Tensor]] = {}
        for parameter, data in self._placed:
            if data.layout is torch.strided:
                self._owners.setdefault(data.untyped_storage()._cdata, []).append(parameter)
        self._kept: dict[int, Content] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for place, name in _written_by(func):
            for tensor in tensor_leaves(args[place] if place < len(args) else kwargs.get(name)):
                self._keep(tensor)
        return func(*args, **kwargs)

    def _keep(self, tensor: Tensor) -> None:
        if type(tensor) in _PLAIN and tensor.layout is torch.strided:
            for parameter in self._owners.get(tensor.untyped_storage()._cdata, ()):
                if id(parameter) not in self._kept:
                    self._kept[id(parameter)] = Content(parameter)

    def found(self) -> list[Tensor]:
        """The parameters that were written, or given other data, by now."""
        moved = [one for one, data in self._placed if is_moved(one, data)]
        return [*moved, *(content.tensor for content in self._kept.values())]

    @torch.no_grad()
    def put_back(self) -> None:
        """Give all parameters the data and the content that they had."""
        for content in self._kept.values():
            content.put_back()
        for parameter, data in self._placed:
            if is_moved(parameter, data):
                parameter.data = data


@lru_cache(maxsize=4096)
def _written_by(func: Any) -> list[tuple[int, str]]:
    """Which arguments an op writes into."""
    arguments = enumerate(func._schema.arguments)
    return [(place, one.name) for place, one in arguments if one.alias_info is not None and one.alias_info.is_write]


def memory_of(tensor: Tensor) -> Tensor:
    """A view of the same memory in which no element occurs twice, unlike an expanded tensor: it can be written."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:  # such as a sparse gradient
        return tensor
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
