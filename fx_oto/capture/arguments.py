"""What a model is called with: a placeholder for each argument, and what the graph takes from it."""

from __future__ import annotations

import copy
import inspect
import operator
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from fx_oto.analysis.misfits import misfit
from fx_oto.capture.sheet import Sheet
from fx_oto.core.context import ExampleInputs
from fx_oto.core.errors import TraceError
from fx_oto.core.tables import counted

__all__ = [
    "Arguments",
    "annotate",
    "check_length",
    "check_same",
    "content_of",
    "is_given",
    "is_int",
    "is_none",
    "is_so",
    "keys_in_order",
    "length",
    "sorted_keys",
]

_FIXED = (bool, str, type(None))
_STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def length(value: Any) -> int:
    """``len``, as a node of a graph."""
    return len(value)


def is_none(value: Tensor | None) -> bool:
    """Whether an argument is left out, as a node of a graph."""
    return value is None


def is_given(value: Tensor | None) -> bool:
    """Whether an argument is not left out, as a node of a graph."""
    return value is not None


def is_so(value: bool, wanted: bool) -> bool:
    """Whether an argument is true, or false, as wanted; as a node of a graph."""
    return bool(value) == wanted


def is_int(value: Any) -> bool:
    """Whether a number is of type ``int``, as a node of a graph."""
    return isinstance(value, int)


def annotate(graph: Graph) -> None:
    """Say of arguments that have a default what they are: TorchScript takes what has no type for a tensor."""
    for node in graph.nodes:
        default = node.args[0] if node.op == "placeholder" and node.args else inspect.Parameter.empty
        if isinstance(default, bool | int | float | str):
            node.type = type(default)
        elif default is None and any(user.target is is_none for user in node.users):
            node.type = Tensor | None


