"""Small helpers on FX graphs and modules that the rest of the library shares."""

from __future__ import annotations

import copy
import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from fx_oto.core.errors import InputError
from fx_oto.core.handed import HandedGraph
from fx_oto.core.own_attributes import copy_own_attributes

__all__ = [
    "bare_name",
    "behind",
    "check_has_numbers",
    "check_whole",
    "clone_module",
    "deep_copy",
    "described",
    "file_shown",
    "graph_copy",
    "holder",
    "is_fully_sharded",
    "is_random",
    "is_sharded",
    "last_node",
    "one_at_a_time",
    "op_name",
    "quiet_fakes",
    "raised_at",
    "signature_of",
    "source_line",
    "tensor_leaves",
    "tensor_names",
    "unfused_attention",
    "with_modes_of",
    "without_code",
]

_Module = TypeVar("_Module", bound=nn.Module)

_GATHER = (
    "gather the weights on one process by torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options="
    "StateDictOptions(full_state_dict=True, cpu_offload=True)), load them into a whole copy of the model, prepare that "
    "and go on with it"
)

# Tracing, and running on fake tensors, set switches of the whole process, such as which attention kernel torch takes,
# and ask whether random numbers were drawn: threads take turns.
one_at_a_time = RLock()
_DRAWS = {"normal", "log_normal", "uniform", "exponential", "cauchy", "geometric", "poisson", "multinomial", "rrelu"}

_NO_TENSORS = (int, float, bool, str, type(None), torch.Size, torch.dtype, torch.device)
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
# Of this library, what runs a user's code.
_NOT_USERS = (_TORCH, *(str(Path(__file__).parents[1] / name) for name in ("capture", "analysis", "core", "nn")))
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def last_node(graph: Graph) -> Any:
    """The node at the end of a graph; None of an empty one."""
    return next(iter(reversed(graph.nodes)), None)  # before torch 2.11, reversed returns what is no iterator


def behind(value: Any) -> set[Node]:
    """The nodes that a value in a graph is computed from, and they themselves."""
    found, waiting = set[Node](), [one for one in tree_leaves(value) if isinstance(one, Node)]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def is_random(node: Node) -> bool:
    """Return whether a node draws random numbers, judged by its name; a module, by the name that it has."""
    name = str(node.target) if node.op == "call_module" else op_name(node).strip("_")
    return name in _DRAWS or any(word in name for word in ("rand", "dropout", "bernoulli", "gumbel"))


def source_line(node: Node) -> str:
    """The line of the user's source that made a node: ``"path/net.py:12"``, or ``""`` when not recorded."""
    frames = _FRAME.findall(node.stack_trace or "")
    users = [frame for frame in frames if not frame[0].startswith(_TORCH)] or frames
    return f"{file_shown(users[-1][0])}:{users[-1][1]}" if users else ""


def raised_at(error: BaseException) -> str:
    """The line of the user's code that raised an error: ``"path/net.py:12 (x = self.a(x))"``, ``""`` if it was none."""
    frames = [one for one in traceback.walk_tb(error.__traceback__) if is_users(one[0].f_code.co_filename)]
    if not frames:
        return ""
    (last,) = traceback.StackSummary.extract(iter(frames[-1:]))
    return f"{file_shown(last.filename)}:{last.lineno} ({last.line})"


def is_users(path: str) -> bool:
    """Whether a source file is neither torch's nor part of a capture."""
    return not path.startswith(_NOT_USERS)


@contextmanager
def quiet_fakes() -> Iterator[None]:
    """Keep torch from logging a traceback for each op that fails on fake tensors: our own error explains it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def file_shown(path: str) -> str:
    """A source file as its reader knows it: a notebook cell, whose file does not exist, by its prompt, ``"In[3]"``."""
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
    """An operator's name: torch's own without the namespace, any other in full, as its name may mean anything."""
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
def unfused_attention() -> Iterator[None]:
    """Keep torch's transformer modules from calling one fused kernel for a whole layer."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def graph_copy(gm: GraphModule, coded: bool = True) -> GraphModule:
    """A GraphModule with a graph and a tree of its own that shares the input's leaf modules, parameters and buffers.

    Args:
        gm: the input.
        coded: whether it can be run at once. Else it must be recompiled first: its code, which is most of the work to
            make, would be vain where the graph is changed before.
    """
    graph = Graph(tracer_cls=gm.graph._tracer_cls)
    renamed: dict[Node, Node] = {}
    output = graph.graph_copy(gm.graph, renamed)
    renamed[gm.graph.output_node()] = graph.output(output)
    for before, after in renamed.items():
        after.meta = dict(before.meta)
    graph.set_codegen(copy.copy(gm.graph._codegen))
    name = gm.__class__.__name__
    new = with_modes_of(HandedGraph(gm, graph, name) if coded else without_code(gm, graph, name), gm)
    new.meta = dict(gm.meta)
    return new


def without_code(root: nn.Module, graph: Graph, name: str) -> GraphModule:
    """A GraphModule that must be recompiled before it is run."""
    new = HandedGraph.__new__(HandedGraph)
    kind = type(new)  # a class of its own, as every GraphModule has
    kind.recompile = lambda self: None  # type: ignore[method-assign,assignment,return-value]
    try:
        HandedGraph.__init__(new, root, graph, name)
    finally:
        del kind.recompile
    return new


def with_modes_of(new: GraphModule, old: nn.Module) -> GraphModule:
    """Give a GraphModule the ``training`` flags of the module that it was made from."""
    modes = {name: child.training for name, child in old.named_modules(remove_duplicate=False)}
    for name, child in new.named_modules(remove_duplicate=False):
        if child.training is not (mode := modes.get(name, old.training)):
            child.training = mode
    return new


