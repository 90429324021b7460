"""Running torch without numbers: what each ATen call returns is found from shapes, types and devices alone.

torch's own fake tensors say which device they stand for, so code that asks is answered as ever. Their mode takes half a
millisecond a call; here most results follow from the form of the arguments, and the rest from meta kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._C import DisableTorchFunction as _DisableTorchFunction
from torch._C import _DisableTorchDispatch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fx_oto.analysis.disguises import disguise, is_fake, lies_on, undisguise
from fx_oto.core.layouts import is_sparse

__all__ = ["Fakes", "StandIns", "ValuesAskedError", "asks_values", "is_pointwise", "tensors_in", "text_of"]

_META = torch.device("meta")
_CPU = torch.device("cpu")
_NORMS = {"aten::native_batch_norm", "aten::native_layer_norm", "aten::native_group_norm"}
_POINTWISE = {"aten::hardswish", "aten::hardswish_", "aten::_prelu_kernel"}  # torch forgets to say so
_LAYOUTS = {"memory_format", "layout", "out", "device"}
_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
_UNTOLD = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
# Shape, strides and type of a result.
_Form = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


class ValuesAskedError(Exception):
    """What an operator returns depends on the numbers in a tensor, or nobody has said on what."""


def asks_values(error: BaseException | None) -> bool:
    """Whether something failed for want of the numbers in a tensor; torch's own code may look for them by itself."""
    return isinstance(error, ValuesAskedError) or "its data is not allocated" in text_of(error)


def text_of(error: BaseException | None) -> str:
    """What an error says; ``""`` where it shows a tensor, which has no numbers."""
    try:
        return str(error)
    except Exception:
        return ""


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested lists and tuples, which is all that ATen's calls take and return."""
    if not isinstance(value, list | tuple):
        return [value] if isinstance(value, Tensor) else []
    return [tensor for part in value for tensor in tensors_in(part)]


def is_pointwise(func: Any) -> bool:
    """Whether an operator computes each element by itself; of what is no operator of torch's, nobody says so."""
    return hasattr(func, "_schema") and (torch.Tag.pointwise in func.tags or func._schema.name in _POINTWISE)


# What depends on how many elements a sparse tensor has, and where, which its stand-in does not know.
_OF_ELEMENTS = {"_nnz", "_indices", "_values", "indices", "values", "crow_indices", "col_indices", "ccol_indices"}
_OF_ELEMENTS = {f"aten::{name}" for name in (*_OF_ELEMENTS, "row_indices", "is_coalesced")}


