"""RMS norms of the user's own class over cut channels: exact with another weight and another epsilon.

With s, the share of channels that is left, ``w / √(s·m + e)`` is ``s^-½·w / √(m + e/s)``, where m is the mean square of
what is left.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from fx_oto.core.differences import relative_error
from fx_oto.core.preserve import evaluating, unwritten
from fx_oto.deploy.attributes import Attribute, Values, set_attributes
from fx_oto.deploy.calls import Call, Value
from fx_oto.deploy.copying import rescale
from fx_oto.nn.norms import mean_over, rms_norm_over

__all__ = ["Scaling", "fitting_scaling"]

_LARGEST = 0.1  # epsilon
_OFFSETS = (0.0, 1.0)  # torch's kind, and the kind that computes with 1 + weight


class Scaling:
    """How the norm of a module is made exact.

    Attributes:
        path: of the module.
        share: of the channels that is left.
        offset: what its code adds to its weight.
        epsilons: its attributes that are divided by the share.
    """

    def __init__(self, path: str, share: float, offset: float, epsilons: dict[Attribute, float]) -> None:
        self.path, self.share, self.offset, self.epsilons = path, share, offset, epsilons

    def apply(self, model: nn.Module) -> bool:
        """Change the module's weight and its epsilon."""
        weight = _weight(model.get_submodule(self.path))
        if weight is None or not rescale(model, weight, self.share, self.offset):
            return False
        set_attributes(model, {place: eps / self.share for place, eps in self.epsilons.items()}, set())
        return True


def _weight(module: nn.Module) -> Tensor | None:
    found = [one for one in module._parameters.values() if one is not None and one.ndim == 1]
    return found[0] if len(found) == 1 else None


def fitting_scaling(
    model: nn.Module, call: Call, twin: Node, expected: dict[str, Any], numbers: Values, allowed: float
) -> Scaling | None:
    """How a module's norm is made exact, tried on what it is given and must return; None if it cannot be.

    Args:
        model: the user's model over sliced tensors, with its attributes set.
        call: the call of the module.
        twin: the node of the compact graph in the place of one that does not fit.
        expected: what the compact graph computes, by node.
        numbers: what the attributes of modules were.
        allowed: by how much a result may differ.
    """
    share = _share(twin)
    if share is None or not call.path:
        return None
    mine = {place: eps for place, eps in numbers.items() if place.module == call.path and isinstance(eps, float)}
    small = {place: eps for place, eps in mine.items() if 0 < eps < _LARGEST and len(place.steps) == 1}
    for offset in _OFFSETS:
        found = Scaling(call.path, share, offset, small)
        if _fits(model, found, call, expected, allowed):
            return found
    return None


def _share(twin: Node) -> float | None:
    """The share of the elements that is left of those whose mean a node takes; None if it takes no such mean."""
    if twin.target is mean_over:
        return float(twin.args[3])  # type: ignore[arg-type]
    if twin.target is rms_norm_over:
        source: Any = twin.args[0]
        shape: Any = twin.args[1]
        return float(math.prod(source.meta["val"].shape[-len(shape) :]) / math.prod(shape))
    return None


@torch.no_grad()
def _fits(model: nn.Module, scaling: Scaling, call: Call, expected: dict[str, Any], allowed: float) -> bool:
    module = model.get_submodule(call.path)
    changed = copy.deepcopy(module)
    weight = _weight(changed)
    if weight is None or not isinstance(call.returned, Value) or call.returned.key is not None:
        return False
    rescale(changed, weight, scaling.share, scaling.offset)
    inside = {Attribute("", place.steps): eps / scaling.share for place, eps in scaling.epsilons.items()}
    set_attributes(changed, inside, set())
    given = _filled(call.given, expected)
    wanted = expected.get(call.returned.node)
    if wanted is None or given is None:
        return False
    try:
        with evaluating(changed), unwritten(changed):
            found = changed(**given)
    except Exception:  # it is no norm of this kind
        return False
    return found.shape == wanted.shape and relative_error(wanted, found) <= allowed


def _filled(given: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any] | None:
    values = {}
    for name, value in given.items():
        if isinstance(value, Value) and (value.key is not None or value.node not in expected):
            return None
        values[name] = expected[value.node] if isinstance(value, Value) else value
    return values
