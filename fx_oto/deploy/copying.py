"""A copy of the user's model over the tensors of the compact graph, in which torch's layers have the sizes of these."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import CellType, FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fx_oto.core.context import Context
from fx_oto.core.errors import InputError
from fx_oto.core.fx_utils import clone_module, deep_copy, tensor_leaves
from fx_oto.core.parameters import parameter_like
from fx_oto.nn.attention import FewerHeads
from fx_oto.nn.norms import GroupNormOver, LayerNormOver, RMSNormOver
from fx_oto.passes.drop_branches import DroppedBranches

__all__ = ["HALF", "add_constant", "all_tensors", "compact_copy", "copied_over", "leave_out", "rescale", "widened"]

_Module = TypeVar("_Module", bound=nn.Module)
_OURS = (LayerNormOver, GroupNormOver, RMSNormOver, FewerHeads)
_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)
HALF = (torch.float16, torch.bfloat16)
_PLAIN = (int, float, bool, str, tuple, type(None))


def all_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that modules hold, under each of its names: parameters, buffers, and others."""
    for path, held in module.named_modules(remove_duplicate=False):
        for registry in (held._parameters, held._buffers, vars(held)):
            for name, value in registry.items():
                if isinstance(value, Tensor):
                    yield f"{path}.{name}".lstrip("."), value


def copied_over(model: nn.Module, tensors: dict[int, Tensor]) -> nn.Module:
    """A deep copy in which tensors are replaced by others, given by ``id``.

    Raises:
        InputError: the model holds what cannot be copied.
    """
    memo: dict[int, Any] = {**_left_by_calls(model), **tensors}
    try:
        new = deep_copy(model, memo)
    except Exception as error:
        raise InputError(
            f"write_back returns a copy of the model, but copy.deepcopy({type(model).__name__}) fails "
            f"({type(error).__name__}: {error}): take off the model what cannot be copied"
        ) from error
    for module in new.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            hooks.update((key, _closed_over(hook, memo)) for key, hook in hooks.items())
    return new


def _left_by_calls(model: nn.Module) -> dict[int, Tensor]:
    """Tensors with a history in the containers of modules, as of features that hooks collect, without it, by ``id``."""
    held = [
        value for module in model.modules() for value in vars(module).values() if type(value) in (dict, list, tuple)
    ]
    return {id(one): one.detach() for one in tensor_leaves(held) if not one.is_leaf}


def _closed_over(hook: Any, memo: Mapping[int, Any]) -> Any:
    """A hook that is a function in a function, which speaks of the copies in the place of what was copied."""
    if not isinstance(hook, FunctionType) or not hook.__closure__:
        return hook
    cells = [CellType(memo.get(id(cell.cell_contents), cell.cell_contents)) for cell in hook.__closure__]
    new = FunctionType(hook.__code__, hook.__globals__, hook.__name__, hook.__defaults__, tuple(cells))
    new.__kwdefaults__, new.__dict__ = hook.__kwdefaults__, dict(hook.__dict__)
    return new


def widened(module: _Module) -> _Module:
    """A module in place, with its half-precision tensors in float32, in which small differences show."""
    module._apply(lambda tensor: tensor.float() if tensor.dtype in HALF else tensor)  # type: ignore[no-untyped-call]
    return module


def compact_copy(model: nn.Module, small: GraphModule) -> nn.Module:
    """The user's model with copies of the compact graph's tensors, and with its layers' sizes.

    What the graph does not use stays as it is. Norms over cut channels, and attention over fewer heads, are those of
    the compact graph.
    """
    compact = dict(all_tensors(small))
    mine: dict[int, Tensor] = {}
    for name, tensor in all_tensors(model):
        if name in compact and isinstance(compact[name], nn.Parameter) == isinstance(tensor, nn.Parameter):
            mine[id(tensor)] = _copied(compact[name], tensor)
    for _, tensor in all_tensors(model):
        if id(tensor) not in mine:
            mine[id(tensor)] = _copied(tensor, tensor)
    result = copied_over(model, mine)
    places = {id(compact[name]): mine[id(tensor)] for name, tensor in all_tensors(model) if name in compact}
    _resize(result, small, places)
    for module in result.modules():
        if isinstance(module, nn.TransformerEncoder):  # which hands its layers nested tensors else; the graph does not
            module.use_nested_tensor = False
    return result


def _copied(content: Tensor, like: Tensor) -> Tensor:
    data = content.detach().clone()
    return parameter_like(data, like) if isinstance(like, nn.Parameter) else data


