"""Types that follow the model's, or its inputs': found by capturing these in another precision, node by node compared.

Code such as ``mask.to(x.dtype)`` hands torch a plain type, which does not say where it comes from. Written into the
graph as it is, it would stay float32 in a model that is cast to bfloat16 later. A type that was written in the code is
the same in all captures: in those of a copy of the model that is cast with its inputs, and, where it takes them, of the
model on inputs that alone are cast. Of values that have a type in all of them it is the one that code asked for last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from fx_oto.capture.sheet import Sheet
from fx_oto.core.context import ExampleInputs
from fx_oto.core.fx_utils import clone_module, tensor_leaves

__all__ = ["Precision", "complex_of", "limit_of", "real_of"]

_OTHERS = {torch.float32: torch.float64, torch.float64: torch.float32}
_OTHERS |= {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_OTHERS |= {torch.complex64: torch.complex128, torch.complex128: torch.complex64, torch.complex32: torch.complex64}
_LIMITS = ("min", "max", "eps", "tiny", "smallest_normal")
_Path = tuple[Any, ...]


def limit_of(dtype: torch.dtype, name: str) -> float:
    """A number of ``torch.finfo``, as a node of a graph."""
    return float(getattr(torch.finfo(dtype), name))


def complex_of(dtype: torch.dtype) -> torch.dtype:
    """The type of numbers whose real and imaginary parts are of a type, as a node of a graph."""
    return dtype.to_complex()


def real_of(dtype: torch.dtype) -> torch.dtype:
    """The type of the real and imaginary parts of numbers of a type, as a node of a graph."""
    return dtype.to_real()


class Precision:
    """The places of types, and of their limits, in the graphs of some runs of one model.

    Args:
        model: the model.
        inputs: what the runs were given.
        runs: one for each mode.
        again: captures another model on other inputs, in the modes of some runs.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: ExampleInputs,
        runs: list[Any],
        again: Callable[[nn.Module, ExampleInputs, list[Any]], list[Any]],
    ) -> None:
        self._found: list[tuple[Sheet, dict[tuple[Node, _Path], _Source]]] = []
        by_kind = sorted(model.parameters(), key=Tensor.is_complex)  # which stay as they are where real ones are cast
        mine = next((one.dtype for one in by_kind if one.dtype in _OTHERS), None)
        if mine is None:
            return
        runs = [run for run in runs if run.types_asked or _names(run.graph, mine)]
        types = {mine: _OTHERS[mine], _OTHERS[mine]: mine}
        types |= {complex_of(one): complex_of(other) for one, other in types.items()}
        others = inputs.mapped(lambda tensor: tensor.to(types.get(tensor.dtype, tensor.dtype)))
        tried: list[list[Any]] = []
        for form in (_without_memory, _with_strides) if any(_names(run.graph, mine) for run in runs) else ():
            with suppress(Exception):  # of whatever kind: that a copy fails says nothing of the model
                tried.append(again(clone_module(model, _once(mine, form)), others, runs))
                break
        is_other = any(one is not other for one, other in zip(*map(_tensors, (inputs, others)), strict=True))
        if is_other and any(run.types_asked for run in runs):
            with suppress(Exception):  # as of a model that does not cast its inputs
                tried.append(again(model, others, runs))
        for number, run in enumerate(runs):
            self._found.append((run, _places(run, [others[number] for others in tried if number < len(others)])))

    def rewrite(self) -> bool:
        """Let the graphs ask for the types; returns whether they do."""
        for run, places in self._found:
            for (node, path), source in places.items():
                with run.graph.inserting_before(node):
                    value = source.value if isinstance(source.value, Node) else run.read(source.value)
                    asked = run.graph.call_function(getattr, (value, "dtype"))
                    asked.meta["val"] = value.meta["val"].dtype
                    for function, *args in source.made_by:
                        asked = _called(run.graph, function, asked, *args)
                node.args, node.kwargs = _put((node.args, dict(node.kwargs)), path, asked)
        return any(places for _, places in self._found)


