"""What must hold of the model and the base optimizer before anything is changed."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fx_oto.core.context import Context
from fx_oto.core.errors import SettingsError, TrainingError
from fx_oto.core.fx_utils import tensor_names
from fx_oto.core.tables import counted
from fx_oto.core.unused import may_read, names_of, parameters_of_graph
from fx_oto.core.warn import warn
from fx_oto.optim.shards import local
from fx_oto.zigs.families import Family
from fx_oto.zigs.partition import Partition

__all__ = [
    "beside",
    "build_base",
    "check_covered",
    "check_gradients",
    "check_keywords",
    "check_unchanged",
    "is_rehearsal",
    "signature_of",
    "warn_of_beside",
    "warn_of_idle",
]


def build_base(base: type[Optimizer] | Optimizer, gm: nn.Module, kwargs: dict[str, Any]) -> Optimizer:
    """The base optimizer: built over the model's parameters, or the instance that was given.

    Raises:
        SettingsError: it cannot be wrapped.
    """
    if isinstance(base, torch.optim.LBFGS) or base is torch.optim.LBFGS:
        raise SettingsError("LBFGS takes several steps in one, which cannot be corrected: use another base")
    if not isinstance(base, Optimizer):
        try:
            return base(gm.parameters(), **kwargs)
        except ValueError as error:  # an argument, or parameters that it does not take: Muon takes matrices alone
            name = getattr(base, "__name__", str(base))
            raise SettingsError(f"{name} cannot be built over the parameters of gm: {error}") from error
    if kwargs:
        raise SettingsError(f"base is an optimizer instance; pass {', '.join(sorted(kwargs))} when you create it")
    return base


def signature_of(init: Callable[..., Any], shared: Callable[..., Any]) -> inspect.Signature:
    """All arguments of a subclass's ``__init__``: those that it hands on to ``shared``, its own, and any others."""
    handed = dict(inspect.signature(shared).parameters)
    *known, rest = [parameter for name, parameter in handed.items() if name != "self"]
    own = inspect.signature(init).parameters
    added = [p for name, p in own.items() if p.kind is inspect.Parameter.KEYWORD_ONLY and name not in handed]
    return inspect.Signature([*known, *added, rest])


def check_keywords(kind: str, base: Any, given: Collection[str], own: Collection[str]) -> None:
    """Every keyword must be one of the optimizer's own or of the base's.

    Raises:
        SettingsError: one is neither, or the base is no optimizer.
    """
    if not (isinstance(base, Optimizer) or callable(base)):
        example = f"torch.optim.{base}" if isinstance(base, str) and hasattr(torch.optim, base) else "torch.optim.SGD"
        raise SettingsError(f"base must be a class of optimizers or an optimizer, found {base!r}: pass {example}")
    theirs = {} if isinstance(base, Optimizer) else dict(inspect.signature(base).parameters)
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in theirs.values()):
        return
    for name in given:
        close = difflib.get_close_matches(name, [*own, *theirs], n=1)
        hint = f": did you mean {close[0]!r}?" if close else ""
        if name not in theirs and (hint or not isinstance(base, Optimizer)):
            called = type(base).__name__ if isinstance(base, Optimizer) else getattr(base, "__name__", str(base))
            raise SettingsError(f"{name!r} is neither an argument of {kind} nor of {called}, its base{hint}")


def warn_of_idle(idle: Collection[str], everything: int) -> None:
    """Say which parameters the training leaves alone, if it does train others."""
    if 0 < len(idle) < everything:
        warn(
            f"these parameters had no gradient before the pruning window started: {names_of(idle)}. If you replaced "
            "a layer after prepare(), call prepare() again and create a new optimizer; to keep them fixed, call "
            "requires_grad_(False) first"
        )


