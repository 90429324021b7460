"""A module's ``forward`` as the compact graph has it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from fx_oto.core.errors import InputError

__all__ = ["GraphForward", "check_given", "check_sizes", "signature_of"]


class GraphForward:
    """A module's ``forward`` as the compact graph has it: it uses the module's own parameters and layers.

    Copied and pickled with the module.

    Args:
        owner: the module.
        source: the code, a function called ``forward``.
        names: what the code calls by name.
    """

    owner: nn.Module

    def __init__(self, owner: nn.Module, source: str, names: dict[str, Any]) -> None:
        modules = {name: value.__name__ for name, value in names.items() if isinstance(value, ModuleType)}
        functions = {name: value for name, value in names.items() if name not in modules}
        self.__setstate__({"owner": owner, "source": source, "modules": modules, "functions": functions})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        names = {name: import_module(path) for name, path in state["modules"].items()} | state["functions"]
        exec(compile(state["source"], "<compact graph>", "exec"), names)
        self._forward: Callable[..., Any] = names["forward"]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_forward"}

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the ``forward`` that the class has."""
        return signature_of(self.owner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph."""
        return self._forward(self.owner, *args, **kwargs)


def signature_of(module: nn.Module) -> inspect.Signature:
    """What a module's ``forward`` takes, or the one that was put on it in the place of its class's."""
    own = vars(module).get("forward")
    if own is not None and not isinstance(own, GraphForward):
        return inspect.signature(own)
    signature = inspect.signature(type(module).forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def check_given(found: Any, expected: Any, name: str) -> None:
    """Refuse an argument that the graph of a module was not made for.

    Raises:
        InputError: it is another one.
    """
    if type(found) is not type(expected) or found != expected:
        raise InputError(
            f"this module computes what the compact graph says, which was made where {name} was {expected!r}; found "
            f"{found!r}"
        )


def check_sizes(found: Tensor, expected: tuple[int, ...], name: str) -> None:
    """Refuse an argument of other sizes, but for the batch, where the capture had to fix sizes.

    Raises:
        InputError: it has other sizes.
    """
    if tuple(found.shape[1:]) != expected:
        raise InputError(
            f"this module computes what the compact graph says, which was captured where {name} was of sizes "
            f"(batch, {', '.join(map(str, expected))}); found {tuple(found.shape)}"
        )
