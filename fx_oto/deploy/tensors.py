"""Tensors on their way into a file and back: what is shared is written once, and each is checked against its sum."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fx_oto.core.errors import FileError
from fx_oto.core.fx_utils import order_in_memory
from fx_oto.deploy.values import Reader, a_dict, a_list, a_text, an_integer, written

__all__ = ["Collected", "made_tensors"]


@dataclass
class Collected:
    """The tensors of a model, each once.

    A parameter and a buffer may be different objects over the same memory, so objects and memory are numbered apart.

    Attributes:
        stored: what goes into the file, by name.
        described: of each of those how the tensor is made of it.
        objects: of each tensor object the number of its memory, and whether and how it is a parameter.
    """

    stored: dict[str, Tensor] = field(default_factory=dict)
    described: list[dict[str, Any]] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    _numbers: dict[int, int] = field(default_factory=dict)
    _memory: dict[Any, int] = field(default_factory=dict)
    _spans: list[tuple[int, int, int, str]] = field(default_factory=list)
    _alive: list[Tensor] = field(default_factory=list)

    def number(self, name: str, tensor: Tensor | None) -> int | None:
        """The number of a tensor object; None for None.

        Raises:
            FileError: it cannot be written.
        """
        if tensor is None:
            return None
        if id(tensor) not in self._numbers:
            self._alive.append(tensor)
            self._numbers[id(tensor)] = len(self.objects)
            is_parameter = isinstance(tensor, nn.Parameter)
            place = self._place(name, tensor.detach())
            self.objects.append({"memory": place, "parameter": is_parameter, "requires_grad": tensor.requires_grad})
        return self._numbers[id(tensor)]

    def _place(self, name: str, tensor: Tensor) -> int:
        _check(name, tensor)
        start = tensor.untyped_storage().data_ptr()
        key = (start, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        if key not in self._memory:
            self._check_apart(name, tensor, start)
            self._memory[key] = len(self.described)
            order, plain = order_in_memory(tensor), _plain(tensor)
            self.stored[name] = plain
            self.described.append(
                {
                    "name": name,
                    "shape": list(plain.shape),
                    "dtype": written(tensor.dtype),
                    "order": order,
                    "sha256": _sum(plain),
                }
            )
        return self._memory[key]

    def _check_apart(self, name: str, tensor: Tensor, start: int) -> None:
        """Refuse memory of which a part is another tensor's: the two could not be written apart and stay one."""
        if not tensor.numel():
            return
        steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        first = int(tensor.storage_offset()) * tensor.element_size()
        last = first + int(steps) * tensor.element_size()
        for other_start, other_first, other_last, other in self._spans:
            if start == other_start and first <= other_last and other_first <= last:
                raise FileError(
                    f"{name!r} is a part of the memory of {other!r}: a file would have them apart. Give one memory of "
                    "its own, with clone()"
                )
        self._spans.append((start, first, last, name))


def _check(name: str, tensor: Tensor) -> None:
    kind = type(tensor)
    if kind is not Tensor or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        what = "on the meta device" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
        what = what if kind is Tensor else f"of the class {kind.__name__}"
        raise FileError(f"{name!r} is {what}: files hold plain tensors alone. Make it one first, or use torch.save")


def _plain(tensor: Tensor) -> Tensor:
    """The tensor as every reader of such files knows it; of complex numbers the real ones."""
    plain = tensor.resolve_conj().resolve_neg()
    return (torch.view_as_real(plain) if plain.is_complex() else plain).cpu().contiguous()


def _sum(tensor: Tensor) -> str:
    bytes_there = ctypes.c_ubyte * (tensor.numel() * tensor.element_size())  # torch's own way to them needs numpy
    return hashlib.sha256(bytes_there.from_address(tensor.data_ptr()) if tensor.numel() else b"").hexdigest()


def made_tensors(stored: Mapping[str, Tensor], plan: Mapping[str, Any], reader: Reader) -> list[Tensor]:
    """The tensor objects of a model.

    Raises:
        FileError: one is missing, or not what was written.
    """
    memory = [_made(stored, a_dict(one), reader) for one in a_list(plan.get("tensors"))]
    if len(stored) != len(memory):
        raise FileError(f"there are {len(stored)} tensors, but {len(memory)} are described")
    return [_object(memory, a_dict(one)) for one in a_list(plan.get("objects"))]


def _made(stored: Mapping[str, Tensor], described: dict[str, Any], reader: Reader) -> Tensor:
    name = a_text(described.get("name"))
    tensor = stored.get(name)
    if tensor is None:
        raise FileError(f"the tensor {name!r:.60} is missing")
    if list(tensor.shape) != described.get("shape") or _sum(tensor) != described.get("sha256"):
        raise FileError(f"the tensor {name!r:.60} is damaged: it is not what was written. Write the file again")
    dtype, order = reader.read(described.get("dtype")), a_list(described.get("order"))
    if isinstance(dtype, torch.dtype) and dtype.is_complex and tensor.ndim and tensor.shape[-1] == 2:
        tensor = torch.view_as_complex(tensor)
    if tensor.dtype != dtype or sorted(map(an_integer, order)) != list(range(tensor.ndim)):
        raise FileError(f"the tensor {name!r:.60} is not described as it is")
    back = sorted(range(len(order)), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(back).to(reader.device or "cpu")


def _object(memory: list[Tensor], one: dict[str, Any]) -> Tensor:
    number, learns = an_integer(one.get("memory")), one.get("requires_grad")
    if number >= len(memory) or type(learns) is not bool:
        raise FileError("a tensor is described that is not there")
    tensor = memory[number]
    if learns and not (tensor.is_floating_point() or tensor.is_complex()):
        raise FileError("a tensor of whole numbers cannot have a gradient")
    if one.get("parameter") is True:
        return nn.Parameter(tensor, requires_grad=learns)
    return tensor.detach().requires_grad_(learns)
