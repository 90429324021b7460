"""Modules of the user that are called as a whole, for which the analysis was taught a rule."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from fx_oto.core.errors import RuleError
from fx_oto.core.preserve import evaluating

__all__ = ["Attribute", "Leaf", "LeafOp", "OpaqueOp", "leaf_of", "leaves"]

# What an attribute becomes once parameters are cut: the size of one of them along a dimension, or what a function of
# the module says.
Attribute = tuple[str, int] | Callable[[Any], Any]


@dataclass(frozen=True)
class Leaf:
    """The rule and the attributes that were taught for a module class.

    Attributes:
        rule: what a call of it does to labels.
        attributes: its attributes that follow its parameters.
    """

    rule: Any
    attributes: Mapping[str, Attribute]

    def resize(self, module: nn.Module) -> None:
        """Let the attributes of a module whose parameters were sliced follow them.

        Raises:
            RuleError: an attribute cannot be set.
        """
        for path, source in self.attributes.items():
            *owners, name = path.split(".")
            try:
                owner = attrgetter(".".join(owners))(module) if owners else module
                value = source(module) if callable(source) else attrgetter(source[0])(module).shape[source[1]]
                setattr(owner, name, value)
            except Exception as error:
                raise RuleError(
                    f"the attribute {path!r} of {type(module).__name__} cannot be set from {source!r}: "
                    f"{type(error).__name__}: {error}; mend attributes={{…}} in register_leaf"
                ) from error


# One of the registries: by class, for it alone and not for its subclasses, whose forward may do something else. The
# class of a notebook's cell that was run again is another one, and models may still hold the first.
leaves: dict[type[nn.Module], Leaf] = {}


def leaf_of(module: nn.Module) -> Leaf | None:
    """Return what was taught for a module's class, None if nothing was."""
    return leaves.get(type(module))


@dataclass(frozen=True, eq=False)
class LeafOp:
    """Stands on the tape for a call of a leaf, in the place of an ATen operator.

    Attributes:
        module: the module that is called.
        names: of its arguments as ``forward`` calls them, then of its parameters and buffers, the same as it has.
        num_inputs: how many of them are arguments of ``forward``.
        macs: multiply-adds that the call makes in ops that torch counts.
    """

    module: nn.Module
    names: tuple[str, ...]
    num_inputs: int
    macs: int = 0

    tags = ()

    @property
    def __name__(self) -> str:
        """The class's name."""
        return type(self.module).__name__

    @classmethod
    def of(cls, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[LeafOp, tuple[Any, ...]]:
        """The op and its arguments, for a call of a module."""
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        given = {name: _flat(value) for name, value in bound.arguments.items()}
        held: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        held |= dict(module.named_buffers(remove_duplicate=False))
        if both := given.keys() & held.keys():
            raise RuleError(
                f"{type(module).__name__} is registered as a leaf, but {sorted(both)[0]!r} is both an argument of its "
                "forward and a parameter or buffer: rename one, because rules tell them apart by name"
            )
        return cls(module, (*given, *held), len(given)), (*given.values(), *held.values())

    def __call__(self, *arguments: Any) -> Any:
        """Run the module on other arguments, parameters and buffers, in evaluation mode."""
        held = dict(zip(self.names[self.num_inputs :], arguments[self.num_inputs :], strict=True))
        given = OrderedDict(zip(self.names, arguments[: self.num_inputs], strict=False))
        bound = inspect.BoundArguments(inspect.signature(self.module.forward), given)
        with evaluating(self.module):
            return functional_call(self.module, held, bound.args, bound.kwargs)


@dataclass(frozen=True, eq=False)
class OpaqueOp:
    """Stands on the tape for Python code that cannot be run on fake tensors, in the place of an ATen operator.

    Attributes:
        macs: multiply-adds that it makes on the example inputs, in ops that torch counts.
    """

    macs: int
    __name__ = "opaque_call"

    tags = ()


def _flat(value: Any) -> Any:
    """An argument; of nested containers the tensors, as ATen's calls have them."""
    if isinstance(value, Tensor) or not isinstance(value, dict | list | tuple):
        return value
    return tuple(tree_leaves(value))
