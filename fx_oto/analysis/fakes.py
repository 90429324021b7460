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
from fx_oto.analysis.result_forms import META, Form, form_of, forms_of, key_of, remember, strides_of, tensors_in
from fx_oto.core.layouts import is_sparse

__all__ = ["Fakes", "StandIns", "ValuesAskedError", "asks_values", "text_of"]

_CPU = torch.device("cpu")
_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
_UNTOLD = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


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
            with torch.inference_mode(False), _DisableTorchFunction():  # a mode may ask for what stands in for it, too
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
        return self._wrap(_empty(tuple(value.shape), strides_of(value), value.dtype), device)

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
        tensors = tensors_in((*args, *kwargs.values()))
        if any(map(is_sparse, tensors)):
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
        key = key_of(func, args, kwargs) if traits.has_form else None
        device = _device(tensors, kwargs)
        forms = forms_of(key, func, args, kwargs, tensors) if key is not None else []
        return self._made(traits, forms, device) if forms else self._run(func, args, kwargs, device, key)

    def _made(self, traits: _Traits, forms: list[Form], device: torch.device) -> Any:
        made = [self._wrap(_empty(*form), device) for form in forms]
        return made[0] if traits.returns_one else tuple(made)

    def _run(self, func: Any, args: Any, kwargs: Any, device: torch.device, key: Any) -> Any:
        """Ask the kernel for meta tensors; what has none, torch's fake mode."""
        on_meta = {name: META if name == "device" else _metas(value) for name, value in kwargs.items()}
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
            remember(key, [form_of(one) for one in results])
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
        # Of torch's own operators, what new tensors are like is decided by what they are given, once and for all.
        self.has_form = func.namespace == "aten" and not written and all(one is None for one in returned)
        self.returns_one = len(returned) == 1 and str(schema.returns[0].type) == "Tensor"


@lru_cache(maxsize=4096)
def _traits(func: OpOverload) -> _Traits:
    return _Traits(func)


def _empty(size: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A meta tensor, and no stand-in, which modes that are active would make of it: each later call would be slow."""
    with _DisableTorchFunction(), _DisableTorchDispatch():
        return torch.empty_strided(size, strides, dtype=dtype, device=META)


def _metas(value: Any) -> Any:
    if is_fake(value):
        meta = value.__dict__.get("on_meta")
        if meta is None:
            meta = _empty(tuple(value.shape), strides_of(value), value.dtype)
            value.__dict__["on_meta"] = meta
        return meta
    if type(value) in (tuple, list):
        return type(value)(map(_metas, value))
    return value


def _device(tensors: list[Tensor], kwargs: Any) -> torch.device:
    """Where a result lies: where it is asked for, or with the operands that are no plain numbers."""
    if (given := kwargs.get("device")) is not None:
        return torch.device(given)
    wide = next((tensor for tensor in tensors if tensor.ndim), tensors[0] if tensors else None)
    return _CPU if wide is None else lies_on(wide)


class StandIns(TorchFunctionMode):
    """Hands torch's functions the stand-ins of real tensors, so that not even their version counts change."""

    def __init__(self, fakes: Fakes) -> None:
        super().__init__()
        self._fakes = fakes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*self._fakes.faked(tuple(args)), **self._fakes.faked(kwargs or {}))