def clone_module(module: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a module tree without copying its tensors: each parameter and buffer becomes ``replace(tensor)``.

    What occurs twice in the original, a module or a tensor, occurs twice in the copy.
    """
    modules: dict[nn.Module, nn.Module] = {}

    def clone(old: nn.Module) -> nn.Module:
        if old in modules:
            return modules[old]
        if isinstance(old, torch.jit.ScriptModule):  # whose tensors are out of reach
            return deep_copy(old)
        kind: type[nn.Module] = type(old)
        if is_fully_sharded(old):  # by a class that cannot be made anew
            kind = kind.__mro__[2]
        new = kind.__new__(kind)
        if isinstance(old, GraphModule):  # whose code belongs to a class of its own
            type(new).forward = type(old).forward
        shared = (dict, list, set)  # hooks and the like: a change of the copy's must not reach the original's
        new.__dict__.update({k: copy.copy(v) if isinstance(v, shared) else v for k, v in old.__dict__.items()})
        new.__dict__.pop("_compiled_call_impl", None)  # which would call the original
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


def deep_copy(module: _Module, memo: dict[int, Any] | None = None) -> _Module:
    """``copy.deepcopy``, but the parameters of scripted modules are leaves, which torch computes from the original's.

    Args:
        module: any.
        memo: as of ``copy.deepcopy``: what takes the place of objects, by ``id``.
    """
    memo = {} if memo is None else memo
    with torch.no_grad():
        copy_own_attributes(module, memo)
        new = copy.deepcopy(module, memo)
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters(remove_duplicate=False)}
    for name, parameter in new.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(trained[name])
    return new


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was called on a module: it puts a class of its own before the module's."""
    return type(module).__mro__[1].__name__ == "FSDPModule"


def tensor_names(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers, by name; a tensor under several names is listed under its first."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def check_held(gm: nn.Module, names: Iterable[str]) -> None:
    """A GraphModule must still hold the parameters and buffers that the analysis found.

    Raises:
        InputError: one is gone.
    """
    held = tensor_names(gm)
    if lost := next((name for name in names if name not in held), None):
        raise InputError(
            f"{lost!r} is not what prepare found: it is gone, as where a layer was replaced, or parametrized, since. "
            "Nothing was changed: call fx_oto.prepare on the model as it is now"
        )


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes (a ``DTensor``), as ``fully_shard`` makes parameters."""
    return hasattr(tensor, "placements")


def check_whole(model: nn.Module, doing: str, remedy: str = "") -> None:
    """Refuse a model whose tensors are sharded over processes, as by ``fully_shard``: each holds a part of them.

    Args:
        model: the model.
        doing: the start of the sentence, such as ``"slicing"``.
        remedy: what to do; by default, to gather the weights.

    Raises:
        InputError: a parameter or buffer is.
    """
    sharded = [name for name, tensor in tensor_names(model).items() if is_sharded(tensor)]
    if sharded:
        raise InputError(
            f"{doing} needs whole tensors, but {len(sharded)} of them are sharded over processes, such as "
            f"{sharded[0]!r} (a DTensor, as fully_shard makes them): {remedy or _GATHER}"
        )


def check_has_numbers(model: nn.Module, doing: str) -> None:
    """Refuse a model on the meta device, whose tensors have shapes but no numbers.

    Args:
        model: the model.
        doing: the start of the sentence, such as ``"slicing"``.

    Raises:
        InputError: a parameter or buffer is on the meta device.
    """
    check_whole(model, doing)
    empty = [name for name, tensor in tensor_names(model).items() if tensor.is_meta]
    if empty:
        raise InputError(
            f"{doing} needs a model with numbers, but {len(empty)} of its tensors are on the meta device, "
            f"such as {empty[0]!r}: give it memory with model.to_empty(device='cpu') and weights with "
            "model.load_state_dict(…), then prepare or measure it"
        )


def order_in_memory(tensor: Tensor) -> list[int]:
    """The dimensions in the order in which they lie in memory: 0, 2, 3, 1 of a ``channels_last`` image."""
    strides, dims = tensor.stride(), list(range(tensor.ndim))
    order = dims if tensor.is_contiguous() else sorted(dims, key=lambda dim: -strides[dim])
    return order if tensor.permute(order).is_contiguous() else dims


def tensor_leaves(value: Any) -> list[Tensor]:
    """The tensors in a value of any structure, in order."""
    if isinstance(value, Tensor):  # as most are
        return [value]
    if type(value) in (tuple, list):
        return [leaf for one in value for leaf in tensor_leaves(one)]
    if type(value) in _NO_TENSORS:
        return []
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def signature_of(graph: Graph) -> inspect.Signature:
    """Of the function that a graph is: an argument for each placeholder."""
    kinds: dict[int, Any] = {1: inspect.Parameter.VAR_POSITIONAL, 2: inspect.Parameter.VAR_KEYWORD}
    parameters = []
    for node in graph.nodes:
        if node.op == "placeholder":
            name = str(node.target).lstrip("*")
            kind = kinds.get(len(str(node.target)) - len(name), inspect.Parameter.POSITIONAL_OR_KEYWORD)
            default = node.args[0] if node.args else inspect.Parameter.empty
            parameters.append(inspect.Parameter(name, kind, default=default))
    return inspect.Signature(parameters)


def holder(tensor: str) -> str:
    """The module that holds a tensor; the tensor itself, if the model does."""
    return tensor.rpartition(".")[0] or tensor
