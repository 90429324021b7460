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

__all__ = ["left_alone", "steep", "warn_of_untrained"]


def left_alone(gm: nn.Module, families: Sequence[Family], rules: Rules) -> list[bool]:
    """Families that match a pattern, or of which some variable must not be trained, unless told that it may go."""
    check_patterns("unprunable", rules.unprunable, families)
    named = [any(family.matches(pattern) for pattern in rules.unprunable) for family in families]
    return [one or mine for one, mine in zip(named, _untrained(gm, families, rules), strict=True)]


def _untrained(gm: nn.Module, families: Sequence[Family], rules: Rules) -> list[bool]:
    tensors = tensor_names(gm)
    trained = [all(tensors[slot.tensor].requires_grad for slot in family.variables) for family in families]
    return [not (one or rules.prune_frozen) for one in trained]


def steep(gm: nn.Module, families: Sequence[Family]) -> list[bool]:
    """Families that must not be zero while a model is trained, since a derivative is not finite then; warns of them."""
    found = Context.of(gm).results.get(Dependencies)
    at = found.steep if found is not None else {}
    reasons = [next((at[root] for root in family.classes.tolist() if root in at), None) for family in families]
    named = [(family.name, reason) for family, reason in zip(families, reasons, strict=True) if reason is not None]
    if named:
        name, reason = named[0]
        warn(
            f"{counted(len(named), 'family is', 'families are')} left alone, such as {name!r}: {reason} where its ZIGs "
            "are zero, and NaN would reach the layers before. Keep what that op is given from zero, as "
            "(x + 1e-8).sqrt() does, or let torch compute it, by x.norm() or x.std(); or cut at once, and train what "
            "is left: fx_oto.prune, then fx_oto.compress"
        )
    return [reason is not None for reason in reasons]


def warn_of_untrained(
    gm: nn.Module, families: Sequence[Family], alone: Sequence[bool], rules: Rules, target: Target
) -> None:
    """Say what is left alone for what is not trained, and what that asks of the rest, for the target counts it."""
    pairs = zip(families, _untrained(gm, families, rules), strict=True)
    spared = [family for family, one in pairs if one and not any(map(family.matches, rules.unprunable))]
    total, count = sum(map(len, families)), sum(map(len, spared))
    free = sum(len(family) for family, one in zip(families, alone, strict=True) if not one)
    if spared and free:
        share = f", so that of the other {free} {target.asked * total / free:.0%} must go" if target.asked else ""
        warn(
            f"{count} of the {total} ZIGs are left alone, such as those of {spared[0].name!r}, for a parameter of "
            f"theirs has requires_grad=False; {target.setting} counts them{share}. To prune them as well, give "
            "prune_frozen=True; to spare the others, another target; if this is meant, name them: unprunable=…"
        )