@dataclass(frozen=True)
class _Source:
    """Whose type is at a place, or what is made of it.

    Attributes:
        value: a node, or a tensor that the model holds.
        made_by: the functions that make it of the type, in order, each with its further arguments.
    """

    value: Node | Tensor
    made_by: tuple[tuple[Any, ...], ...] = ()

    def limited(self, name: str) -> _Source:
        """A limit of the type; without a name, the type itself."""
        return replace(self, made_by=(*self.made_by, (limit_of, name))) if name else self


def _called(graph: Graph, function: Callable[..., Any], dtype: Node, *args: Any) -> Node:
    node = graph.call_function(function, (dtype, *args))
    node.meta["val"], node.meta["is_wrapped"] = function(dtype.meta["val"], *args), True
    return node


def _tensors(inputs: ExampleInputs) -> list[Tensor]:
    return tensor_leaves((inputs.args, inputs.kwargs))


def _once(mine: torch.dtype, form: Callable[[Tensor, torch.dtype], Tensor]) -> Callable[[Tensor], Tensor]:
    """A cast of tensors of a type: as parameters, of which nothing but the form is asked; a shared one once."""
    known: dict[int, Tensor] = {}

    def one(tensor: Tensor) -> Tensor:
        dtype = _OTHERS[mine] if tensor.dtype == mine else tensor.dtype
        if id(tensor) not in known:
            is_parameter = isinstance(tensor, nn.Parameter)
            made = form(tensor.detach(), dtype) if is_parameter else tensor.to(dtype)
            known[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_parameter else made
        return known[id(tensor)]

    return one


def _without_memory(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.new_empty((), dtype=dtype).expand(tensor.shape)


def _with_strides(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Of which ``view_as_complex``, and whatever else depends on strides, can be called."""
    return torch.empty_like(tensor, dtype=dtype)


def _names(graph: Graph, mine: torch.dtype) -> bool:
    """Whether a graph spells the type, that of its complex numbers or of their parts, or one of its limits."""
    spelled = {mine, complex_of(mine), real_of(mine), *(limit_of(mine, name) for name in _LIMITS)}
    leaves = (leaf for node in graph.nodes for leaf in tree_leaves((node.args, dict(node.kwargs))))
    return any(isinstance(leaf, torch.dtype | float) and leaf in spelled for leaf in leaves)


def _places(mine: Sheet, others: list[Sheet]) -> dict[tuple[Node, _Path], _Source]:
    """Where other captures have another type or limit, and whose it is: that of what has those types in all of them.

    Of such values it is the one that code has asked for its type last, else one that the node reads, else the nearest
    before it.
    """
    differing = [(other, found) for other in others if (found := _differing(mine.graph, other.graph)) is not None]
    others = [other for other, _ in differing]
    types: dict[Node, dict[_Path, list[Any]]] = defaultdict(dict)
    limits: dict[tuple[Node, _Path], str] = {}
    for number, (_, found) in enumerate(differing):
        for (node, path), (one, other, limit) in found.items():
            types[node].setdefault(path, [one] * (1 + len(others)))[1 + number] = other
            limits[node, path] = limit
    values = dict(zip(mine.graph.nodes, zip(*(run.graph.nodes for run in (mine, *others)), strict=True), strict=True))
    asked = _asked(mine, others)
    places = {}
    latest: dict[Any, Node] = {}  # the nearest value before a node, by its types
    for node in mine.graph.nodes:
        if node in types:
            own = {_types_of(values[read]): read for read in reversed(node.all_input_nodes)}
            known = latest | own | dict(asked[: mine.types_asked_before.get(node, 0)])
            for path, wanted in types[node].items():
                if (source := _source(tuple(wanted), known)) is not None:
                    places[node, path] = source.limited(limits[node, path])
        latest[_types_of(values[node])] = node
    return places


def _source(wanted: tuple[torch.dtype, ...], known: Mapping[Any, Node | Tensor]) -> _Source | None:
    """What has these types, or those of its complex numbers or of their parts; None if nothing has."""
    if wanted in known:
        return _Source(known[wanted])
    for function, is_of in ((complex_of, _is_real), (real_of, _is_complex)):
        for types, value in known.items():
            if types and all(map(is_of, types)) and tuple(map(function, types)) == wanted:
                return _Source(value, ((function,),))
    return None


def _is_real(dtype: torch.dtype | None) -> bool:
    return dtype is not None and dtype.is_floating_point


def _is_complex(dtype: torch.dtype | None) -> bool:
    return dtype is not None and dtype.is_complex


def _asked(mine: Sheet, others: list[Sheet]) -> list[tuple[Any, Node | Tensor]]:
    """The values that code asked for their types, with those in all captures, in order."""
    runs = [run.types_asked for run in (mine, *others)]
    if len(set(map(len, runs))) > 1:
        return []
    found = [(tuple(dtype for _, dtype in one), one[0][0]) for one in zip(*runs, strict=True)]
    return [(None if isinstance(value, Node) and value._erased else types, value) for types, value in found]


def _differing(mine: Graph, theirs: Graph) -> dict[tuple[Node, _Path], tuple[torch.dtype, torch.dtype, str]] | None:
    """Where two graphs have other types, or their limits; None if more differs."""
    left, right = list(mine.nodes), list(theirs.nodes)
    twins = dict(zip(left, right, strict=False))
    found = {}
    for node, twin in twins.items():
        if len(left) != len(right) or (node.op, node.target) != (twin.op, twin.target):
            return None
        for path, one, other in _leaves((node.args, dict(node.kwargs)), (twin.args, dict(twin.kwargs)), ()):
            if isinstance(one, Node) and twins.get(one) is other:
                continue
            if (types := _types(one, other)) is not None:
                found[node, path] = types
            elif isinstance(one, Node) or isinstance(other, Node) or (one != other and type(one) is not float):
                return None
    return found


def _types(one: Any, other: Any) -> tuple[torch.dtype, torch.dtype, str] | None:
    """Two types that differ, or those that two numbers are the limits of, and the name of the limit."""
    if isinstance(one, torch.dtype) and isinstance(other, torch.dtype):
        return None if one == other else (one, other, "")
    if not (type(one) is type(other) is float) or one == other:
        return None
    for mine, theirs in _OTHERS.items():
        for name in _LIMITS:
            if (limit_of(mine, name), limit_of(theirs, name)) == (one, other):
                return mine, theirs, name
    return None


def _types_of(nodes: tuple[Node, ...]) -> Any:
    """The type of a node's value in each capture; None of what is no tensor."""
    values = [node.meta.get("val") for node in nodes]
    return tuple(value.dtype if isinstance(value, Tensor) else None for value in values)


def _leaves(one: Any, other: Any, path: _Path) -> Iterator[tuple[_Path, Any, Any]]:
    """What two arguments are made of, side by side; what is of another shape as a whole."""
    if isinstance(one, slice) and isinstance(other, slice):  # holds no type
        one, other = ((part.start, part.stop, part.step) for part in (one, other))
    if type(one) is type(other) and isinstance(one, tuple | list) and len(one) == len(other):
        for i, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _leaves(left, right, (*path, i))
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key, left in one.items():
            yield from _leaves(left, other[key], (*path, key))
    else:
        yield path, one, other


def _put(value: Any, path: _Path, new: Any) -> Any:
    """The same with something else at a place."""
    if not path:
        return new
    first, *rest = path
    if isinstance(value, dict):
        return {**value, first: _put(value[first], tuple(rest), new)}
    parts = [_put(one, tuple(rest), new) if i == first else one for i, one in enumerate(value)]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
