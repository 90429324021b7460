"""The state of a group-sparse optimizer inside of its base's: how they are joined, parted, checked and hooked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch.optim import Optimizer

from fx_oto.core.errors import FileError, SettingsError
from fx_oto.core.tables import counted

__all__ = [
    "OnlyCopied",
    "call_after_loading",
    "call_before_saving",
    "called_after_saving",
    "called_before_loading",
    "check_own",
    "copied",
    "joined",
    "parted",
]

_KEY = "zigs"


def joined(state: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The state of the base, with ``own`` in its first param group under ``"zigs"``."""
    first, *others = state["param_groups"]
    return {**state, "param_groups": [{**first, _KEY: own}, *others]}


def parted(state: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The base's state alone, and what ``joined`` has put into it.

    Raises:
        SettingsError: it is no state, or there is nothing, so that it was not saved by an optimizer of this ``kind``.
    """
    if not isinstance(state, Mapping):
        found = type(state).__name__
        raise SettingsError(f"load_state_dict expects what state_dict() of {kind} returns, found {found}")
    first, *others = state.get("param_groups") or [{}]
    if _KEY not in first:
        raise SettingsError(
            f"this state was not saved by {kind}: the key {_KEY!r} is missing in its first param group. To begin with "
            "the state of a base optimizer alone, load that into the base"
        )
    groups = [{key: value for key, value in first.items() if key != _KEY}, *others]
    return {**state, "param_groups": groups}, first[_KEY]


def check_own(own: dict[str, Any], settings: dict[str, str], families: Sequence[int]) -> None:
    """A state that is taken up must be that of such an optimizer with these settings, and of this model.

    Args:
        own: what ``joined`` was given.
        settings: those of the optimizer, by name, as they are said.
        families: how many ZIGs each of the model's families has.
    """
    found = [len(phase) for phase in own["phases"]]
    if len(found) != len(families):
        raise SettingsError(
            f"this state has {counted(len(found), 'family', 'families')}, the model has {len(families)}: it is another "
            "model's"
        )
    for number, (one, mine) in enumerate(zip(found, families, strict=True)):
        if one != mine:
            raise SettingsError(
                f"this state has {counted(one, 'ZIG', 'ZIGs')} in family {number}, the model has {mine}: it is another "
                "model's"
            )
    differ = [name for name in settings if own["settings"].get(name) != settings[name]]
    if differ:
        theirs = ", ".join(own["settings"].get(name, f"no {name}") for name in differ)
        ours = ", ".join(settings[name] for name in differ)
        raise SettingsError(
            f"this state was saved by an optimizer with {theirs}, this one has {ours}: to resume, build it with the "
            "same target, steps, limits and stride"
        )


def copied(optimizer: Optimizer) -> dict[str, Any]:
    """The attributes that a copy is made from.

    A schedule puts a function in the place of ``step``, which would take the steps of the original.
    """
    kind = type(optimizer)
    own = {name: value for name, value in vars(optimizer).items() if not callable(getattr(kind, name, None))}
    return {"_copied": OnlyCopied(kind.__name__), **own}


@dataclass(frozen=True)
class OnlyCopied:
    """Part of what ``copy`` makes a copy of an optimizer from, which tells ``pickle`` what to do instead.

    Attributes:
        kind: name of the optimizer's class.
    """

    kind: str

    def __deepcopy__(self, memo: dict[int, Any]) -> OnlyCopied:
        return self

    def __reduce__(self) -> NoReturn:
        raise FileError(
            f"{self.kind} cannot be pickled, nor saved by torch.save, since it belongs to a prepared model in memory: "
            "save optimizer.state_dict() and model.state_dict(); to resume, load them into a model that is prepared "
            "anew and an optimizer with the same arguments. In memory, copy.deepcopy((model, gm, optimizer)) copies "
            "them together"
        )


# The hooks of a torch optimizer, which it calls in methods that ours has of its own.


def call_before_saving(optimizer: Optimizer) -> None:
    """Call the hooks of ``register_state_dict_pre_hook``."""
    for hook in optimizer._optimizer_state_dict_pre_hooks.values():
        hook(optimizer)


def called_after_saving(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state that the hooks of ``register_state_dict_post_hook`` make of a state."""
    for hook in optimizer._optimizer_state_dict_post_hooks.values():
        state = hook(optimizer, state) or state
    return state


def called_before_loading(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state that the hooks of ``register_load_state_dict_pre_hook`` make of a state."""
    for hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        state = hook(optimizer, state) or state
    return state


def call_after_loading(optimizer: Optimizer) -> None:
    """Call the hooks of ``register_load_state_dict_post_hook``."""
    for hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        hook(optimizer)