def _resize(model: nn.Module, small: GraphModule, tensors: dict[int, Tensor]) -> None:
    leaves = dict(small.named_modules(remove_duplicate=False))
    told = {str(node.target) for node in small.graph.nodes if node.op == "call_module" and len(node.args) > 1}
    put: dict[int, nn.Module] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        leaf = leaves.get(path)
        if leaf is not None and type(leaf) is type(module):
            _adopt(module, leaf)
        elif isinstance(leaf, _OURS):
            if id(leaf) not in put:
                scaled = None if path in told else _scaled(module, leaf, model)
                put[id(leaf)] = scaled or _ours(module, leaf, tensors)
            model.set_submodule(path, put[id(leaf)])
        else:
            _follow(module)


def _adopt(module: nn.Module, leaf: nn.Module) -> None:
    """Take a layer's attributes over."""
    for name, value in vars(leaf).items():
        if name != "training" and type(value) in _PLAIN and vars(module).get(name, value) != value:
            module.__dict__[name] = value
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def _scaled(module: nn.Module, leaf: nn.Module, model: nn.Module) -> nn.Module | None:
    """An RMS norm of torch's class over what is left; None where it cannot be: see ``scaling``."""
    if isinstance(leaf, RMSNormOver) and isinstance(module, nn.RMSNorm) and isinstance(module.weight, nn.Parameter):
        share = math.prod(module.weight.shape) / math.prod(leaf.shape)
        if rescale(model, module.weight, share, 0.0):
            eps = torch.finfo(module.weight.dtype).eps if leaf.eps is None else leaf.eps
            module.normalized_shape, module.eps = tuple(module.weight.shape), eps / share
            return module
    return None


def _ours(module: nn.Module, leaf: nn.Module, tensors: dict[int, Tensor]) -> nn.Module:
    """What takes a layer's place, with its hooks and its parts."""
    new = clone_module(leaf, lambda tensor: tensors.get(id(tensor), tensor))
    for name in _HOOKS:
        new.__dict__[name] = module.__dict__[name]
    for name in module._modules:
        if name in new._modules:
            _follow(module._modules[name])
            new._modules[name] = module._modules[name]
    return new


def rescale(model: nn.Module, weight: Tensor, share: float, offset: float) -> bool:
    """Let a norm's weight, or the weight plus an offset, take on the root of the share of channels that is left.

    Returns:
        Whether it could be done, as no other module has this weight.
    """
    if len([name for name, tensor in all_tensors(model) if tensor is weight]) != 1:
        return False
    weight.data.copy_((weight.data + offset) * share**-0.5 - offset)
    return True


def _follow(module: Any) -> None:
    """Bring the attributes of one of torch's layers, or of a subclass, in line with its parameters.

    Of layers whose code the user wrote, or whose parameters other code reads, the graph does not say them.
    """
    weight = module._parameters.get("weight")
    if weight is None:
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, _NormBase):
        module.num_features = len(weight)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(weight)
    elif isinstance(module, _ConvNd):
        outputs, inputs = (1, 0) if module.transposed else (0, 1)
        module.out_channels, module.in_channels = weight.shape[outputs], weight.shape[inputs]
        grouped = "in_channels" if not module.transposed else "out_channels"
        setattr(module, grouped, getattr(module, grouped) * module.groups)


def leave_out(model: nn.Module, small: GraphModule, paths: Sequence[str]) -> None:
    """Set to None, in modules that have become graphs, the parameters and buffers of branches that are gone.

    Args:
        model: the copy of the user's model.
        small: the compact graph.
        paths: of the modules that are graphs; elsewhere the user's code goes on reading its own.
    """
    dropped = Context.of(small).results.get(DroppedBranches)
    for name in () if dropped is None else dropped.tensors:
        owner, _, own = name.rpartition(".")
        if any(not path or name.startswith(f"{path}.") for path in paths):
            module = model.get_submodule(owner)
            for registry in (module._parameters, module._buffers):
                if own in registry:
                    registry[own] = None


def add_constant(module: Any, constant: Tensor) -> bool:
    """Add to a layer's output what the channels that are gone contributed to it.

    Returns:
        Whether it could be done, as the layer holds its weight and bias itself.
    """
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or "parametrizations" in module._modules or "bias" not in module._parameters:
        return False
    constant = constant.detach().flatten().to(weight)
    if bias is None:
        module.bias = nn.Parameter(constant.clone(), requires_grad=weight.requires_grad)
    else:
        bias.data.add_(constant)
    return True
