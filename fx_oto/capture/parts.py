"""What a model gives to parts of it: found by running it, in both training modes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from fx_oto.analysis.misfits import misfit
from fx_oto.capture.calls import PLAIN, name_of
from fx_oto.core.context import ExampleInputs
from fx_oto.core.errors import InputError, SettingsError
from fx_oto.core.fx_utils import file_shown, raised_at, tensor_leaves, tensor_names
from fx_oto.core.parts import Handed, PartCall, PartPlan, Setting, in_parts
from fx_oto.core.preserve import Dice, unwritten
from fx_oto.core.warn import warn

__all__ = ["Parts", "parts_of"]

Parts = str | Iterable[str | tuple[str, ...]]
# What code may ask of a tensor that goes from one part to another: its form, not what is in it.
_FORM = PLAIN | {"shape", "size", "__len__", "stride", "dtype", "device"}
_NOT_USERS = (f"{Path(torch.__file__).parent}{os.sep}", __file__)


def parts_of(model: nn.Module, inputs: ExampleInputs, parts: Parts) -> tuple[nn.Module, ExampleInputs]:
    """The model that calls some submodules of another one by one, and its example inputs.

    Args:
        model: the whole model.
        inputs: of the whole model.
        parts: names of submodules; those in a tuple hand tensors to each other that nothing else reads.

    Raises:
        SettingsError: there is no such submodule, or one is inside of another.
        InputError: the model does not run on the inputs, does not call a part, or reads what one hands to another.
    """
    rows = [(row,) if isinstance(row, str) else tuple(row) for row in ((parts,) if isinstance(parts, str) else parts)]
    _check_names(model, [name for row in rows for name in row])
    runs = [run for run in (_watched(model, inputs, rows, training) for training in (False, True)) if run is not None]
    calls: list[PartCall] = []
    given: list[Any] = []
    for row in rows:
        for seen in _different([run.calls[row] for run in runs], row):
            _add(seen, calls, given)
    read = sorted(set[str]().union(*(run.read for run in runs)))
    plan = PartPlan(tuple(calls), tuple(read), inputs, runs[0].settings)
    return in_parts(model, plan), ExampleInputs(tuple(given))


def _check_names(model: nn.Module, names: Sequence[str]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    owners: dict[int, str] = {}
    for name in names:
        if not name or name not in modules:
            known = ", ".join(repr(child) for child, _ in model.named_children())
            raise SettingsError(
                f"there is no submodule {name!r} to be a part; the model has {known}, and those in them"
            )
        for inside in modules[name].modules():
            if id(inside) in owners:
                raise SettingsError(f"the parts {owners[id(inside)]!r} and {name!r} have modules in common: name one")
            owners[id(inside)] = name


@dataclass
class _Call:
    """A call of a part as it was made.

    Attributes:
        name: of the submodule.
        spec: how its arguments are nested.
        leaves: what is in them; of what another part hands over, its place.
        count: how much it returns.
    """

    name: str
    spec: TreeSpec
    leaves: list[Any]
    count: int = 0

    @property
    def form(self) -> tuple[Any, ...]:
        """Two calls of the same form differ in sizes and numbers only."""
        return self.name, self.spec, tuple(map(_form, self.leaves)), self.count

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in a tensor, which shows nothing."""
        return any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in self.leaves)


