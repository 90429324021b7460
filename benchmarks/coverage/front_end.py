"""Whether the compact network is still made of the model's modules, and whether a kernel's taps became groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from networks import Call
from running import run
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

import fx_oto

__all__ = ["Called", "front_end", "kernel_taps"]

KINDS = (nn.Linear, nn.Embedding, nn.LayerNorm, _ConvNd)  # what hooks, quantisation and adapters look for


class _Kernels(TorchDispatchMode):
    """Where the weights of convolutions lie, also of those that are written as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.convolution:
            self.places.add(args[1].data_ptr())
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Called:
    """What one run of a model meets.

    Attributes:
        modules: torch's own layers of some kinds that it calls, each by all of its names.
        kernels: where the weights of its convolutions lie in memory.
    """

    modules: tuple[frozenset[str], ...]
    kernels: frozenset[int]

    @classmethod
    def by(cls, model: nn.Module, call: Call) -> Called:
        called: dict[nn.Module, set[str]] = {}
        layers = [module for module in model.modules() if isinstance(module, KINDS) and _is_torchs(module)]
        handles = [one.register_forward_hook(lambda module, *_: called.update({module: set()})) for one in layers]
        try:
            with _Kernels() as kernels:
                run(model, call)
        finally:
            for handle in handles:
                handle.remove()
        for name, module in model.named_modules(remove_duplicate=False):
            if module in called:
                called[module].add(name)
        convolutions = [module for module in model.modules() if isinstance(module, _ConvNd)]
        own = {parameter.data_ptr() for module in convolutions for parameter in module.parameters()}
        return cls(tuple(map(frozenset, called.values())), frozenset(kernels.places | own))


def _is_torchs(module: nn.Module) -> bool:
    """Not one with a ``forward`` of its own, which is captured as the operations that it is made of."""
    return type(module).__module__.startswith("torch.nn.modules")


def front_end(small: nn.Module, called: Called) -> dict[str, Any]:
    """``front_end``: "modules", "partly opaque", or "GraphModule" if layers that the model calls became operations.

    It is "parts" of a model in which its parts were written back.
    """
    if not isinstance(small, GraphModule):
        return _written_back(small, called)
    targets = {str(node.target) for node in small.graph.nodes if node.op == "call_module"}
    kept = sum(bool(names & targets) for names in called.modules)
    opaque = fx_oto.Context.of(small).capture.opaque
    kind = "modules" if kept == len(called.modules) else "GraphModule"
    found = {"front_end": "partly opaque" if opaque else kind, "modules": f"{kept} of {len(called.modules)}"}
    return found | ({"opaque": list(opaque)} if opaque else {})


def _written_back(whole: nn.Module, called: Called) -> dict[str, Any]:
    layers = {name for name, module in whole.named_modules(remove_duplicate=False) if isinstance(module, KINDS)}
    kept = sum(bool(names & layers) for names in called.modules)
    are_modules = kept == len(called.modules) and not fx_oto.WriteBack.of(whole).graphs
    return {"front_end": "parts" if are_modules else "GraphModule", "modules": f"{kept} of {len(called.modules)}"}


def kernel_taps(partition: fx_oto.Partition, called: Called) -> list[str]:
    """Axes of convolution weights along which the kernel slides, if any is part of a family: none must be."""
    assert partition.module is not None
    tensors: dict[str, Tensor] = dict(partition.module.named_parameters(remove_duplicate=False))
    slots = {
        (slot.tensor, slot.dim) for family in partition.families for slot in family.slots if slot.tensor in tensors
    }
    taps = [(name, dim) for name, dim in slots if dim >= 2 and tensors[name].data_ptr() in called.kernels]
    return [f"{name}[{dim}]" for name, dim in sorted(taps)]
