"""Functions that a run answers in its own way: those that ask for sizes, types, values and gradients."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional

from fx_oto.analysis.disguises import is_fake
from fx_oto.capture.calls import INTEGERS, TENSORS, TYPES, is_wrapped_by_functorch, name_of, without_memory
from fx_oto.capture.modes import without_modes
from fx_oto.capture.numbers import Origin, shown
from fx_oto.capture.recorder import Recorder
from fx_oto.capture.refusals import BEFORE, GRADIENTS, LAYOUT, ON_VALUES
from fx_oto.capture.rejoined import rejoined
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import last_node, op_name

__all__ = ["ANSWERS", "property_of_tensor"]

_ALL = ("tolist", "numpy", "__array__")
_TRUTHS = ("__bool__", "is_nonzero")
# Of one number, which remembers where it is from: what code is given.
_READ: dict[str, Callable[[Any], Any]] = {"item": lambda number: number, "__int__": int, "__float__": float}
_DRAWING = ("rand", "rand_like")
_COMPARING = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
_VALUES = (*_READ, "__index__", "__complex__", *_TRUTHS, *_ALL)


def _shape(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    tensor = args[0] if args else kwargs.get("self", kwargs.get("input"))
    which = args[1] if len(args) > 1 else kwargs.get("dim")
    size = tuple.__iter__(func(tensor) if name_of(func) == "shape" else torch.Size(tensor.shape))
    if id(tensor) not in run.places:  # the model holds it
        sizes = torch.Size(size)
        return sizes if which is None else sizes[which]
    run.handed = True
    dims = list(size)
    node = run.node_of_tensor(tensor)
    if which is not None:
        which = int(without_memory(which)) % max(len(dims), 1)
        return run.size(dims[which], _size_of(run, node, which))
    return torch.Size([run.size(n, _size_of(run, node, dim)) for dim, n in enumerate(dims)])


def _size_of(run: Recorder, node: Node, dim: int) -> Origin:
    sizes = run.checked.setdefault(("size", node), {})
    if dim not in sizes:
        sizes[dim] = Origin("size", (node, dim))
    found: Origin = sizes[dim]
    return found


def _bytes(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    (tensor,) = args
    return run.record(torch.Tensor.numel, "numel", (tensor,), {}) * tensor.element_size()


def _new(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """``x.new(y.size())``: as many numbers; of a plain tuple it would make a tensor of these."""
    tensor, *given = args
    if len(given) != 1 or not isinstance(given[0], torch.Size):
        return NotImplemented
    return run.record(func, "new", (tensor, *given[0]), kwargs)


def _length(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """``len(x)``, which must be a plain number."""
    (tensor,) = args
    if not tensor.ndim or id(tensor) not in run.places:
        return func(*args)
    run.handed = True
    n = int(tensor.shape[0])
    count = run.size(n, _size_of(run, run.node_of_tensor(tensor), 0))
    given = run.length_of_some(count)
    run.handed_out(count, shown(count))
    return given


def _unbind(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Also of code that iterates over a tensor."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    rows = None if dim else run.all_rows(args[0] if args else kwargs["input"])
    if rows is None:
        return NotImplemented
    with without_modes():
        return rows.unbind()


def _ask_values(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """The numbers in a tensor: known ones are what the graph checks, or reads; of all others it reads what it can."""
    (tensor, *_) = args
    node = run.node_of_tensor(tensor)
    real, name = run.constant(tensor), name_of(func)
    if name in _TRUTHS and (known := _always(node)) is not None:
        return known
    if real is None:
        return _unknown(run, tensor, node, name)
    with without_modes():
        value, answer = getattr(real, name)(), real.tolist() if name in _ALL else real.item()
    if name == "item":
        return run.number(value, Origin("item", (node,)))
    run.decided(Origin("tolist" if name in _ALL else "item", (node,)), answer)
    return value


def _unknown(run: Recorder, tensor: Tensor, node: Node, name: str) -> Any:
    """Numbers that nobody knows.

    Raises:
        TraceError: code goes by them.
    """
    if name in _TRUTHS or (name == "item" and tensor.dtype is torch.bool):
        return run.branch(node)
    if name in _ALL and (rows := run.all_rows(tensor)) is not None:
        with without_modes():
            return getattr(rows, name)()
    if run.has_tried:  # for the text of an error
        with without_modes():
            return getattr(torch.zeros(tensor.shape, dtype=tensor.dtype), name)()
    if run.options.op_level and name in _READ and (name == "item" or run.options.reads_plain):
        return _READ[name](run.number_by_values(tensor))
    if run.options.op_level and name in ("tolist", "numpy") and tensor.dtype in INTEGERS:
        return _listed(run, tensor, name == "numpy")
    raise TraceError(ON_VALUES)


def _listed(run: Recorder, tensor: Tensor, as_array: bool) -> Any:
    """The numbers in a tensor, which the graph reads when it runs, in lists; or in an array that holds any objects."""
    if tensor.ndim:
        found = [_listed(run, one, False) for one in run.record(torch.Tensor.unbind, "unbind", (tensor,), {})]
    else:
        found = run.number_by_values(tensor)
    return sys.modules["numpy"].array(found, dtype=object) if as_array else found


def _same(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """``torch.equal`` and ``torch.allclose``, as code that asks whether all numbers are, or are close."""
    tensors = (*args, *kwargs.values())[:2]
    if len(tensors) != 2 or torch.Size(tensors[0].shape) != torch.Size(tensors[1].shape):
        return NotImplemented
    compare, name = (torch.eq, "eq") if name_of(func) == "equal" else (torch.isclose, "isclose")
    alike = run.record(compare, name, args, kwargs)
    return _ask_values(run, torch.Tensor.__bool__, (run.record(torch.Tensor.all, "all", (alike,), {}),), {})


def _always(node: Node) -> bool | None:
    """Whether a comparison with a number that is drawn from [0, 1) holds, or fails, whatever is drawn."""
    drawn, bound, *_ = (*node.args, None, None)
    compare = _COMPARING.get(op_name(node))
    if compare is None or not isinstance(drawn, Node) or op_name(drawn) not in _DRAWING:
        return None
    if not isinstance(bound, int | float):
        return None
    least, largest = compare(0.0, bound), compare(math.nextafter(1.0, 0.0), bound)
    return bool(least) if least == largest else None


def _type(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """What a tensor's type is, or something that it says."""
    tensor = args[0] if args else kwargs["input"]
    with without_modes():
        dtype = tensor.dtype
    if id(tensor) in run.subject.tensors:
        run.types_asked.append((tensor, dtype))
    elif id(tensor) in run.places:
        run.types_asked.append((run.node_of_tensor(tensor), dtype))
    return func(*args, **kwargs)


