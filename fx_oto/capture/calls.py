"""How the calls that torch lets be seen are written in a graph, and with which arguments they are made."""

from __future__ import annotations

import operator
from functools import lru_cache
from types import FunctionType, MethodDescriptorType
from typing import Any

import torch
from torch.fx import Node
from torch.overrides import is_tensor_method_or_property
from torch.utils._pytree import tree_leaves

from fx_oto.capture.numbers import Flag, Float, Int, plain
from fx_oto.capture.seen import SeenList, SeenTuple
from fx_oto.core.fx_utils import tensor_leaves
from fx_oto.nn.modes import IN_PLACE

__all__ = [
    "INLINED",
    "INTEGERS",
    "LISTS",
    "PLAIN",
    "TENSORS",
    "TURNING",
    "TYPES",
    "autocast",
    "code_of",
    "holds_arrays",
    "is_numpys",
    "is_wrapped_by_functorch",
    "name_of",
    "takes_list",
    "target_of",
    "with_dtypes",
    "without_memory",
    "writes_first",
]

# Read-only properties and methods whose answers say nothing of sizes, and are the same for a fake tensor.
_OF_FORM = ("ndim", "dim", "ndimension", "device", "layout", "names", "has_names", "get_device", "result_type")
_QUESTIONS = tuple(
    name
    for name in dir(torch.Tensor)
    if name.startswith("is_") and name not in ("is_nonzero", "is_set_to", "is_leaf", "is_contiguous")
)
_HELD = (
    "storage",
    "untyped_storage",
    "grad",
    "output_nr",
    "_version",
)
_OTHER_NAMES = (
    "__hash__",
    "can_cast",
    "promote_types",
    "finfo",
    "iinfo",
    "is_tensor",
    "is_storage",
    "retains_grad",
    "_has_compatible_shallow_copy_type",
)
# What says of which type a tensor is.
TYPES = frozenset(("dtype", "is_floating_point", "is_complex", "is_signed", "element_size", "itemsize"))
# What is not an op, but layers and arithmetic: as one node it could not be cut.
INLINED = frozenset(("multi_head_attention_forward",))
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)
PLAIN = frozenset((*_OF_FORM, *_QUESTIONS, *_HELD, *_OTHER_NAMES)) - TYPES
TURNING = frozenset(("squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_", "as_strided_"))
TENSORS = frozenset(("T", "mT", "H", "mH", "real", "imag", "data"))
LISTS = (tuple, list)
_CONSTRUCTORS = frozenset(("tensor", "as_tensor", "asarray", "new_tensor"))
_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")
_OTHERS = ("neg", "pos", "invert", "abs", "eq", "ne", "lt", "le", "gt", "ge", "getitem", "setitem")
_OPERATORS = frozenset((*_BINARY, *_OTHERS, *IN_PLACE, "imatmul", "ilshift", "irshift"))
_TURNED = {f"r{name}": name for name in _BINARY} | {"rdiv": "truediv"}


@lru_cache(maxsize=4096)
def takes_list(node: Node) -> bool:
    """Whether a call is given a list, such as the sizes of the parts that it is to return: these are as many."""
    return any(isinstance(one, list | tuple) for one in (*node.args, *node.kwargs.values()))


def name_of(func: Any) -> str:
    """A function's name; of a property its name, of setting one "set" and its name."""
    name = str(getattr(func, "__name__", ""))
    if name in ("__get__", "__set__"):
        owner = getattr(func, "__self__", None)
        read = str(getattr(owner, "__name__", None) or getattr(getattr(owner, "fget", None), "__name__", ""))
        return read if name == "__get__" else f"set {read}"
    return name


@lru_cache
def code_of(func: FunctionType) -> FunctionType:
    """A Python function of torch's that makes its calls at once; as long as any mode is active, torch hands it over."""
    names = func.__globals__ | {"has_torch_function": lambda _: False}
    code = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    code.__kwdefaults__ = func.__kwdefaults__
    return code


@lru_cache(maxsize=4096)
def target_of(func: Any, name: str) -> tuple[str, Any, bool]:
    """What a node calls: its kind, its target, and whether operands come in the other order."""
    bare = name.strip("_") if name.startswith("__") else ""
    if bare in _TURNED and bare not in _OPERATORS:
        return "call_function", getattr(operator, _spelled(_TURNED[bare])), True
    if bare in _OPERATORS:
        return "call_function", getattr(operator, _spelled(bare)), False
    if name in TENSORS:
        return "call_function", getattr, False
    if is_tensor_method_or_property(func) or isinstance(func, MethodDescriptorType):
        return "call_method", name, False
    return "call_function", func, False


def writes_first(name: str, kwargs: Any) -> bool:
    """Whether a name or an option says that a function writes into its first argument."""
    bare = name.strip("_") if name.startswith("__") else ""
    return bare in (*IN_PLACE, "setitem") or (not bare and name.endswith("_")) or kwargs.get("inplace") is True


def _spelled(name: str) -> str:
    return f"{name}_" if name in ("and", "or") else name


def with_dtypes(value: Any) -> Any:
    """An argument of a torch function, in which Python's classes of numbers, which no code prints, are torch's."""
    return _DTYPES.get(value, value) if isinstance(value, type) else value


def is_numpys(value: Any) -> bool:
    """Whether it is a scalar, or an array, of numpy."""
    return type(value).__module__ == "numpy" and hasattr(value, "item")


def holds_arrays(name: str, given: Any) -> bool:
    """Whether a function is given arrays of numpy, or a scalar whose type it keeps, unlike that of a number."""
    return any(is_numpys(leaf) and (leaf.ndim or name in _CONSTRUCTORS) for leaf in tree_leaves(given))


def without_memory(value: Any) -> Any:
    """The same with plain numbers."""
    kind = type(value)
    if kind in _NUMBERS:
        return _NUMBERS[kind](value)
    if isinstance(value, SeenList | SeenTuple):
        return value.kind(map(without_memory, value.held()))
    if kind in LISTS or kind is torch.Size:
        return kind(map(without_memory, value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*map(without_memory, value))
    if kind is slice:
        return slice(*map(without_memory, (value.start, value.stop, value.step)))
    return {key: without_memory(one) for key, one in value.items()} if kind is dict else value


_NUMBERS: dict[type, Any] = {Int: plain, Float: plain, Flag: lambda flag: bool(int(flag))}


_is_autocast_enabled = torch.is_autocast_enabled  # whatever takes its place while a model is captured


def autocast() -> tuple[Any, ...]:
    """What is cast to which type, on CPUs and on CUDA."""
    return tuple(_is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda"))


def is_wrapped_by_functorch(args: Any) -> bool:
    """Whether tensors are those of ``torch.func``, such as the elements that ``vmap`` takes apart."""
    if not torch._C._are_functorch_transforms_active():
        return False
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensor_leaves(args))
