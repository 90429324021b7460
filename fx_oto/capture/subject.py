"""What is known of a model before it is run, the same for every run of it."""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn

from fx_oto.capture.caches import namespaces_of
from fx_oto.capture.derivatives import Judged
from fx_oto.capture.whole import is_leaf
from fx_oto.core.overridden import overrides_train

__all__ = ["Subject", "depends_on_mode", "held_by"]


class Subject:
    """A model that is captured.

    Args:
        model: any module.
        put_back: takes back what its code has set on modules.

    Attributes:
        modules: its modules, by name.
        leaves: those that are called as a whole, by ``id``.
        own: of each of these, by ``id``, which tensors it and its children hold.
        tensors: the name of each tensor that they hold, by ``id``.
        namespaces: where its code finds functions.
        not_followed: how it was captured, and in what graph, where nobody could tell what becomes of numbers.
        seen_inside: which ``torch.autograd.Function`` is part of the graph.
        reads_mode: whether its classes read ``training``, be it to compute with, which Python does not tell, or put
            modules into a mode of their own.
        reads_ranks: whether they may ask how many dimensions a tensor has.
        tells_modes_apart: whether they ask what ``training`` is, as in ``training is True``, which only a bool is.
    """

    def __init__(self, model: nn.Module, put_back: Callable[[], None]) -> None:
        self.model, self.put_back = model, put_back
        self.modules = dict(model.named_modules())
        self.own = {id(module): held_by(module) for module in self.modules.values() if is_leaf(module)}
        self.leaves = self.own.keys()
        self.tensors = _names_of_tensors(self.modules)
        self.namespaces = namespaces_of(model)
        self.not_followed: list[Any] = []
        self.seen_inside = Judged()
        found = (value for names in self.namespaces for value in names.values())
        codes = [one for value in found if isinstance(value, FunctionType) for one in _codes(value.__code__)]
        reading = [code for code in codes if "training" in code.co_names]
        sets_modes = overrides_train(model) or any({"train", "eval"} & set(code.co_names) for code in codes)
        self.reads_mode = bool(reading) or sets_modes
        self.reads_ranks = any(map(_may_read_rank, codes))
        self.tells_modes_apart = any(map(_tells_modes_apart, reading))


def held_by(module: nn.Module) -> list[int]:
    """The tensors that a module and its children hold, by ``id``."""
    return [id(tensor) for tensor in (*module.parameters(), *module.buffers())]


def depends_on_mode(module: nn.Module) -> bool:
    """Whether what a layer computes depends on its mode."""
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and _names_mode(code)


@cache
def _names_mode(code: CodeType) -> bool:
    return any("training" in one.co_names for one in _codes(code))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inside in code.co_consts:
        if isinstance(inside, CodeType):
            yield from _codes(inside)


def _may_read_rank(code: CodeType) -> bool:
    names = set(code.co_names)
    return bool(names & {"dim", "ndim", "ndimension"} or ("len" in names and names & {"shape", "size"}))


def _tells_modes_apart(code: CodeType) -> bool:
    """Whether a function compares the mode by identity, or asks for its class."""
    steps = list(dis.get_instructions(code))
    near = [steps[max(i - 3, 0) : i + 4] for i, step in enumerate(steps) if step.argval == "training"]
    return any(step.opname == "IS_OP" or step.argval == "isinstance" for around in near for step in around)


def _names_of_tensors(modules: Mapping[str, nn.Module]) -> dict[int, str]:
    names: dict[int, str] = {}
    for registry in ("_parameters", "_buffers", "__dict__"):
        for path, module in modules.items():
            held: Any = module.__dict__ if registry == "__dict__" else module.__dict__.get(registry)
            for name, value in held.items() if isinstance(held, dict) else ():  # a scripted module has others
                if isinstance(value, Tensor):
                    names.setdefault(id(value), f"{path}.{name}".lstrip("."))
    return names
