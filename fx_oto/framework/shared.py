"""Guards what a pass shares with the user's model, and must not change."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import GraphModule

from fx_oto.core.errors import PassError
from fx_oto.core.fx_utils import tensor_names

__all__ = ["Shared"]


class Shared:
    """Watches the tensors and modules of a GraphModule while a pass is run on it.

    Args:
        gm: what the pass is given. It has a graph of its own; its modules are the model's.
        stage: name of the pass.
    """

    def __init__(self, gm: GraphModule, stage: str) -> None:
        self._gm, self._stage, self._graph = gm, stage, str(gm.graph)
        self._versions = _versions(gm)
        self._modules = {name: (module, _held(module)) for name, module in gm.named_modules()}

    def __enter__(self) -> None:
        """Do nothing before the pass."""

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Undo what was set on modules, also if the pass has failed.

        Raises:
            PassError: the pass has changed something; names it. What was written into tensors stays.
        """
        changed = [self._put_back(name, *held) for name, held in self._modules.items()]
        if kind is None:
            self._refuse(changed)

    def _refuse(self, changed: list[str]) -> None:
        written = [name for name, version in _versions(self._gm).items() if self._versions.get(name) != version]
        if found := next(filter(None, changed), None):
            raise PassError(
                f"the pass {self._stage!r} set {found!r} on a module that it shares with the user's model; it is put "
                "back. Copy a module before you change it: gm.set_submodule(name, copy.deepcopy(module))"
            )
        if written:
            raise PassError(
                f"the pass {self._stage!r} wrote into {written[0]!r}, which it shares with the user's model; that has "
                "changed the model. Make a new tensor, in a copy of the module (gm.set_submodule)"
            )
        if str(self._gm.graph) != self._graph:
            raise PassError(
                f"the pass {self._stage!r} changed the graph that it was given, which earlier results refer to. An "
                "analysis must only read; a transformation (fx_oto.Pass) is given a copy to change"
            )

    def _put_back(self, name: str, module: nn.Module, before: dict[str, Any]) -> str:
        """Undo what was set on a module; returns the name of the first attribute, if there was one."""
        now = _held(module)
        changed = [
            key for key in before.keys() | now.keys() if not _same(before.get(key, _MISSING), now.get(key, _MISSING))
        ]
        for key in changed:
            if key not in before:
                vars(module).pop(key)
            elif isinstance(before[key], dict):
                vars(module)[key].clear()
                vars(module)[key].update(before[key])
            else:
                vars(module)[key] = before[key]
        return ".".join(filter(None, (name, min(changed)))) if changed else ""


_MISSING = object()
# What a GraphModule makes anew, or keeps for itself.
_OWN = {
    "_graph",
    "_code",
    "meta",
    "_lineno_map",
    "_prologue_start",
    "_co_fields",
    "_replace_hooks",
    "_create_node_hooks",
}


def _held(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module, and what is in its registries."""
    own = _OWN if isinstance(module, GraphModule) else ()
    return {
        key: dict(value) if isinstance(value, dict) and key.startswith("_") else value
        for key, value in vars(module).items()
        if key not in own
    }


def _same(before: Any, now: Any) -> bool:
    if isinstance(before, dict) and isinstance(now, dict):
        return before.keys() == now.keys() and all(before[key] is now[key] for key in before)
    return before is now


def _versions(gm: GraphModule) -> dict[str, tuple[int, int]]:
    """The identity of each tensor, and how often it was written into; 0 for those made in inference mode."""
    tensors = tensor_names(gm)
    return {name: (id(one), 0 if one.is_inference() else one._version) for name, one in tensors.items()}
