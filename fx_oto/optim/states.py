"""The state of a group-sparse optimizer inside of its base's: how they are joined, parted and checked."""

from __future__ import annotations

from typing import Any

from fx_oto.core.errors import SettingsError

__all__ = ["check_own", "joined", "parted"]

_KEY = "zigs"


def joined(state: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The state of the base, with ``own`` in its first param group under ``"zigs"``."""
    first, *others = state["param_groups"]
    return {**state, "param_groups": [{**first, _KEY: own}, *others]}


def parted(state: dict[str, Any], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The base's state alone, and what ``joined`` has put into it.

    Raises:
        SettingsError: there is nothing, so that it was not saved by an optimizer of this ``kind``.
    """
    first, *others = state.get("param_groups") or [{}]
    if _KEY not in first:
        raise SettingsError(
            f"this state was not saved by {kind}: the key {_KEY!r} is missing in its first param group. To begin with "
            "the state of a base optimizer alone, load that into the base"
        )
    groups = [{key: value for key, value in first.items() if key != _KEY}, *others]
    return {**state, "param_groups": groups}, first[_KEY]


def check_own(own: dict[str, Any], settings: dict[str, Any], families: int) -> None:
    """A state that is taken up must be that of such an optimizer with these settings, and of this model."""
    if len(own["phases"]) != families:
        raise SettingsError(
            f"this state has {len(own['phases'])} families, the model has {families}: it is another model's"
        )
    if own["settings"] != settings:
        raise SettingsError(
            f"this state was saved by an optimizer with {own['settings']}, this one has {settings}: to resume, build "
            "it with the same target and the same steps"
        )
