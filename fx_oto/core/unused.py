"""Parameters of a model that its graph does not use: they are trained with the others, and never cut."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.graph_module import _assign_attr

from fx_oto.core.errors import InputError
from fx_oto.core.warn import warn

__all__ = ["may_read", "names_of", "parameters_of_graph", "with_parameters"]


def parameters_of_graph(gm: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a graph computes with, as ``named_parameters`` does; all of what is no GraphModule."""
    if not isinstance(gm, GraphModule):
        return dict(gm.named_parameters())
    read = {str(node.target) for node in gm.graph.nodes if node.op in ("get_attr", "call_module")}
    first: dict[nn.Parameter, str] = {}
    held: set[nn.Parameter] = set()
    for name, one in gm.named_parameters(remove_duplicate=False):
        first.setdefault(one, name)
        if one not in held and not read.isdisjoint(_paths(name)):
            held.add(one)
    return {name: one for one, name in first.items() if one in held}


def _paths(name: str) -> Iterable[str]:
    """``a.b.c`` and what it lies in, ``a`` and ``a.b``."""
    return accumulate(name.split("."), lambda path, step: f"{path}.{step}")


def with_parameters(gm: GraphModule, model: nn.Module, names: Collection[str]) -> GraphModule:
    """Let a graph hold parameters of the model that it does not use: what else the user computes may train them."""
    parameters = dict(model.named_parameters())
    held = {id(one) for one in gm.parameters()}
    names = [name for name in names if name in parameters and id(parameters[name]) not in held]
    first = {name: name.partition(".")[0] for name in names}
    taken = [name for name in names if first[name] not in gm._modules and hasattr(gm, first[name])]
    if taken:
        warn(
            f"graphs have an attribute of their own that is called as {names_of(taken)} of the model, which forward "
            "does not use: to train that as well, make the base optimizer over model.parameters()"
        )
    for name in names:
        if name not in taken:
            _make_places(gm, name)
            _assign_attr(parameters[name], gm, name)
    return gm


class Beside(nn.Module):
    """What a graph has in the place of a submodule of the model that it does not use: its parameters."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, *_: Any, **__: Any) -> None:
        """There is nothing to run.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{self.path!r} is not part of the graph, for forward did not use it on the example inputs; its parameters "
            f"are those of the model: call the model's own, model.{self.path}(…)"
        )


def _make_places(gm: nn.Module, name: str) -> None:
    """Make the modules in which a parameter lies, where there are none."""
    at = gm
    for path in list(_paths(name))[:-1]:
        step = path.rpartition(".")[2]
        if step not in at._modules:
            at.add_module(step, Beside(path))
        at = at.get_submodule(step)


def may_read(parameters: Mapping[str, Tensor], sizes: Collection[int]) -> dict[str, Tensor]:
    """Those that may be combined with values of which axes of these ``sizes`` are cut.

    A matrix may take several values at once, side by side; a number, or a row of another length, takes none.
    """
    return {name: one for name, one in parameters.items() if one.numel() > 1 and (one.ndim > 1 or one.size(0) in sizes)}


def names_of(tensors: Collection[str]) -> str:
    """The first of some names, for a text."""
    more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
    return ", ".join(map(repr, list(tensors)[:3])) + more
