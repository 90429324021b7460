"""What a file may name: functions, operators, methods, attributes and classes, each found by its name or not at all.

Nothing is imported because a file names it, and nothing that reads or writes files, or calls what it is given, is here.
"""

from __future__ import annotations

import builtins
import math
import operator
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence

from fx_oto.capture.arguments import is_given, is_int, is_none, is_so, keys_in_order, length, sorted_keys
from fx_oto.capture.numbers import is_whole
from fx_oto.capture.precision import complex_of, limit_of, real_of
from fx_oto.core.handed import named_op
from fx_oto.nn import attention, checks, modes, norms, products
from fx_oto.ops.reshape.rewriting import times_each, times_ratio

__all__ = [
    "BUILT",
    "ENUMS",
    "attribute_is_known",
    "class_named",
    "function_named",
    "method_is_known",
    "name_of_class",
    "name_of_function",
]

_OPERATORS = (
    "abs add and_ concat contains eq floordiv ge getitem gt iadd iand ifloordiv imod imul index invert ior ipow isub "
    "is_ is_not itruediv ixor le lshift lt matmul mod mul ne neg not_ or_ pos pow rshift setitem sub truediv truth xor"
)
_MATH = "ceil cos exp floor gcd isqrt lcm log log2 log10 pow prod sin sqrt trunc"
_BUILTINS = "abs bool complex dict float getattr int len list max min round sum tuple"
_OURS: tuple[Callable[..., Any], ...] = (
    *(is_given, is_int, is_none, is_so, is_whole, keys_in_order, length, sorted_keys, times_each, times_ratio),
    *(complex_of, limit_of, real_of),
    *(checks.has_truth, checks.raise_unless),
    *(modes.by_mode, modes.holds_in, modes.written_in),
    *(norms.batch_norm_over, norms.group_norm_over, norms.layer_norm_over, norms.mean_over, norms.rms_norm_over),
    products.grouped_mm_of_any_width,
    *(norms.variance_over, norms.worth_beside, norms.beside, norms.moments_of, norms.normalized_beside),
)
# They read memory or files that are not a tensor's, or call what they are given.
_NO_FUNCTIONS = {"from_file", "from_numpy", "frombuffer", "asarray", "get_device", "set_"}
_NO_METHODS = {
    *("apply_", "map_", "map2_", "register_hook", "register_post_accumulate_grad_hook", "reinforce", "backward"),
    *("numpy", "storage", "untyped_storage", "storage_type", "set_", "share_memory_", "module_load", "as_subclass"),
    *("data_ptr", "const_data_ptr", "record_stream", "pin_memory", "resize", "resize_as", "new"),
}
_IN_PLACE = {f"__{name}__" for name in (*modes.IN_PLACE, "setitem")}
_INNER = ("_assert", "_pack_padded_sequence", "_pad_packed_sequence")
# Of ATen's operators whose names begin with an underscore, those that graphs are made of.
_INNER_OPS = {
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_assert_tensor_metadata", "_cdist_forward", "_conj"),
    *("_fused_rms_norm", "_log_softmax", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("_prelu_kernel", "_scaled_dot_product_flash_attention_for_cpu", "_softmax", "_to_copy", "_unsafe_view"),
    *("_weight_norm", "_weight_norm_interface", "_euclidean_dist", "_fft_r2c", "_fft_c2r", "_fft_c2c", "_trilinear"),
}
# Operators of other libraries that compute with tensors alone; they are there once their library is imported.
_NAMESPACES = {"torchvision": {"nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"}}

# What a graph makes anew of parts, by name.
BUILT: dict[str, Callable[..., Any]] = {
    "OrderedDict": OrderedDict,
    "PackedSequence": PackedSequence,
    "Size": torch.Size,
    "frozenset": frozenset,
    "set": set,
}
ENUMS: dict[str, type[Enum]] = {"OrthMaps": parametrizations._OrthMaps}
_CLASSES: tuple[type[nn.Module], ...] = (
    *(nn.Module, modes.TrainingFlag, attention.FewerHeads, norms.LayerNormOver, norms.GroupNormOver, norms.RMSNormOver),
    *(parametrize.ParametrizationList, parametrizations._Orthogonal, parametrizations._SpectralNorm),
    *(parametrizations._WeightNorm, NonDynamicallyQuantizableLinear),
)


def function_named(name: str) -> Callable[..., Any] | None:
    """The function or operator of that name, such as ``"torch.relu"``; None if a file may not name it."""
    found = _functions()[0].get(name)
    return _operator(name) if found is None and name.startswith("ops.") else found


def name_of_function(function: Any) -> str | None:
    """The name that files call a function or operator by; None if they may not."""
    if isinstance(function, OpOverloadPacket) and len(function.overloads()) == 1:  # ``torch.ops.torchvision.roi_align``
        function = getattr(function, function.overloads()[0])
    if isinstance(function, OpOverload):
        name = f"ops.{function}"
        return name if _operator(name) is function else None
    try:
        return _functions()[1].get(function)
    except TypeError:  # not hashable
        return None


def method_is_known(name: str) -> bool:
    """Return whether files may call a method: public ones of tensors, and those of Python's operators in place."""
    if name in _IN_PLACE:
        return True
    found = getattr(torch.Tensor, name, None) if _is_public(name) else None
    return callable(found) and name not in _NO_METHODS


def attribute_is_known(name: str) -> bool:
    """Return whether files may read an attribute: public ones of tensors that are no methods, and parts of results."""
    return name in _attributes()


def class_named(name: str) -> type[nn.Module] | None:
    """The class of modules called that, such as ``"torch.nn.Linear"``; None if a file may not name it."""
    return _classes()[0].get(name)


def name_of_class(kind: type) -> str | None:
    """The name that files call a class of modules by; None if they may not."""
    return _classes()[1].get(kind)


def _is_public(name: str) -> bool:
    return not name.startswith("_") and name.isidentifier()


@cache
def _functions() -> tuple[dict[str, Any], dict[Any, str]]:
    """By name, and their names."""
    found: dict[str, Any] = {}
    for name, function in _listed():
        found.setdefault(name, function)
    names: dict[Any, str] = {}
    for name, function in found.items():
        names.setdefault(function, name)
    return found, names


def _listed() -> Iterator[tuple[str, Any]]:
    yield from ((f"operator.{name}", getattr(operator, name)) for name in _OPERATORS.split())
    yield from ((f"math.{name}", getattr(math, name)) for name in _MATH.split())
    yield from ((f"builtins.{name}", getattr(builtins, name)) for name in _BUILTINS.split())
    yield from ((f"fx_oto.{function.__name__}", function) for function in _OURS)
    yield from ((f"torch.{name}", getattr(torch, name)) for name in _INNER)
    yield from (("torch." + name, getattr(torch, name)) for name in torch.functional.__all__)
    native = list(_public(torch._C._VariableFunctions, "torch", types.BuiltinFunctionType))
    yield from ((name, one) for name, one in native if getattr(torch, one.__name__, None) is one)
    yield from ((f"torch._VF.{one.__name__}", one) for _, one in native)
    yield from _public(F, "torch.nn.functional", types.BuiltinFunctionType)
    written = _public(F, "torch.nn.functional", types.FunctionType)
    yield from ((name, function) for name, function in written if function.__module__ == F.__name__)
    for module in (torch.fft, torch.linalg, torch.special):
        yield from _public(module, module.__name__, types.BuiltinFunctionType)
    yield from ((f"torch.sparse.{name}", getattr(torch.sparse, name)) for name in ("addmm", "mm"))
    yield from _public(torch._C._nn, "torch._C._nn", types.BuiltinFunctionType)
    for name in dir(torch.Tensor):
        if method_is_known(name):
            yield f"torch.Tensor.{name}", getattr(torch.Tensor, name)


def _public(owner: Any, prefix: str, kind: type) -> Iterator[tuple[str, Any]]:
    for name in dir(owner):
        function = getattr(owner, name)
        if isinstance(function, kind) and _is_public(name) and not _is_refused(name):
            yield f"{prefix}.{name}", function


def _is_refused(name: str) -> bool:
    return name in _NO_FUNCTIONS or "torch_function" in name


def _operator(name: str) -> Any:
    """``"ops.aten.add.Tensor"``."""
    _, namespace, base, overload, *more = (*name.split("."), "", "", "")
    if any(more) or not overload or not base.isidentifier() or not overload.isidentifier() or _is_refused(base):
        return None
    if base not in (_NAMESPACES.get(namespace, ()) if namespace != "aten" else _INNER_OPS | {base.lstrip("_")}):
        return None
    qualified = f"{namespace}::{base}" + ("" if overload == "default" else f".{overload}")
    if not torch._C._dispatch_has_kernel(qualified):  # not those of TorchScript alone, which reach files
        return None
    found = named_op(f"{namespace}.{base}.{overload}")
    return found if isinstance(found, OpOverload) else None


@cache
def _attributes() -> frozenset[str]:
    found = {name for name in dir(torch.Tensor) if _is_public(name) and not callable(getattr(torch.Tensor, name))}
    for kind in vars(torch.return_types).values():
        found.update(name for name in dir(kind) if isinstance(getattr(kind, name), types.MemberDescriptorType))
    return frozenset(name for name in found - {"grad_fn", "grad"} if _is_public(name))


@cache
def _classes() -> tuple[dict[str, type[nn.Module]], dict[type, str]]:
    torchs = {f"torch.nn.{name}": getattr(nn, name) for name in nn.modules.__all__ if not name.startswith("Lazy")}
    torchs = {name: kind for name, kind in torchs.items() if issubclass(kind, nn.Module)}
    found = torchs | {f"{kind.__module__}.{kind.__name__}": kind for kind in _CLASSES}
    names: dict[type, str] = {}
    for name, kind in found.items():
        names.setdefault(kind, name)
    return found, names
