"""The model that a GraphModule was captured from: whether it is still what it was, and how it is run as it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fx_oto.core.errors import InputError
from fx_oto.core.fx_utils import is_fully_sharded, is_sharded
from fx_oto.core.masks import MASKS
from fx_oto.core.parts import reference_to
from fx_oto.core.tables import counted

__all__ = ["Original"]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_CLASS = "__class__"
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, eq=False)
class Original:
    """What is remembered of the model that a GraphModule was captured from. The model itself is not kept alive.

    Attributes:
        reference: to the model; None of a copy of the GraphModule, which has parameters of its own.
        names: of its parameters and buffers.
        plain: its modules' attributes that are numbers, texts or truth values, or tuples of these, by path; and the
            modules' classes.
        own: of each module, by path, the keys of its hooks, and whether its ``forward`` was replaced.
        placed: type and device of its first parameter with floating point.
    """

    reference: Callable[[], nn.Module | None] | None
    names: frozenset[str]
    plain: dict[tuple[str, str], Any]
    own: dict[str, tuple[frozenset[int], bool]]
    placed: tuple[torch.dtype, torch.device] | None

    @classmethod
    def of(cls, model: nn.Module) -> Original:
        """Remember ``model`` as it is now."""
        modules = dict(model.named_modules())
        own = {path: (frozenset(_hook_keys(module)), "forward" in vars(module)) for path, module in modules.items()}
        names = frozenset(name for name in _all_tensors(model) if not name.startswith(f"{MASKS}."))
        return cls(reference_to(model), names, _plain(modules), own, _placed(model))

    def is_of(self, model: nn.Module) -> bool:
        """Whether it was this very model, or parts of it, that was captured."""
        mine = self.model
        return mine is model or (mine is not None and mine._modules is model._modules)  # which parts share with it

    @property
    def model(self) -> nn.Module | None:
        """The model, as long as there is one."""
        return None if self.reference is None else self.reference()

    def without_model(self) -> Original:
        """The same for a copy of the GraphModule."""
        return replace(self, reference=None)

    def _replaced(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Those of a GraphModule's tensors that the model holds no more, having others under their names."""
        now = {} if self.model is None else _all_tensors(self.model)
        return [name for name in self.names & tensors.keys() if now and now.get(name) is not tensors[name]]

    def share(self, gm: nn.Module) -> None:
        """Let the model and ``gm`` hold the same again, after one of them was sharded, moved, cast or called."""
        self._share_shards(gm)
        self._share_moved(gm)
        self._share_assigned(gm)

    def _share_shards(self, gm: nn.Module) -> None:
        """Give parameters that were sharded in the model to ``gm``, and the other way round.

        ``fully_shard`` puts others in their place. Modules are the same in both, but what no layer holds, such as a
        table of positions, is registered in each.
        """
        if self.model is None:
            return
        everything: list[Any] = [*gm.modules(), *self.model.modules()]
        for module in filter(is_fully_sharded, everything):
            module.reshard()  # after an evaluation its parameters may still be whole
        ours, theirs = dict(_named(gm)), dict(_named(self.model))
        for name in ours.keys() & theirs.keys():
            for new, old, module in ((ours[name], theirs[name], self.model), (theirs[name], ours[name], gm)):
                if is_sharded(new) and not is_sharded(old) and new.shape == old.shape:
                    path, _, key = name.rpartition(".")
                    setattr(module.get_submodule(path), key, new)

    def _share_moved(self, gm: nn.Module) -> None:
        """Give buffers that were moved or cast with the model to ``gm``, and the other way round.

        ``to`` keeps parameters and makes other tensors of buffers; those that no layer holds are registered in each.
        """
        now = _placed(gm)
        if self.model is None or self.placed is None or now is None:
            return
        ours, theirs = dict(gm.named_buffers()), dict(self.model.named_buffers(remove_duplicate=False))
        for name in self.names & ours.keys() & theirs.keys():
            for new, old, module in ((ours[name], theirs[name], self.model), (theirs[name], ours[name], gm)):
                if new.shape == old.shape and _has_followed(new, old, self.placed, now):
                    path, _, key = name.rpartition(".")
                    module.get_submodule(path)._buffers[key] = new

    def _share_assigned(self, gm: nn.Module) -> None:
        """Give buffers that code has assigned anew in the model, as ``self.mean = …`` does, to ``gm``.

        Those of another form are left, as is everything where the two no longer share their parameters.
        """
        ours = dict(gm.named_buffers(remove_duplicate=False))
        assigned = self._replaced(ours)
        if self.model is None or not assigned or self._replaced(dict(gm.named_parameters())):
            return
        theirs = dict(self.model.named_buffers(remove_duplicate=False))
        for name in theirs.keys() & assigned:
            new, old = theirs[name], ours[name]
            if (new.shape, new.dtype, new.device) == (old.shape, old.dtype, old.device):
                path, _, key = name.rpartition(".")
                gm.get_submodule(path)._buffers[key] = new.detach() if new.requires_grad else new  # to be copied

    def check_shared(self, gm: nn.Module) -> None:
        """The model must still hold the parameters that ``gm`` shares with it; code may assign buffers anew.

        Raises:
            InputError: some were replaced.
        """
        lost = sorted(self._replaced(dict(gm.named_parameters())))
        if lost:
            raise InputError(
                f"{counted(len(lost), 'parameter', 'parameters')} of the model, such as {lost[0]!r}, "
                f"{'is' if len(lost) == 1 else 'are'} not what prepare found, but another: a layer was replaced, or a "
                "state was loaded with assign=True. Nothing was changed: load states without assign=True, or call "
                "fx_oto.prepare on the model as it is now, and train on with a new optimizer"
            )

    def changed(self, gm: nn.Module) -> list[str]:
        """What has another value than then, in words, such as ``'tau' was 5.0 and is 0.5``."""
        if self.model is None:
            return []
        modules = dict(self.model.named_modules())
        now = _plain(modules)
        found = [f"the buffer {name!r} is another tensor" for name in sorted(self._replaced(dict(gm.named_buffers())))]
        for (path, name), value in self.plain.items():
            other = now.get((path, name), _GONE)
            if other is not value and other != value:
                other = _held(modules.get(path), name) if other is _GONE else other
                where = path or "the model" if name == _CLASS else f"{path}.{name}".lstrip(".")
                found.append(f"{where!r} was {_shown(value)} and is {_shown(other)}")
        return found

    def no_longer(self, gm: nn.Module, how: str) -> str:
        """What an error says where the model is not what it was when it was prepared."""
        changed = "".join(f"; {one}" for one in self.changed(gm)[:4])
        return (
            f"the model does not compute what it did when it was prepared: {how}{changed}. Nothing was changed: "
            "prepare the model as it is now"
        )

    def on_its_place(self, gm: nn.Module, inputs: Any) -> Any:
        """Example inputs, with what was of the type, or on the device, of the weights as they are now."""
        now = _placed(gm)
        if self.placed is None or now is None or now == self.placed:
            return inputs
        (old_type, old_device), (new_type, new_device) = self.placed, now

        def moved(tensor: Tensor) -> Tensor:
            kind = new_type if tensor.dtype == old_type else tensor.dtype
            return tensor.to(new_device if tensor.device == old_device else tensor.device, kind)

        return tree_map_only(Tensor, moved, inputs)

    def strip(self, copy: nn.Module) -> None:
        """Take off a copy of the model for good what others have put on the model since, see ``as_captured``."""
        for path, module in copy.named_modules():
            list(_hidden(vars(module), *self.own.get(path, (frozenset(), False))))

    def drop_forwards_of_others(self, copy: nn.Module) -> None:
        """Take off a copy the replaced ``forward`` methods that would run the model that it was copied from."""
        for path, module in copy.named_modules():
            forward, was_replaced = vars(module).get("forward"), self.own.get(path, (frozenset(), False))[1]
            is_its_own = getattr(forward, "__self__", None) is module or module in getattr(forward, "args", ())
            if forward is not None and not was_replaced and not is_its_own:
                del module.__dict__["forward"]

    def hooks_since(self) -> list[str]:
        """The modules that others have put hooks on since, and these, in words."""
        found = []
        for path, module in () if self.model is None else self.model.named_modules():
            keys = self.own.get(path, (frozenset(), False))[0]
            hooks = [hook for name in _HOOKS for key, hook in vars(module)[name].items() if key not in keys]
            if hooks:
                names = ", ".join(getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks)
                found.append(f"{repr(path) if path else 'the model'} ({names})")
        return found

    @contextmanager
    def as_captured(self, *models: nn.Module, hooks: bool = False) -> Iterator[None]:
        """Run modules without the hooks and the replaced ``forward`` methods that others have put on them since.

        Accelerate, for one, puts a ``forward`` under autocast on the model that it prepares.

        Args:
            models: the model, and GraphModules of it.
            hooks: run them with the hooks all the same.
        """
        hidden: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for path, module in (pair for model in models for pair in model.named_modules()):
                keys, was_replaced = self.own.get(path, (frozenset(), False))
                hidden += _hidden(vars(module), None if hooks else keys, was_replaced)
            yield
        finally:
            for held, name, value in hidden:
                held[name] = value