def _form(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.ndim, leaf.dtype
    return type(leaf) if isinstance(leaf, float) or type(leaf) is int else repr(leaf)


def _different(seen: Sequence[list[_Call]], row: Sequence[str]) -> list[list[_Call]]:
    """Of the calls in each run, those of each form: with elements, where there are any in some run.

    Raises:
        InputError: a part is never called, or never with elements.
    """
    missing = sorted(set(row) - {call.name for calls in seen for call in calls})
    if missing:
        raise InputError(f"the model does not call {missing[0]!r} on the example inputs: give inputs on which it does")
    found: dict[Any, list[_Call]] = {}
    for calls in map(_once, seen):
        form = tuple(call.form for call in calls)
        if form not in found or any(call.is_empty for call in found[form]):
            found[form] = calls
    empty = [call.name for calls in found.values() for call in calls if call.is_empty]
    if empty:
        raise InputError(
            f"on the example inputs, {empty[0]!r} is called on tensors without elements, which shows nothing: give "
            "inputs on which it is not, such as those of training, with targets"
        )
    return [calls for calls in found.values() if calls]


def _once(calls: Sequence[_Call]) -> list[_Call]:
    """Calls without those that are of the form of another, where no tensors go from one to another."""
    if any(isinstance(leaf, Handed) for call in calls for leaf in call.leaves):
        return list(calls)
    kept: dict[Any, _Call] = {}
    for call in calls:
        if call.form not in kept or kept[call.form].is_empty:
            kept[call.form] = call
    return list(kept.values())


def _add(calls: Sequence[_Call], plan: list[PartCall], given: list[Any]) -> None:
    first = len(plan)
    for call in calls:
        leaves: list[int | Handed] = []
        for leaf in call.leaves:
            if isinstance(leaf, Handed):
                leaves.append(Handed(first + leaf.call, leaf.leaf))
            else:
                leaves.append(len(given))
                given.append(leaf)
        plan.append(PartCall(call.name, call.spec, tuple(leaves)))


def _watched(model: nn.Module, inputs: ExampleInputs, rows: Sequence[tuple[str, ...]], training: bool) -> _Watch | None:
    """What was seen in one mode; None if the model does not run in training, such as for want of targets."""
    watch, dice, given = _Watch(model, rows), Dice(), inputs.copied()
    try:
        with unwritten(model, training), torch.enable_grad(), watch.hooked(), watch:  # code may compute derivatives
            outputs = model(*given.args, **given.kwargs)
            watch.settings = tuple(watch.set_now())
    except Exception as error:
        at = f" at {found}" if (found := raised_at(error)) else ""
        if not training:
            raise misfit(error, at, model, inputs) from error
        warn(
            f"{type(model).__name__} does not run in training mode on the example inputs ({error}{at}), so nothing is "
            "known of what it gives to its parts there: give inputs on which it does, such as with targets"
        )
        return None
    finally:
        dice.put_back()
    watch.check_unread(outputs)
    return watch


class _Watch(TorchFunctionMode):
    """Sees the calls of parts, and what code outside of them reads.

    Args:
        model: the whole model.
        rows: names of parts; those of a row hand tensors to each other.

    Attributes:
        calls: of the parts of each row, in order.
        read: the tensors of parts that code outside of them reads.
        settings: see ``PartPlan``.
    """

    def __init__(self, model: nn.Module, rows: Sequence[tuple[str, ...]]) -> None:
        super().__init__()
        self.calls: dict[tuple[str, ...], list[_Call]] = {row: [] for row in rows}
        self.read: set[str] = set()
        self._row = {name: row for row in rows for name in row}
        self._parts = {name: model.get_submodule(name) for name in self._row}
        self._unset = list(_unset(self._parts))
        self.settings: tuple[Setting, ...] = ()
        inside = [f"{name}." for name in self._parts]
        named = tensor_names(model).items()
        self._held = {id(tensor): name for name, tensor in named if name.startswith(tuple(inside))}
        self._open: list[_Call] = []
        self._returned: dict[int, tuple[_Call, Handed]] = {}
        self._seen: dict[int, str] = {}
        self._alive: list[Any] = []

    def set_now(self) -> Iterator[Setting]:
        """What is set by now; of modules that keep tensors, which are those of one call, nothing."""
        for path, module, names in self._unset:
            found = [Setting(path, name, vars(module)[name]) for name in names if vars(module).get(name) is not None]
            if not tensor_leaves([one.value for one in found]):
                yield from found

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Let parts tell when they are called, and what they return."""
        handles: list[Any] = []
        try:
            for name, part in self._parts.items():
                enter = partial(self._enter, name)
                handles.append(part.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
                handles.append(part.register_forward_hook(self._leave, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        leaves, spec = tree_flatten((args, kwargs))
        self._open.append(_Call(name, spec, [self._given(name, leaf) for leaf in leaves]))

    def _given(self, name: str, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        call, place = self._returned.get(id(leaf), (None, None))
        if call is not None and self._row[name] == self._row[call.name]:
            return place
        self._note(leaf, f"given to {name!r}")
        return leaf.detach().clone()

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        call = self._open.pop()
        returned, row = tree_leaves(result), self._row[call.name]
        call.count = len(returned)
        for leaf, tensor in enumerate(returned):
            if isinstance(tensor, Tensor) and len(row) > 1:
                self._returned[id(tensor)] = call, Handed(len(self.calls[row]), leaf)
        self.calls[row].append(call)
        self._alive.append(result)  # so that no other tensor gets its id

    def _note(self, tensor: Tensor, how: str) -> None:
        """Remember that a tensor is read outside of the parts."""
        if id(tensor) in self._held:
            self.read.add(self._held[id(tensor)])
        if id(tensor) in self._returned:
            self._seen.setdefault(id(tensor), how)

    def check_unread(self, outputs: Any) -> None:
        """What parts hand to each other must go nowhere else.

        Raises:
            InputError: something does.
        """
        for tensor in tensor_leaves(outputs):
            self._note(tensor, "an output of the model")
        passed_on = {(row, leaf) for row, calls in self.calls.items() for call in calls for leaf in call.leaves}
        for key, how in self._seen.items():
            call, place = self._returned[key]
            if (self._row[call.name], place) in passed_on:
                raise InputError(
                    f"a tensor that {call.name!r} hands to another part of {self._row[call.name]} is {how} as well, so "
                    "that it must stay whole: name these parts one by one, not in a tuple"
                )

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._open and name_of(func) not in _FORM:
            for leaf in tensor_leaves((args, kwargs or {})):
                self._note(leaf, f"read{_line()}")
        return func(*args, **(kwargs or {}))


def _unset(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """The modules in some parts, by their path, and those of their attributes that are None."""
    for part, root in parts.items():
        for path, module in root.named_modules(prefix=part):
            yield path, module, [name for name, value in vars(module).items() if value is None]


def _line() -> str:
    """Where the user's code is."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_USERS):
        frame = frame.f_back
    return "" if frame is None else f" at {file_shown(frame.f_code.co_filename)}:{frame.f_lineno}"
