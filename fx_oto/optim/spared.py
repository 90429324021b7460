"""Families that a training leaves alone, and what is said of those that nobody has named."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fx_oto.analysis.dependencies import Dependencies
from fx_oto.core.context import Context
from fx_oto.core.fx_utils import tensor_names
from fx_oto.core.tables import counted
from fx_oto.core.warn import warn
from fx_oto.optim.limits import Rules, check_patterns
from fx_oto.optim.targets import Target
from fx_oto.zigs.families import Family

__all__ = ["explained", "left_alone", "steep", "warn_of_untrained"]


def left_alone(gm: nn.Module, families: Sequence[Family], rules: Rules) -> list[bool]:
    """Families that match a pattern, or of which some variable must not be trained, unless told that it may go."""
    check_patterns("unprunable", rules.unprunable, families)
    pairs = zip(families, _untrained(gm, families, rules), strict=True)
    return [_is_named(family, rules) or frozen is not None for family, frozen in pairs]


def explained(gm: nn.Module, families: Sequence[Family], alone: Sequence[bool], rules: Rules) -> str:
    """Which families are left alone and why, in brackets; empty if none is."""
    told = []
    for family, mine, frozen in zip(families, alone, _untrained(gm, families, rules), strict=True):
        if mine and _is_named(family, rules):
            told.append(f"{family.name!r}, which is unprunable")
        elif mine and frozen is not None:
            told.append(
                f"{family.name!r}, for {frozen!r} has requires_grad=False (prune_frozen=True prunes it as well)"
            )
        elif mine:
            told.append(f"{family.name!r}, where a derivative is not finite at zero")
    if not told:
        return ""
    return f" ({_counted(told)} left alone: {'; '.join(told[:3])}{' …' if len(told) > 3 else ''})"


def steep(gm: nn.Module, families: Sequence[Family], rules: Rules) -> list[bool]:
    """Families that must not be zero while a model is trained, since a derivative is not finite then; warns of them."""
    found = Context.of(gm).results.get(Dependencies)
    at = found.steep if found is not None else {}
    reasons = [next((at[root] for root in family.classes.tolist() if root in at), None) for family in families]
    pairs = [(family, reason) for family, reason in zip(families, reasons, strict=True) if reason is not None]
    if told := [(family.name, reason) for family, reason in pairs if not _is_named(family, rules)]:
        name, reason = told[0]
        warn(
            f"{_counted(told)} left alone, such as {name!r}: {reason} where its ZIGs are zero, and NaN would reach the "
            "layers before. Keep what that op is given from zero, as (x + 1e-8).sqrt() does, or let torch compute it, "
            "by x.norm() or x.std(); or cut at once, and train what is left: fx_oto.prune, then fx_oto.compress"
        )
    return [reason is not None for reason in reasons]


def warn_of_untrained(
    gm: nn.Module, families: Sequence[Family], alone: Sequence[bool], rules: Rules, target: Target
) -> None:
    """Say what is left alone for what is not trained, and what that asks of the rest, for the target counts it."""
    pairs = zip(families, _untrained(gm, families, rules), strict=True)
    spared = [(family, frozen) for family, frozen in pairs if frozen is not None and not _is_named(family, rules)]
    total, count = sum(map(len, families)), sum(len(family) for family, _ in spared)
    free = sum(len(family) for family, one in zip(families, alone, strict=True) if not one)
    if spared and free:
        share = f", so that of the other {free} {target.asked * total / free:.0%} must go" if target.asked else ""
        family, frozen = spared[0]
        warn(
            f"{count} of the {total} ZIGs are left alone, such as those of {family.name!r}, for {frozen!r} has "
            f"requires_grad=False; {target.setting} counts them{share}. To prune them as well, give "
            "prune_frozen=True; to spare the others, another target; if this is meant, name them: unprunable=…"
        )


def _untrained(gm: nn.Module, families: Sequence[Family], rules: Rules) -> list[str | None]:
    """For each family, a variable that must not be trained; None if there is none, or if that is no reason."""
    tensors = tensor_names(gm)
    frozen = [[slot.tensor for slot in one.variables if not tensors[slot.tensor].requires_grad] for one in families]
    return [None if rules.prune_frozen else next(iter(names), None) for names in frozen]


def _is_named(family: Family, rules: Rules) -> bool:
    return any(map(family.matches, rules.unprunable))


def _counted(families: Sequence[object]) -> str:
    return counted(len(families), "family is", "families are")