def _layout(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """How a tensor lies in memory, or where."""
    if is_fake(args[0]):
        run.asks(LAYOUT)
    return func(*args, **kwargs)


def _set_requires_grad(run: Recorder, func: Any, args: Any, kwargs: Any) -> None:
    tensor, wanted = args
    node = run.create("call_method", "requires_grad_", (run.node_of_tensor(tensor), bool(wanted)))
    node.meta["val"] = tensor
    if wanted:
        run.mark_differentiable(tensor)


def _requires_grad(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    (tensor,) = args
    if not is_fake(tensor):
        return func(*args)
    run.asks(GRADIENTS)
    return run.differentiable(tensor) and torch.is_grad_enabled()


def _grad_fn(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    return _GradientNode() if _requires_grad(run, func, args, kwargs) and not _is_parameter(run, args[0]) else None


def _is_leaf(run: Recorder, func: Any, args: Any, kwargs: Any) -> bool:
    if is_fake(args[0]):
        run.asks(GRADIENTS)
    return not run.differentiable(args[0]) or _is_parameter(run, args[0])


def _is_parameter(run: Recorder, tensor: Tensor) -> bool:
    return not is_fake(tensor) or id(tensor) in run.fakes.real


class _GradientNode:
    """The ``grad_fn`` of a tensor while a model is captured."""

    next_functions = ()

    def name(self) -> str:
        """What torch would call it is not known."""
        return "FakeBackward0"

    def register_hook(self, hook: Any) -> None:
        """Refuse, for the graph would not have it."""
        raise TraceError("a gradient hook is set on a grad_fn, which a graph does not keep")

    register_prehook = register_hook


def _register_hook(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    tensor, hook = args
    run.hook(hook, tensor)
    return _NoHandle()


class _NoHandle:
    """What ``register_hook`` returns while a model is captured."""

    def remove(self) -> None:
        """Refuse, for the graph would keep the hook."""
        raise TraceError("a gradient hook is removed in forward, which a graph does not keep")


def property_of_tensor(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """What a property of a tensor returns, as a node that reads it; of what ``torch.func`` wraps, as the ops it is."""
    return NotImplemented if is_wrapped_by_functorch(args) else _property(run, args[0], name_of(func))


def _property(run: Recorder, tensor: Tensor, name: str) -> Any:
    last = last_node(run.graph)
    node = run.create("call_function", getattr, (run.node_of_tensor(tensor), name))
    get = (lambda given, _: given[0].detach()) if name == "data" else lambda given, _: getattr(given[0], name)
    return run.compute_node(node, (tensor,), {}, get, last)


def _set_data(run: Recorder, func: Any, args: Any, kwargs: Any) -> None:
    """``x.data = y``: a tensor of the model's is written; another is from here on one that has its gradient."""
    target, source = args
    if (target.shape, target.dtype) != (source.shape, source.dtype):
        name = run.subject.tensors.get(id(target), "a tensor")
        if target.shape == source.shape:
            raise TraceError(f"code casts {name} from {target.dtype} to {source.dtype}: {BEFORE}")
        raise TraceError(f"code replaces the data of {name} by data of another shape: {BEFORE}")
    if source is target:  # as of module.to(dtype), where it is of that type
        return
    owned = run.node_of_tensor(target).op == "get_attr"
    written = target if owned else run.record(torch.Tensor.clone, "clone", (target,), {})
    run.record(torch.Tensor.copy_, "copy_", (_property(run, written, "data"), source), {})
    if not owned:
        run.put(target, run.node_of_tensor(written))
        run.rewritten = True


def _assertion(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """What code asserts of plain truth values it has decided already."""
    return NotImplemented if isinstance(args[0], Tensor) else func(*args, **kwargs)


def _cast(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """What ``module.to(dtype)`` asks of its tensors: one that is of that type already stays itself."""
    held = args[0]
    if is_fake(held) or id(held) not in run.subject.tensors or not _is_called_by(nn.Module._apply.__code__):
        return NotImplemented
    with without_modes():
        small = torch.empty(1, dtype=held.dtype, device=held.device)
        same = func(small, *without_memory(args[1:]), **without_memory(kwargs)) is small
    return held if same else NotImplemented


def _weighted(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """``l1_loss``, which torch calls without its weight where anybody looks on."""
    frame = _caller(functional.l1_loss.__code__)
    if frame is not None and frame.f_locals["weight"] is not None:
        raise TraceError("torch hides the weight of l1_loss: write (weight * (input - target).abs()).mean() instead")
    return NotImplemented


def _is_called_by(code: CodeType) -> bool:
    return _caller(code) is not None


def _caller(code: CodeType) -> FrameType | None:
    """The innermost frame that runs some code."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame


def _forward_mode(run: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    raise TraceError(
        "code computes derivatives in forward mode (torch.func.jvp, jacfwd, torch.autograd.forward_ad), which a graph "
        "does not keep; those of torch.func.grad can be captured"
    )


ANSWERS: dict[str, Callable[[Recorder, Any, Any, Any], Any]] = {
    "shape": _shape,
    "size": _shape,
    "_assert": _assertion,
    "nbytes": _bytes,
    "new": _new,
    "__len__": _length,
    "unbind": _unbind,
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), rejoined),
    **dict.fromkeys(("equal", "allclose"), _same),
    "l1_loss": _weighted,
    "_make_dual": _forward_mode,
    "data_ptr": _layout,
    "is_contiguous": _layout,
    "requires_grad": _requires_grad,
    "grad_fn": _grad_fn,
    "is_leaf": _is_leaf,
    "register_hook": _register_hook,
    "set data": _set_data,
    "set requires_grad": _set_requires_grad,
    **dict.fromkeys(_VALUES, _ask_values),
    **dict.fromkeys(TENSORS, property_of_tensor),
    **dict.fromkeys(TYPES, _type),
    **dict.fromkeys(("to", "float", "double", "half", "bfloat16", "cpu", "cuda", "type"), _cast),
}