class Fakes(TorchDispatchMode):
    """While it is active, nothing is computed: real tensors are stood in for, and stay as they are.

    Args:
        named: the tensors of a model, which get their stand-ins at once.

    Attributes:
        named: the stand-ins of those.
        real: the tensors that are stood in for, by the ``id`` of what does.
        literals: the real tensors that code has written out in numbers, by the ``id`` of their stand-ins.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.torchs = FakeTensorMode(allow_non_fake_inputs=True)
        self._stand_ins: dict[int, Tensor] = {}
        self.real: dict[int, Tensor] = {}
        self.literals: dict[int, Tensor] = {}
        self._replaced: list[Tensor] = []
        self._forms: dict[Any, list[_Form]] = {}
        self.named = {name: self.of(tensor) for name, tensor in named.items()}

    def is_own(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of those that stand in."""
        return tensor.__dict__.get("fake_mode") is self.torchs

    def of(self, tensor: Tensor) -> Tensor:
        """The tensor that stands in for a real one; of those that stand in, the tensor itself."""
        if self.is_own(tensor):
            return tensor
        found = self._stand_ins.get(id(tensor))
        if found is None:
            if is_fake(tensor):
                raise RuntimeError("a tensor without numbers was kept from an earlier run, such as by a cache")
            with torch.inference_mode(False):
                found = self.like(tensor, tensor.device)
            self._stand_ins[id(tensor)], self.real[id(found)] = found, tensor
        return found

    def put_in_place(self, new: Tensor, old: Tensor) -> None:
        """Let what stands in for a tensor stand in for another from now on, as well."""
        fake = self.of(old)
        self._stand_ins[id(new)], self.real[id(fake)] = fake, new
        self._replaced.append(old)  # or another tensor would get its id

    def like(self, value: Any, device: torch.device) -> Tensor:
        """A new tensor of the form of another, real or not."""
        if is_sparse(value):
            with _disable_current_modes():
                return value if is_fake(value) else self.torchs.from_tensor(value)
        return self._wrap(_empty(tuple(value.shape), _strides(value), value.dtype), device)

    def _wrap(self, meta: Tensor, device: torch.device) -> FakeTensor:
        fake = FakeTensor(self.torchs, meta, device)
        fake.__dict__["on_meta"] = meta
        return fake

    def note_literal(self, func: Any, args: Any) -> None:
        """Remember a tensor that code writes out in numbers."""
        if func in _LIFTS and not is_fake(args[0]):
            self.literals[id(self.of(args[0]))] = args[0]

    def faked(self, value: Any) -> Any:
        """The same with stand-ins, in lists, tuples and dictionaries."""
        if isinstance(value, Tensor):
            return self.of(value)
        if type(value) in (tuple, list):
            return type(value)(map(self.faked, value))
        if type(value) is dict:
            return {key: self.faked(one) for key, one in value.items()}
        return value

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No need to load torch's compiler only to keep it from compiling this."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note_literal(func, args)
        return self.call(func, self.faked(tuple(args)), self.faked(kwargs or {}))

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator returns.

        Raises:
            ValuesAskedError: that depends on numbers.
        """
        if func is torch.ops.prim.device.default:
            return lies_on(args[0])
        traits = _traits(func) if isinstance(func, OpOverload) else None
        if any(map(is_sparse, tensors_in((*args, *kwargs.values())))):
            if func._schema.name in _OF_ELEMENTS:
                raise ValuesAskedError(f"{func} asks for the elements of a sparse tensor")
            return self._as_torch(func, args, kwargs)
        if traits is None or traits.changes_form:
            return self._as_torch(func, args, kwargs)
        if traits.asks_values:
            raise ValuesAskedError(f"{func} asks for the numbers in a tensor")
        if traits.returns_written is not None:
            place, name = traits.returns_written
            return args[place] if place < len(args) else kwargs[name]
        key = None if traits.makes_alias else _key(func, args, kwargs)
        device = _device(args, kwargs)
        forms = self._forms.get(key) if key is not None else None
        if forms is None and key is not None and (forms := _formed(func, args, kwargs)):
            self._forms[key] = forms
        return self._made(traits, forms, device) if forms else self._run(func, args, kwargs, device, key)

    def _made(self, traits: _Traits, forms: list[_Form], device: torch.device) -> Any:
        made = [self._wrap(_empty(*form), device) for form in forms]
        return made[0] if traits.returns_one else tuple(made)

    def _run(self, func: Any, args: Any, kwargs: Any, device: torch.device, key: Any) -> Any:
        """Ask the kernel for meta tensors; what has none, torch's fake mode."""
        on_meta = {name: _META if name == "device" else _metas(value) for name, value in kwargs.items()}
        on_meta.pop("pin_memory", None)
        given = _metas(args)
        try:
            with _DisableTorchFunction(), _DisableTorchDispatch():
                result = func(*given, **on_meta)
                if isinstance(result, Tensor) and not result.is_meta:  # as of torch.mul(2, 3)
                    result = result.to("meta")
        except Exception as error:
            refused = "but got 1D meta" in str(error)  # by pack_padded_sequence, which reads the lengths
            if torch.Tag.dynamic_output_shape in func.tags or isinstance(error, _UNTOLD) or refused:
                raise ValuesAskedError(f"the size of what {func} returns depends on the numbers in a tensor") from error
            if isinstance(error, NotImplementedError):
                return self._as_torch(func, args, kwargs)
            if func.namespace != "aten":  # an op of the user's, of which nobody may have said what it returns
                raise ValuesAskedError(str(error)) from error
            raise
        results = (result,) if _traits(func).returns_one else result
        if key is not None and type(results) is tuple and all(type(one) is Tensor for one in results):
            self._forms[key] = [_form(one) for one in results]
        return self._wrapped(result, device)

    def _wrapped(self, result: Any, device: torch.device) -> Any:
        if isinstance(result, Tensor):
            return self._wrap(result, device)
        if type(result) in (tuple, list):
            return type(result)(self._wrapped(one, device) for one in result)
        return result

    def _as_torch(self, func: Any, args: Any, kwargs: Any) -> Any:
        disguised = undisguise(tensors_in((*args, *kwargs.values())))
        try:
            with self.torchs:
                result = func(*args, **kwargs)
        except _UNTOLD as error:
            raise ValuesAskedError(f"without the numbers in a tensor, nothing tells what {func} returns") from error
        finally:
            disguise(disguised)
        for one in (*tensors_in(args), *tensors_in(result)):
            one.__dict__.pop("on_meta", None)
        return result


