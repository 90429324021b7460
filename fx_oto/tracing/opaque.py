"""Parts of a model that are called as a whole, for no front end can capture what they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.fx.proxy import TraceError
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fx_oto.modules import is_torchs

__all__ = ["METHOD", "MethodCall", "Part", "parts_in", "without_parameters"]

METHOD = "_method_"


@dataclass(frozen=True)
class Part:
    """A method of a module: ``forward``, or another one."""

    owner: nn.Module
    method: str

    def name_in(self, model: nn.Module) -> str:
        """``"head"`` for a submodule, ``"head.decode"`` for another method of one."""
        path = next(name for name, module in model.named_modules() if module is self.owner)
        return ".".join(filter(None, (path, "" if self.method == "forward" else self.method)))

    def target_in(self, model: nn.Module) -> str:
        """What the nodes that call it have as their target."""
        name = self.name_in(model)
        return name if self.method == "forward" else METHOD + name.replace(".", "_")


def parts_in(trace: TracebackType | None, model: nn.Module) -> Iterator[Part]:
    """The methods of a model's modules in which an error came up, outermost first, but for the model's ``forward``."""
    modules = {id(module) for module in model.modules() if not isinstance(module, MethodCall)}
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        owner, name = frame.f_locals.get("self"), frame.f_code.co_name
        if id(owner) in modules and (owner is not model or name != "forward"):
            method = getattr(type(owner), name, None)
            if getattr(method, "__code__", None) is frame.f_code and not is_torchs(method):
                yield Part(owner, name)  # type: ignore[arg-type]


class MethodCall(nn.Module):
    """Calls a method of a module that does not become part of the graph's modules: it must not use parameters."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self._part = (part.owner, part.method)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the method returns."""
        owner, method = self._part
        return getattr(type(owner), method)(owner, *args, **kwargs)


@contextmanager
def without_parameters(model: nn.Module) -> Iterator[None]:
    """Refuse ops on a model's parameters and buffers."""
    held = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(isinstance(leaf, Tensor) and id(leaf) in held for leaf in tree_leaves((args, kwargs))):
                raise TraceError("a method that would be called as a whole uses parameters of the model")
            return func(*args, **(kwargs or {}))

    with Watch():
        yield