def beside(gm: nn.Module, families: Sequence[Family]) -> dict[str, Tensor]:
    """The parameters of the model that its graph does not use, and that may be combined with what is cut.

    Of parts of a model, which hand to other code what stays whole, there are none.
    """
    if Context.of(gm).parts is not None:
        return {}
    used, tensors = parameters_of_graph(gm), tensor_names(gm)
    sizes = {tensors[slot.tensor].size(slot.dim) for family in families for slot in family.slots}
    return may_read({name: one for name, one in gm.named_parameters() if name not in used}, sizes)


def warn_of_beside(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Say which parameters are trained though the graph does not use them; returns those still to be looked at."""
    trained = [name for name, one in parameters.items() if one.grad is not None]
    if trained:
        warn(
            f"these parameters have a gradient, though forward did not use them on the example inputs: "
            f"{names_of(trained)}. They are trained, but not cut. What forward returns keeps its channels; if other "
            "code gives them what forward computes in between, that may have fewer once it is compressed. Then prepare "
            "a module whose forward runs that code, or keep whole what it reads: prepare(…, unprunable=…)"
        )
    return {} if trained else parameters


def check_covered(gm: nn.Module, families: Sequence[Family], base: Optimizer) -> None:
    """The base must hold every variable of these families; what else it holds is only trained."""
    if not all(isinstance(group.get("lr"), int | float | Tensor) for group in base.param_groups):
        raise SettingsError(
            f"the param groups of {type(base).__name__} have no learning rate under 'lr', by which a step is judged"
        )
    held = {id(p) for group in base.param_groups for p in group["params"]}
    tensors = tensor_names(gm)
    for family in families:
        for slot in family.variables:
            if id(tensors[slot.tensor]) not in held and tensors[slot.tensor].requires_grad:
                raise SettingsError(
                    f"the base optimizer does not hold {slot.tensor!r}, which belongs to prunable ZIGs: build it over "
                    "gm.parameters() (or the model's own), or keep it whole by prepare(…, unprunable=…)"
                )
    others = held - {id(p) for p in gm.parameters()}
    if others:
        warn(
            f"the base optimizer also holds {counted(len(others), 'tensor', 'tensors')} beside the parameters of gm: "
            "trained, but not pruned; if that is meant to be pruned as well, prepare the model that holds it"
        )


def check_unchanged(zigs: Partition, tensors: dict[str, Tensor], now: dict[str, Tensor] | None = None) -> None:
    """The parameters must be those that ``prepare`` saw."""
    for family in zigs.families:
        for slot in family.variables:
            tensor = tensors.get(slot.tensor)
            if tensor is not None and (now is None or now.get(slot.tensor) is tensor):
                fits = tensor.ndim > slot.dim and int(slot.index.max()) < tensor.size(slot.dim)
                if fits and tensor.numel() == slot.numel * tensor.size(slot.dim):
                    continue
            found = "it is gone" if tensor is None else f"it is another tensor of shape {tuple(tensor.shape)}"
            raise SettingsError(
                f"{slot.tensor!r} is not what prepare found: {found}. The model was changed since; call "
                "fx_oto.prepare on the changed model and build the optimizer anew"
            )


def check_gradients(groups: Sequence[dict[str, Any]]) -> None:
    """Some parameter must have a gradient."""
    if all(p.grad is None for group in groups for p in group["params"]):
        raise TrainingError(
            "no parameter has a gradient: call backward() before step(); is the model that was trained the one given "
            "to prepare? Was it sharded before the optimizer was made?"
        )


def is_rehearsal(groups: Sequence[dict[str, Any]], anywhere: Callable[[bool], bool]) -> bool:
    """Whether a step can change nothing: by such a one torch.distributed.checkpoint lets an optimizer make its state.

    Args:
        groups: param groups, whose learning rates torch has set to zero, as it has the gradients.
        anywhere: whether a flag is set on any process.
    """
    rates = [group["lr"] for group in groups]
    if any((isinstance(rate, Tensor) and not rate.is_cpu) or bool(rate) for rate in rates):
        return False  # torch's zero is on the CPU; nothing is read from a device
    gradients = (p.grad for group in groups for p in group["params"] if p.grad is not None)
    return not anywhere(any(bool(local(gradient).norm()) for gradient in gradients))
