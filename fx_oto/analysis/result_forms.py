"""The forms of what ATen calls return, from those of their arguments: shape, strides and type.

Of torch's own operators they are remembered for the process: the same layer is met in each run of a model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import make_contiguous_strides_for

__all__ = ["META", "Form", "form_of", "forms_of", "is_pointwise", "key_of", "remember", "strides_of", "tensors_in"]

META = torch.device("meta")
_NORMS = {"aten::native_batch_norm", "aten::native_layer_norm", "aten::native_group_norm"}
_POINTWISE = {"aten::hardswish", "aten::hardswish_", "aten::_prelu_kernel"}  # torch forgets to say so
_LAYOUTS = {"memory_format", "layout", "out", "device"}
# Shape, strides and type of a result.
Form = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested lists and tuples, which is all that ATen's calls take and return."""
    if not isinstance(value, list | tuple):
        return [value] if isinstance(value, Tensor) else []
    return [tensor for part in value for tensor in tensors_in(part)]


def is_pointwise(func: Any) -> bool:
    """Whether an operator computes each element by itself; of what is no operator of torch's, nobody says so."""
    return hasattr(func, "_schema") and (torch.Tag.pointwise in func.tags or func._schema.name in _POINTWISE)


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """Its strides; none of a tensor that is not strided."""
    return tuple(tensor.stride()) if tensor.layout is torch.strided else ()


def form_of(tensor: Tensor) -> Form:
    """Its form."""
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def key_of(func: Any, args: Any, kwargs: Any) -> Any:
    """What decides the form of a result; None where that cannot be told apart."""
    try:
        given = _signature(args), tuple((name, _signature(value)) for name, value in kwargs.items())
        key = (func, torch.get_default_dtype(), *given)
        hash(key)
    except TypeError:
        return None
    return key


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), strides_of(value), value.dtype
    if type(value) in (tuple, list):
        return tuple(map(_signature, value))
    return type(value), value


_forms: dict[Any, list[Form]] = {}
_MOST_FORMS = 50_000


def remember(key: Any, forms: list[Form]) -> None:
    """Remember the forms of results."""
    if len(_forms) >= _MOST_FORMS:
        _forms.clear()
    _forms[key] = forms


def forms_of(key: Any, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> list[Form]:
    """The forms of the results of a call, as far as they are known without a run.

    Args:
        key: of the call.
        func: the operator.
        args: what it is called with.
        kwargs: the same, by name.
        tensors: those among these.
    """
    found = _forms.get(key)
    if found is None and (found := _formed(func, args, kwargs, tensors)):
        remember(key, found)
    return found or []


def _formed(func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> list[Form]:
    """The forms of the results of the commonest calls, whose meta kernels are Python and slow; else empty."""
    name = func._schema.name
    if name in _NORMS and not kwargs and args[0].is_floating_point() and _is_dense(args[0]):
        return _norm_forms(name, args)
    if name == "aten::addmm" and not kwargs and _fit(*args):
        return [_side_by_side((args[1].shape[0], args[2].shape[1]), args[0].dtype)]
    if name == "aten::_grouped_mm" and args[0].ndim == 2 and args[1].ndim == 3:  # its meta kernel takes one type only
        size = (args[0].shape[0], args[1].shape[2])
        return [(size, (size[1], 1), kwargs.get("out_dtype") or args[0].dtype)]
    if not is_pointwise(func) or len(func._schema.returns) != 1 or not kwargs.keys().isdisjoint(_LAYOUTS):
        return []
    whole = max(tensors, key=Tensor.numel, default=None)
    if whole is None or not whole.ndim or not _is_dense(whole) or not all(_follows(one, whole) for one in tensors):
        return []
    return [(tuple(whole.shape), strides_of(whole), _type_of(func, args, kwargs))]


def _fit(added: Tensor, left: Tensor, right: Tensor) -> bool:
    """Whether a row is added to a product of matrices, neither of which is empty."""
    matrices = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0] and left.numel() and right.numel()
    return bool(matrices) and added.shape == right.shape[1:] and added.dtype == left.dtype == right.dtype


def _follows(tensor: Tensor, whole: Tensor) -> bool:
    """Whether an elementwise result lies in memory as ``whole`` does, whatever this operand is like.

    It is of the same form, or varies along one dimension at most: then it has no order of dimensions of its own.
    """
    if tensor.shape == whole.shape and strides_of(tensor) == strides_of(whole):
        return True
    shape = (1,) * (whole.ndim - tensor.ndim) + tuple(tensor.shape)
    same = [size == full for size, full in zip(shape, whole.shape, strict=False) if size != 1]
    return tensor.ndim <= whole.ndim and len(same) <= 1 and all(same)


def _norm_forms(name: str, args: Any) -> list[Form]:
    """Of a norm: the value, then statistics; batch norm returns none of them in evaluation."""
    value, dtype = args[0], args[0].dtype
    if name == "aten::native_batch_norm" and not args[5]:
        return [form_of(value), ((0,), (1,), dtype), ((0,), (1,), dtype)]
    if dtype not in (torch.float32, torch.float64):
        return []
    if name == "aten::native_layer_norm":
        size = (*value.shape[: value.ndim - len(args[1])], *(1,) * len(args[1]))
        return [_side_by_side(value.shape, dtype), *[_side_by_side(size, dtype)] * 2]
    if name == "aten::native_batch_norm" and value.numel() > value.shape[1]:
        return [form_of(value), *[_side_by_side(value.shape[1:2], dtype)] * 2]
    if name == "aten::native_group_norm" and value.is_contiguous():
        return [form_of(value), *[_side_by_side((args[3], args[6]), dtype)] * 2]
    return []


def _side_by_side(size: tuple[int, ...], dtype: torch.dtype) -> Form:
    return tuple(size), make_contiguous_strides_for(size), dtype


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements lie side by side, in any order of the dimensions."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            return tensor.is_contiguous()  # the stride says nothing
        if stride != expected:
            return False
        expected *= size
    return True


_types: dict[Any, torch.dtype] = {}


def _type_of(func: Any, args: Any, kwargs: Any) -> torch.dtype:
    """The type of an elementwise result: found out on tensors of one element, and remembered."""

    def small(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty((1,) if value.ndim else (), dtype=value.dtype, device=META)
        return type(value)(map(small, value)) if type(value) in (tuple, list) else value

    def told(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.dtype, value.ndim > 0
        if isinstance(value, torch.dtype):
            return value
        return tuple(map(told, value)) if type(value) in (tuple, list) else type(value)

    named = tuple((name, told(value)) for name, value in kwargs.items())
    key = (func, torch.get_default_dtype(), told(tuple(args)), named)
    if key not in _types:
        given = {name: META if name == "device" else small(value) for name, value in kwargs.items()}
        _types[key] = func(*small(tuple(args)), **given).dtype
    return _types[key]