class _Traits:
    """What an operator's schema says, once and for all."""

    def __init__(self, func: OpOverload) -> None:
        schema = func._schema
        self.asks_values = torch.Tag.data_dependent_output in func.tags
        self.changes_form = torch.Tag.inplace_view in func.tags or schema.name in ("aten::resize_", "aten::set_")
        written = [
            (place, argument.name)
            for place, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        returned = [one.alias_info for one in schema.returns]
        self.returns_written = None
        if len(written) == 1 and len(returned) == 1 and returned[0] is not None and returned[0].is_write:
            self.returns_written = written[0]
        self.makes_alias = bool(written) or any(one is not None for one in returned)
        self.returns_one = len(returned) == 1 and str(schema.returns[0].type) == "Tensor"


@lru_cache(maxsize=4096)
def _traits(func: OpOverload) -> _Traits:
    return _Traits(func)


def _empty(size: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A meta tensor, and no stand-in, which modes that are active would make of it: each later call would be slow."""
    with _DisableTorchFunction(), _DisableTorchDispatch():
        return torch.empty_strided(size, strides, dtype=dtype, device=_META)


def _metas(value: Any) -> Any:
    if is_fake(value):
        meta = value.__dict__.get("on_meta")
        if meta is None:
            meta = _empty(tuple(value.shape), _strides(value), value.dtype)
            value.__dict__["on_meta"] = meta
        return meta
    if type(value) in (tuple, list):
        return type(value)(map(_metas, value))
    return value


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.stride()) if tensor.layout is torch.strided else ()


def _form(tensor: Tensor) -> _Form:
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def _device(args: Any, kwargs: Any) -> torch.device:
    """Where a result lies: where it is asked for, or with the operands that are no plain numbers."""
    if (given := kwargs.get("device")) is not None:
        return torch.device(given)
    tensors = tensors_in((*args, *kwargs.values()))
    wide = next((tensor for tensor in tensors if tensor.ndim), tensors[0] if tensors else None)
    return _CPU if wide is None else lies_on(wide)


def _key(func: Any, args: Any, kwargs: Any) -> Any:
    """What decides the form of a result; None where that cannot be told apart."""
    try:
        key = (func, _signature(args), tuple((name, _signature(value)) for name, value in kwargs.items()))
        hash(key)
    except TypeError:
        return None
    return key


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), _strides(value), value.dtype
    if type(value) in (tuple, list):
        return tuple(map(_signature, value))
    return type(value), value


def _formed(func: Any, args: Any, kwargs: Any) -> list[_Form]:
    """The forms of the results of the commonest calls, whose meta kernels are Python and slow; else empty."""
    name = func._schema.name
    if name in _NORMS and not kwargs and args[0].is_contiguous() and args[0].is_floating_point():
        return _norm_forms(name, args)
    if name == "aten::_grouped_mm" and args[0].ndim == 2 and args[1].ndim == 3:  # its meta kernel takes one type only
        size = (args[0].shape[0], args[1].shape[2])
        return [(size, (size[1], 1), kwargs.get("out_dtype") or args[0].dtype)]
    if not is_pointwise(func) or len(func._schema.returns) != 1 or not kwargs.keys().isdisjoint(_LAYOUTS):
        return []
    tensors = tensors_in((*args, *kwargs.values()))
    if not tensors:
        return []
    first, strides = tensors[0], _strides(tensors[0])
    alike = all(one.shape == first.shape and _strides(one) == strides for one in tensors[1:] if one.ndim)
    if not first.ndim or not alike or not _is_dense(first):
        return []
    return [(tuple(first.shape), strides, _type_of(func, args, kwargs))]


def _norm_forms(name: str, args: Any) -> list[_Form]:
    """Of a norm in evaluation: the value, then statistics; batch norm returns none of them then."""
    value, dtype = args[0], args[0].dtype
    if name == "aten::native_batch_norm":
        if args[5]:
            return []
        return [_form(value), ((0,), (1,), dtype), ((0,), (1,), dtype)]
    if dtype not in (torch.float32, torch.float64):
        return []
    if name == "aten::native_layer_norm":
        lead = value.ndim - len(args[1])
        size = (*value.shape[:lead], *(1,) * len(args[1]))
    else:
        size = (args[3], args[6])
    strides = tuple(torch.empty(size, device=_META).stride())
    return [_form(value), (size, strides, dtype), (size, strides, dtype)]


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
            return torch.empty((1,) if value.ndim else (), dtype=value.dtype, device=_META)
        return type(value)(map(small, value)) if type(value) in (tuple, list) else value

    def told(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.dtype, value.ndim > 0
        if isinstance(value, torch.dtype):
            return value
        return tuple(map(told, value)) if type(value) in (tuple, list) else type(value)

    key = (func, told(tuple(args)), tuple((name, told(value)) for name, value in kwargs.items()))
    if key not in _types:
        given = {name: _META if name == "device" else small(value) for name, value in kwargs.items()}
        _types[key] = func(*small(tuple(args)), **given).dtype
    return _types[key]


class StandIns(TorchFunctionMode):
    """Hands torch's functions the stand-ins of real tensors, so that not even their version counts change."""

    def __init__(self, fakes: Fakes) -> None:
        super().__init__()
        self._fakes = fakes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*self._fakes.faked(tuple(args)), **self._fakes.faked(kwargs or {}))
