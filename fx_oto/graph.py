"""Small helpers on FX graphs and modules that the rest of the library shares."""

from __future__ import annotations

import copy
import logging
import os
import re
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from fx_oto.errors import InputError

__all__ = [
    "bare_name",
    "check_has_numbers",
    "clone_module",
    "described",
    "evaluating",
    "file_shown",
    "graph_copy",
    "memory_of",
    "one_at_a_time",
    "op_name",
    "patterns_in",
    "quiet_fakes",
    "raised_at",
    "source_line",
    "tensor_leaves",
    "tensor_names",
    "unchanged",
    "unfused_attention",
    "unwritten",
    "with_modes_of",
    "with_modules",
    "without_caches",
]

# Tracing, and running on fake tensors, set switches of the whole process, such as which attention kernel torch takes,
# and ask whether random numbers were drawn: threads take turns.
one_at_a_time = RLock()

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
# Of this library, what runs a user's code.
_NOT_USERS = (_TORCH, *(str(Path(__file__).parent / name) for name in ("tracing", "provenance", "graph.py")))
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def source_line(node: Node) -> str:
    """Where in the user's source a node was traced: ``"path/net.py:12"``, or ``""`` when not recorded."""
    frames = _FRAME.findall(node.stack_trace or "")
    users = [frame for frame in frames if not frame[0].startswith(_TORCH)] or frames
    return f"{file_shown(users[-1][0])}:{users[-1][1]}" if users else ""


def raised_at(error: BaseException) -> str:
    """Where in the user's code an error arose: ``"path/net.py:12 (x = self.a(x))"``, or ``""`` if it was in none."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_USERS)]
    return f"{file_shown(frames[-1].filename)}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""


@contextmanager
def quiet_fakes() -> Iterator[None]:
    """Keep torch from logging what does not run on fake tensors, traceback by traceback: it will be explained."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def file_shown(path: str) -> str:
    """A source file as its reader knows it: a cell of a notebook, whose file is made up, by its prompt, ``"In[3]"``."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    name_of = getattr(getattr(shell, "compile", None), "format_code_name", None)
    found = None if name_of is None else name_of(path)
    return path if found is None else str(found[1])


def op_name(node: Node) -> str:
    """The bare name of what a node calls, the same for ``torch.relu``, ``x.relu()`` and ``aten.relu``."""
    if node.op == "call_module":
        return type(_submodule(node)).__name__
    if isinstance(node.target, torch._ops.OpOverload):
        return bare_name(str(node.target._schema.name))
    if isinstance(node.target, torch._ops.OpOverloadPacket):
        return bare_name(str(node.target._qualified_op_name))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.strip("_") if name.startswith("__") else name


def bare_name(qualified: str) -> str:
    """An operator's name: of torch's own without the namespace, of any other in full, for it may mean anything."""
    namespace, _, name = qualified.partition("::")
    return name if namespace in ("aten", "prims") else qualified


def described(node: Node) -> str:
    """A node as errors name it: ``"node 'conv' (Conv2d at path/net.py:12)"``."""
    return f"node {node.name!r} ({op_name(node)} at {source_line(node) or 'no source line'})"


def _submodule(node: Node) -> nn.Module:
    owner = node.graph.owning_module
    assert owner is not None
    return owner.get_submodule(str(node.target))


@contextmanager
def evaluating(module: nn.Module, training: bool = False) -> Iterator[None]:
    """Put a module and its children in one mode for a while, then restore each child's own."""
    before = [(child, child.training) for child in module.modules()]
    try:
        for child, _ in before:
            child.training = training
        yield
    finally:
        for child, mode in before:
            child.training = mode


@contextmanager
def unchanged(model: nn.Module, but: tuple[str, ...] = ()) -> Iterator[None]:
    """Take back what code sets on modules, and in what they hold, but for the model's own names that begin so.

    Tensors are not copied: what is written into them stays.
    """
    before = [(held, copy.copy(held)) for held in _changeable(model)]
    try:
        yield
    finally:
        for held, content in before:
            if isinstance(held, dict):
                own = held is vars(model) or held is model._modules
                content.update({key: held[key] for key in held if own and key not in content and key.startswith(but)})
            held.clear()
            (held.extend if isinstance(held, list | deque) else held.update)(content)


@contextmanager
def without_caches(model: nn.Module) -> Iterator[None]:
    """Take back what code sets, as ``unchanged``; what modules keep in evaluation of their parameters is forgotten.

    They forget it when training begins.
    """
    with unchanged(model):
        with evaluating(model, True):
            for module in model.modules():
                if type(module).train is not nn.Module.train:
                    module.train(True)
        yield