def _hidden(
    held: dict[str, Any], keys: frozenset[int] | None, was_replaced: bool
) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Take what others have put on a module off it, but hooks if no ``keys`` are given; yields what that was."""
    if "forward" in held and not was_replaced:
        yield held, "forward", held.pop("forward")
    for name in _HOOKS:
        hooks = held.get(name) or {}
        if keys is not None and not keys.issuperset(hooks):
            held[name] = OrderedDict((key, hook) for key, hook in hooks.items() if key in keys)
            yield held, name, hooks


class _Gone:
    def __repr__(self) -> str:
        return "gone"


_GONE = _Gone()


def _held(module: nn.Module | None, name: str) -> Any:
    """What a module has as an attribute of its own."""
    return _GONE if module is None else vars(module).get(name, _GONE)


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return value.__name__
    plain = all(isinstance(part, (*_PLAIN, _Gone)) for part in (value if isinstance(value, tuple) else (value,)))
    return repr(value) if plain else f"of class {type(value).__name__}"


def _plain(modules: dict[str, nn.Module]) -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    for path, module in modules.items():
        found[path, _CLASS] = type(module)
        for name, value in vars(module).items():
            parts = value if isinstance(value, tuple) else (value,)
            if name not in _OF_EVERY_MODULE and all(isinstance(part, _PLAIN) for part in parts):
                found[path, name] = value
    return found


def _hook_keys(module: nn.Module) -> Iterator[int]:
    for name in _HOOKS:
        yield from vars(module).get(name) or ()


def _all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under each of their names."""
    return dict(_named(model)) | dict(model.named_buffers(remove_duplicate=False))


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)


def _has_followed(
    new: Tensor, old: Tensor, before: tuple[torch.dtype, torch.device], now: tuple[torch.dtype, torch.device]
) -> bool:
    """Whether the one is where the weights are, or of their type, and the other is where, or of what, they were."""
    if new.device != old.device:
        return (old.device, new.device) == (before[1], now[1])
    return new.dtype != old.dtype and (old.dtype, new.dtype) == (before[0], now[0])


def _placed(model: nn.Module) -> tuple[torch.dtype, torch.device] | None:
    first = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    return None if first is None else (first.dtype, first.device)
