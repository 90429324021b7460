"""What is asked: a quantity of the full model and how much of it is to be left, and whether the limits allow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor
from torch.fx import GraphModule

from fx_oto.core.errors import SettingsError
from fx_oto.optim.latency import Latency
from fx_oto.optim.limits import Limits, Rules
from fx_oto.zigs.partition import Partition
from fx_oto.zigs.prices import Price, Quantity

__all__ = ["Target", "find_target", "fractions", "in_words", "is_within", "limits_for", "reached"]


@dataclass(frozen=True)
class Target:
    """How much of a quantity of the full model is to be left.

    Attributes:
        name: what is counted: ``"group sparsity"``, ``"params"``, ``"macs"`` or ``"latency"``.
        left: fraction to be left, in (0, 1).
        quantity: what counts it.
    """

    name: str
    left: float
    quantity: Quantity

    def part_way(self, fraction: float) -> float:
        """The fraction to be left when this fraction of the way is done."""
        return 1 - fraction * (1 - self.left)

    def fraction(self, removed: Tensor) -> float:
        """The fraction that is left once ``removed[i]`` ZIGs of family i are gone."""
        return self.quantity.left(removed) / self.quantity.total

    @property
    def setting(self) -> str:
        """As it was given to an optimizer: ``"target_macs=0.5"``."""
        return f"{_option(self.name)}={1 - self.left if self.name == 'group sparsity' else self.left:g}"

    @property
    def asked(self) -> float | None:
        """The fraction of the ZIGs that is to go, if these are counted."""
        return 1 - self.left if self.name == "group sparsity" else None

    def describe(self, left: float) -> str:
        """A fraction left, in the words of the target."""
        return in_words(self.name, 1 - left if self.name == "group sparsity" else left)


def in_words(name: str, value: float) -> str:
    """A group sparsity, or what is left of a quantity, as users read it."""
    return f"{name} {value:.4f}" if name == "group sparsity" else f"{name} left {value:.4f}"


def fractions(zigs: Partition, removed: Tensor) -> dict[str, float]:
    """Group sparsity, and the fractions of params and MACs that are left without ``removed[i]`` ZIGs of family i."""
    return {
        "group sparsity": float(removed.sum()) / zigs.num_zigs,
        "params": zigs.params.left(removed) / zigs.params.total,
        "macs": zigs.macs.left(removed) / (zigs.macs.total or 1),
    }


def reached(target: Target, zigs: Partition, removed: Tensor) -> dict[str, float]:
    """What ``fractions`` tells without ``removed[i]`` ZIGs of family i, and what is left of the target, if another."""
    found = fractions(zigs, removed)
    return found if target.name in found else {**found, target.name: target.fraction(removed)}


def find_target(
    gm: GraphModule, zigs: Partition, wanted: dict[str, float | None], progress: bool | None = None
) -> Target:
    """The one target that was given; ``progress`` says whether measurements show a bar."""
    given = {name: value for name, value in wanted.items() if value is not None}
    if len(given) != 1:
        raise SettingsError(
            "give one of target_group_sparsity, target_params, target_macs and target_latency, as a fraction of the "
            f"full model; found {' and '.join(map(_option, given)) or 'none'}"
        )
    name, value = next(iter(given.items()))
    if not isinstance(value, Real) or not 0 < value < 1:
        raise SettingsError(f"{_option(name)} must be a number between 0 and 1, both excluded; found {value!r}")
    if not zigs.families:
        raise SettingsError("no axis of this model can be pruned: print(fx_oto.partition(gm)) gives the reasons")
    if name == "group sparsity":
        return Target(name, 1 - value, _count(zigs))
    if name == "macs" and not zigs.macs.total:
        raise SettingsError(
            "no multiply-adds were counted for this model, so target_macs cannot be used; choose another target"
        )
    known = {"params": zigs.params, "macs": zigs.macs}
    return Target(name, value, known[name] if name in known else Latency(gm, progress=progress))


def _option(name: str) -> str:
    return f"target_{name.replace(' ', '_')}"


def limits_for(
    target: Target, zigs: Partition, alone: Sequence[bool], rules: Rules, told: str = "", must: bool = True
) -> Limits:
    """The limits, within which the target must be, unless it is said that it need not.

    Args:
        target: what is asked.
        zigs: the partition.
        alone: for each family, whether it is left alone.
        rules: what may go.
        told: what is said of those that are, if the target cannot be reached.
        must: whether it must.

    Raises:
        SettingsError: the limits cannot be, or the target is not within them.
    """
    limits = Limits.of(zigs.families, alone, rules, zigs.depth)
    if not must or is_within(target, limits):
        return limits
    raise SettingsError(
        f"{target.setting} cannot be reached: with the minimum kept of each family and the other limits, what can be "
        f"reached is {target.describe(target.fraction(torch.tensor(limits.most)))}; change the target, min_kept, "
        f"max_group_sparsity or round_to{told}"
    )


def is_within(target: Target, limits: Limits) -> bool:
    """Whether a target can be reached if all goes that may."""
    return target.fraction(torch.tensor(limits.most)) <= target.left + 1e-9


def _count(zigs: Partition) -> Price:
    """ZIGs that are left, as a quantity."""
    sizes = torch.tensor([len(family) for family in zigs.families])
    members = torch.arange(len(sizes)).repeat_interleave(sizes)
    return Price.of([zigs.num_zigs], [(0, 0, members)], sizes)