@contextmanager
def unwritten(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation, without gradients, and leave it as it was.

    Taken back is what it writes into its buffers, such as a count of its calls, and sets on its modules.
    """
    before = [(memory, memory.clone()) for memory in (memory_of(buffer.data) for buffer in model.buffers())]
    counted = tuple(buffer for buffer in model.buffers() if not buffer.is_inference())
    try:
        with unchanged(model), evaluating(model), torch.no_grad(), _unsafe_preserve_version_counter(counted):
            yield
    finally:
        for memory, content in before:
            memory.copy_(content)


def memory_of(tensor: Tensor) -> Tensor:
    """The same memory, no element of which is met twice, as in what was expanded: so it can be written."""
    tensor = tensor.detach()
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


# What every module has; of it, what forward may change.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_REGISTRIES = ("_parameters", "_buffers", "_modules")


def _changeable(model: nn.Module) -> list[Any]:
    """The attributes of modules, and all containers and objects of Python classes that can be reached from them."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [model]
    while waiting:
        value = waiting.pop()
        if isinstance(value, nn.Module):
            held = vars(value)
            if id(held) not in found:
                registries = [held[name] for name in _REGISTRIES if isinstance(held.get(name), dict)]
                found |= {id(one): one for one in (held, *registries)}
                waiting.extend(held[name] for name in held.keys() - _OF_EVERY_MODULE)
                waiting.extend(value.children())
            continue
        if _is_plain_object(value):
            value = vars(value)
        if id(value) in found or not isinstance(value, dict | list | set | deque | tuple):
            continue
        found[id(value)] = value
        waiting.extend(value.values() if isinstance(value, dict) else value)
    return [held for held in found.values() if not isinstance(held, tuple)]


def _is_plain_object(value: Any) -> bool:
    ours = type(value).__module__.split(".")[0] in ("torch", "fx_oto", "passes")
    opaque = ours or isinstance(value, Tensor | type | ModuleType | FunctionType | BaseException)
    return not opaque and type(getattr(value, "__dict__", None)) is dict


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Keep torch's transformer modules from calling one kernel for a whole layer."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def graph_copy(gm: GraphModule) -> GraphModule:
    """A GraphModule with a graph and a tree of its own that shares the input's leaf modules, parameters and buffers."""
    graph = Graph(tracer_cls=gm.graph._tracer_cls)
    renamed: dict[Node, Node] = {}
    output = graph.graph_copy(gm.graph, renamed)
    old = next(node for node in gm.graph.nodes if node.op == "output")
    renamed[old] = graph.output(output)
    for before, after in renamed.items():
        after.meta = dict(before.meta)
    graph.set_codegen(copy.copy(gm.graph._codegen))
    new = with_modes_of(GraphModule(gm, graph, gm.__class__.__name__), gm)
    new.meta = dict(gm.meta)
    return new


def with_modes_of(new: GraphModule, old: nn.Module) -> GraphModule:
    """Give a GraphModule the ``training`` flags of the module that it was made from."""
    modes = {name: child.training for name, child in old.named_modules(remove_duplicate=False)}
    for name, child in new.named_modules(remove_duplicate=False):
        child.training = modes.get(name, old.training)
    return new


def clone_module(module: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a module tree without copying its tensors: each parameter and buffer becomes ``replace(tensor)``.

    What occurs twice in the original, a module or a tensor, occurs twice in the copy.
    """
    modules: dict[nn.Module, nn.Module] = {}

    def clone(old: nn.Module) -> nn.Module:
        if old in modules:
            return modules[old]
        new = old.__new__(type(old))
        shared = (dict, list, set)  # hooks and the like: a change of the copy's must not reach the original's
        new.__dict__.update({k: copy.copy(v) if isinstance(v, shared) else v for k, v in old.__dict__.items()})
        modules[old] = new
        for registry in ("_parameters", "_buffers"):
            tensors = old.__dict__[registry]
            new.__dict__[registry] = {key: None if t is None else replace(t) for key, t in tensors.items()}
        new.__dict__["_modules"] = {key: child and clone(child) for key, child in old._modules.items()}
        for key, value in old.__dict__.items():
            if isinstance(value, MethodType) and value.__self__ is old:
                new.__dict__[key] = MethodType(value.__func__, new)
        return new

    return clone(module)


def tensor_names(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers, by name; a tensor under several names is listed under its first."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def check_has_numbers(model: nn.Module, doing: str) -> None:
    """Refuse a model on the meta device, whose tensors have shapes alone, for what reads or writes numbers.

    Raises:
        InputError: a parameter or buffer is there.
    """
    empty = [name for name, tensor in tensor_names(model).items() if tensor.is_meta]
    if empty:
        raise InputError(
            f"{doing} needs a model with numbers, but {len(empty)} of its tensors are on the meta device, "
            f"such as {empty[0]!r}: give it memory with model.to_empty(device='cpu') and weights with "
            "model.load_state_dict(…), then prepare or measure it"
        )


def tensor_leaves(value: Any) -> list[Tensor]:
    """The tensors in a value of any structure, in order."""
    if isinstance(value, Tensor):  # as most are
        return [value]
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def with_modules(name: str) -> list[str]:
    """The name of a tensor, and those of the modules that hold it, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def patterns_in(given: str | Iterable[str]) -> tuple[str, ...]:
    """Glob patterns as a user gives them: a string is one of them, not its letters."""
    return (given,) if isinstance(given, str) else tuple(given)
