"""Families that a training leaves alone, and what is said of those that nobody has named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from fx_oto.analysis.dependencies import Dependencies, Reason
from fx_oto.core.context import Context
from fx_oto.core.fx_utils import tensor_names
from fx_oto.core.tables import counted
from fx_oto.core.warn import warn
from fx_oto.optim.limits import Rules, check_patterns
from fx_oto.optim.targets import Target
from fx_oto.zigs.families import Family

__all__ = ["explained", "left_alone", "steep", "warn_of_untrained"]

_REMEDY = (
    "Keep what that op is given from zero, as (x + 1e-8).sqrt() does, or let torch compute it, by x.norm() or x.std()"
)


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
    """Families that must not be zero while a model is trained, since a derivative is not finite then; warns of them.

    It warns as well of those of which only what is zero gets such a gradient: that does harm where gradients are looked
    at before the optimizer's step.
    """
    found = Context.of(gm).results.get(Dependencies)
    if found is None:
        return [False] * len(families)
    reasons = [_reason(family, found.steep) for family in families]
    alone = [one or mine is not None for one, mine in zip(left_alone(gm, families, rules), reasons, strict=True)]
    pairs = [(family.name, reason) for family, reason in zip(families, reasons, strict=True) if reason is not None]
    named = {family.name for family in families if _is_named(family, rules)}
    if told := [(name, reason) for name, reason in pairs if name not in named]:
        name, reason = told[0]
        warn(
            f"{_counted(told)} left alone, such as {name!r}: {reason} where its ZIGs are zero, and NaN would reach the "
            f"layers before. {_REMEDY}; or cut at once, and train what is left: fx_oto.prune, then fx_oto.compress"
        )
    weights = [(one, _reason(one, found.steep_weights)) for one, mine in zip(families, alone, strict=True) if not mine]
    if told := [(family.name, reason) for family, reason in weights if reason is not None]:
        name, reason = told[0]
        warn(
            f"{_counted(told)} pruned, such as {name!r}, of which the gradients of what is zero are NaN, for {reason}. "
            "They are not used; but to clip all gradients by their norm makes NaN of all, and GradScaler skips the "
            f"steps. {_REMEDY}"
        )
    return [reason is not None for reason in reasons]


def _reason(family: Family, reasons: Mapping[int, Reason]) -> Reason | None:
    return next((reasons[root] for root in family.classes.tolist() if root in reasons), None)


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