@dataclass(frozen=True)
class Arguments:
    """The arguments of a model's ``forward`` by name, as the example inputs give them.

    Attributes:
        signature: of ``forward``.
        given: the arguments.
        containers: once they are bound, the name, the containers in it as code gets them, and what is in them.
    """

    signature: inspect.Signature
    given: dict[str, Any]
    containers: list[tuple[str, Any, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, inputs: ExampleInputs) -> Arguments:
        """Bind example inputs to ``forward``.

        Raises:
            InputError: they are numbers where tensors were meant.
            TraceError: they do not match.
        """
        signature = inspect.signature(model.forward)
        try:
            given = signature.bind_partial(*inputs.args, **inputs.kwargs).arguments
        except TypeError as error:
            if inputs.numbers:
                raise misfit(error, "", model, inputs) from error
            raise TraceError(
                f"the example inputs do not match {type(model).__name__}.forward{signature}: {error}"
                f"{_remedy(signature, inputs)}"
            ) from error
        return cls(signature, given)

    def left_out(self) -> Iterator[tuple[str, ExampleInputs]]:
        """Of each argument that is given, and need not be, its name, and the inputs without it."""
        for name, value in self.given.items():
            if value is not None and self.signature.parameters[name].default is None:
                bound = inspect.BoundArguments(self.signature, {**self.given, name: None})
                yield name, ExampleInputs(bound.args, bound.kwargs)

    def bind(self, run: Sheet) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make the placeholders, then what the graph takes from them.

        Returns:
            What the model is called with: fake tensors, and numbers that remember.
        """
        placeholders: dict[str, Node] = {}
        for name, parameter in self.signature.parameters.items():
            has_default = parameter.default is not inspect.Parameter.empty
            if name in self.given or (has_default and isinstance(parameter.default, (*_FIXED, int, float))):
                target = _STARS.get(parameter.kind, "") + name
                default = (parameter.default,) if has_default and _is_plain(parameter.default) else ()
                placeholders[name] = run.create("placeholder", target, default)
        handed: dict[str, Any] = {}
        for name, node in placeholders.items():
            value = self.given.get(name, self.signature.parameters[name].default)
            bound = _Binder(run, name, self.containers).bind(value, node, name in self.given)
            node.meta["val"] = _plain(bound)
            if name in self.given:
                handed[name] = bound
        for name, node in placeholders.items():
            if name not in self.given:
                check_same(run, node, self.signature.parameters[name].default, name)
        annotate(run.graph)
        call = inspect.BoundArguments(self.signature, handed)
        return call.args, call.kwargs


def _is_plain(value: Any) -> bool:
    return isinstance(value, (*_FIXED, int, float))


def _plain(value: Any) -> Any:
    return int(value) if type(value).__name__ == "Int" else float(value) if type(value).__name__ == "Float" else value


def _remedy(signature: inspect.Signature, inputs: ExampleInputs) -> str:
    """How to give a dict that ``forward`` takes as one argument, or several inputs."""
    strange = [name for name in inputs.kwargs if name not in signature.parameters]
    if not strange:
        count = counted(len(inputs.args), "positional argument", "positional arguments")
        return f". Found {count}: give those that the model is called with, which labels of a batch are not"
    named = ", ".join(f"{name!r}: …" for name in inputs.kwargs)
    remedy = f"(((…), {{{named}}}), {{}})" if inputs.args else f"({{{named}}},)"
    return (
        f". A dict, alone or after a tuple, holds arguments by name, and {strange[0]!r} is none; to pass it as an "
        f"argument of its own, give {remedy}"
    )


def check_same(run: Sheet, node: Node, value: Any, name: str) -> None:
    """Let the graph check that a value is what it was, where that can be compared."""
    if value is None:
        same = run.create("call_function", is_none, (node,))
    else:  # torch.jit.trace and TorchScript have no == between a tensor and a bool
        same = run.create("call_function", is_so if isinstance(value, bool) else operator.eq, (node, value))
    same.meta["val"], same.meta["is_wrapped"] = True, same.target is not operator.eq
    text = f"the graph was captured where {name} was {value!r}; trace it on such inputs"
    run.create("call_function", torch._assert, (same, text)).meta["val"] = None


def check_length(run: Sheet, node: Node, count: int, name: str) -> None:
    """Let the graph check that a list or tuple is as long as it was."""
    counted = run.create("call_function", length, (node,))
    counted.meta["val"], counted.meta["is_wrapped"] = count, True
    check_same(run, counted, count, f"the length of {name}")


def _check_keys(run: Sheet, node: Node, keys: list[Any], name: str) -> None:
    found = run.create("call_function", sorted_keys, (node,))
    found.meta["val"], found.meta["is_wrapped"], found.meta["in_order"] = sorted(keys, key=repr), True, keys
    check_same(run, found, sorted(keys, key=repr), f"what is in {name}")


def content_of(container: Any) -> dict[Any, Any]:
    """What is in a list, dictionary, set or object now, by key, number or name."""
    held = {("attribute", name): value for name, value in getattr(container, "__dict__", {}).items()}
    if isinstance(container, dict):
        return held | {("key", key): value for key, value in container.items()}
    if isinstance(container, set):
        return held | {("element", one): one for one in container}
    return held | dict(enumerate(container if isinstance(container, list | deque) else ()))


def keys_in_order(value: Any) -> list[Any]:
    """The keys of a dictionary in its own order, as a node of a graph."""
    return list(value)


def sorted_keys(value: Any) -> list[Any]:
    """The keys of a dictionary in one order, as a node of a graph."""
    return sorted(value, key=repr)


@dataclass(frozen=True)
class _Binder:
    """Takes an argument apart: each tensor and number in it is the value of a node."""

    run: Sheet
    name: str
    containers: list[tuple[str, Any, Any]]

    def bind(self, value: Any, node: Node, given: bool = True) -> Any:
        """The argument as code gets it.

        Args:
            value: the argument.
            node: its node.
            given: whether it was given, and is no default.
        """
        if not given:
            return value
        if isinstance(value, Tensor):
            fake = self.run.fakes.of(value)
            self.run.put(fake, node)
            if value.requires_grad:
                self.run.mark_differentiable(fake)
            return fake
        if isinstance(value, _FIXED):
            check_same(self.run, node, value, self.name)
            return value
        if type(value) in (int, float):
            return self.run.number_given(value, node, self.name)
        made = self._container(value, node)
        if made is not value and not isinstance(made, tuple):
            self.containers.append((self.name, made, content_of(made)))
        return made

    def _container(self, value: Any, node: Node) -> Any:
        if isinstance(value, dict):
            return self._dict(value, node)
        if isinstance(value, set | frozenset):
            return self._set(value, node)
        if isinstance(value, tuple | list | deque) and not isinstance(value, torch.Size):
            return self._sequence(value, node)
        if hasattr(value, "__dict__") and not isinstance(value, type | torch.dtype | nn.Module) and not callable(value):
            made = copy.copy(value)
            for key, one in vars(value).items():
                made.__dict__[key] = self._part(one, node, getattr, key)
            return made
        return value

    def _dict(self, value: dict[Any, Any], node: Node) -> Any:
        _check_keys(self.run, node, list(value), self.name)
        made = {} if type(value) is dict else copy.copy(value)
        for key, one in value.items():
            made[key] = self._part(one, node, operator.getitem, key)
        return made

    def _sequence(self, value: Any, node: Node) -> Any:
        check_length(self.run, node, len(value), self.name)
        parts = [self._part(one, node, operator.getitem, i) for i, one in enumerate(value)]
        if isinstance(value, deque):
            return deque(parts, value.maxlen)
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)

    def _set(self, value: Any, node: Node) -> Any:
        if any(isinstance(one, Tensor) for one in value):
            raise TraceError(f"{self.name} is a set of tensors, in which no graph finds one: give a list")
        if all(map(_is_plain, value)):
            check_same(self.run, node, frozenset(value), self.name)
        return copy.copy(value)

    def _part(self, value: Any, parent: Node, read: Callable[..., Any], key: Any) -> Any:
        node = self.run.create("call_function", read, (parent, key))
        bound = self.bind(value, node)
        node.meta["val"], node.meta["is_number"] = _plain(bound), True
        return bound
