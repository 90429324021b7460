"""Parts of a model, as a model of their own: each is called on what the whole model gave it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

__all__ = [
    "Handed",
    "PartCall",
    "PartPlan",
    "Setting",
    "in_parts",
    "plan_of",
    "reference_to",
    "settled",
    "whole_again",
]

_PLAN, _WHOLE = "_fx_oto_plan", "_fx_oto_whole"


@dataclass(frozen=True)
class Handed:
    """A tensor that one part of a model hands to another.

    Attributes:
        call: the number of the call that returns it.
        leaf: its place among what that returns.
    """

    call: int
    leaf: int


@dataclass(frozen=True)
class PartCall:
    """A call of a part.

    Attributes:
        name: of the submodule.
        spec: how its arguments are nested.
        leaves: what is in them: the number of an input, or what another part hands over.
    """

    name: str
    spec: TreeSpec
    leaves: tuple[int | Handed, ...]


@dataclass(frozen=True)
class Setting:
    """What the first call of a model has set on a module, where nothing was.

    Attributes:
        module: its path.
        name: of the attribute.
        value: what it is.
    """

    module: str
    name: str
    value: Any


@dataclass(frozen=True)
class PartPlan:
    """What is done in the place of a whole model.

    Attributes:
        calls: of its parts, in order.
        read: names of the parts' tensors that other code of the model reads as well: they must stay as they are.
        example: the example inputs of the whole model.
        settings: what its first call has set on the modules of parts.
    """

    calls: tuple[PartCall, ...]
    read: tuple[str, ...] = ()
    example: Any = field(default=None, repr=False, compare=False)
    settings: tuple[Setting, ...] = field(default=(), repr=False, compare=False)

    @property
    def hands_over(self) -> bool:
        """Whether parts hand to each other what may become smaller."""
        return any(isinstance(leaf, Handed) for call in self.calls for leaf in call.leaves)

    def __deepcopy__(self, memo: dict[int, Any]) -> PartPlan:
        """Share it with copies of a model, as it never changes."""
        return self


class _InParts:
    """Mixed into a model's class: its ``forward`` calls the parts one by one."""

    get_submodule: Callable[[str], nn.Module]

    def forward(self, *given: Any) -> list[Tensor]:
        """What the parts return, but for what they hand to each other; then the tensors that other code reads."""
        plan: PartPlan = vars(self)[_PLAN]
        passed_on = {leaf for call in plan.calls for leaf in call.leaves}
        made: list[list[Any]] = []
        for call in plan.calls:
            leaves = [made[one.call][one.leaf] if isinstance(one, Handed) else given[one] for one in call.leaves]
            args, kwargs = tree_unflatten(leaves, call.spec)
            made.append(tree_leaves(self.get_submodule(call.name)(*args, **kwargs)))
        places = ((leaf, Handed(*place)) for place, leaf in _numbered(made))
        returned = [leaf for leaf, place in places if isinstance(leaf, Tensor) and place not in passed_on]
        return [*returned, *map(self._held, plan.read)]

    def _held(self, name: str) -> Tensor:
        path, _, own = name.rpartition(".")
        tensor: Tensor = getattr(self.get_submodule(path), own)
        return tensor


def _numbered(made: Sequence[Sequence[Any]]) -> list[tuple[tuple[int, int], Any]]:
    return [((call, number), leaf) for call, leaves in enumerate(made) for number, leaf in enumerate(leaves)]


@cache
def _kind_of(kind: Any) -> Any:
    return type(kind.__name__, (_InParts, kind), {"__module__": __name__})


def in_parts(model: nn.Module, plan: PartPlan) -> nn.Module:
    """A model that holds the very modules and tensors of another, and calls parts of it one by one."""
    kind: Any = _kind_of(type(model))  # type: ignore[arg-type] # classes can be hashed
    twin: nn.Module = kind.__new__(kind)
    twin.__dict__.update(vars(model) | {name: vars(nn.Module())[name] for name in _hooks()})
    twin.__dict__.pop("forward", None)
    twin.__dict__[_PLAN], twin.__dict__[_WHOLE] = plan, weakref.ref(model)
    return twin


def _hooks() -> list[str]:
    """The registries of what is run with the model's own ``forward``, and not with that of its parts."""
    return [name for name in vars(nn.Module()) if name.startswith("_forward_")]


def whole_again(twin: nn.Module, model: nn.Module) -> nn.Module:
    """What ``in_parts`` made of a model, or a copy of that, in place, with the class and the hooks of the model."""
    del twin.__dict__[_PLAN], twin.__dict__[_WHOLE]
    twin.__class__ = type(model)
    own = {name: vars(model)[name] for name in ("forward", *_hooks()) if name in vars(model)}
    twin.__dict__.update(copy.deepcopy(own, {id(model): twin}))
    return twin


def plan_of(model: nn.Module) -> PartPlan | None:
    """The plan by which a model calls its parts; None of others."""
    plan: PartPlan | None = vars(model).get(_PLAN)
    return plan


@contextmanager
def settled(model: nn.Module) -> Iterator[None]:
    """Let the modules of parts be as they are after the first call of the whole model, in this block.

    torchvision's ``MultiScaleRoIAlign`` finds out in its first call at which scales it gets images, and keeps them.
    """
    plan = plan_of(model)
    settings = () if plan is None else plan.settings
    found = [(vars(model.get_submodule(one.module)), one) for one in settings]
    unset = [(held, one) for held, one in found if held.get(one.name) is None]
    try:
        for held, one in unset:
            held[one.name] = one.value
        yield
    finally:
        for held, one in unset:
            held[one.name] = None


def reference_to(model: nn.Module) -> Callable[[], nn.Module | None]:
    """A weak reference to a model; the parts of one are made anew as long as there is that model."""
    plan, whole = plan_of(model), vars(model).get(_WHOLE)
    if plan is None or whole is None:
        return weakref.ref(model)

    def made() -> nn.Module | None:
        found = whole()
        return None if found is None else in_parts(found, plan)

    return made
