"""How many ZIGs of each family may go, and in what portions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

from fx_oto.core.errors import SettingsError
from fx_oto.core.patterns import check_matched
from fx_oto.zigs.families import Family

__all__ = ["Limits", "PerFamily", "check_patterns", "portions"]

PerFamily = float | Mapping[str, float]


@dataclass(frozen=True)
class Limits:
    """How many ZIGs of each family may go, and in what portions.

    Attributes:
        most: the largest number that may go, for each family.
        steps: channels are kept in multiples of this many ZIGs, for each family.
    """

    most: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    def of(
        cls,
        families: Sequence[Family],
        left_alone: Sequence[bool],
        min_kept: PerFamily,
        max_group_sparsity: PerFamily,
        round_to: int,
    ) -> Limits:
        """Read a user's limits.

        Args:
            families: the partition's families.
            left_alone: for each family, whether nothing is taken from it.
            min_kept: number (int) or fraction (float) of ZIGs to keep, of all families or by glob of their tensors'
                or modules' names.
            max_group_sparsity: largest fraction of a family that may go, of all or by glob; of several globs that
                match, the first counts.
            round_to: the channels left of each family are a multiple of this number, or all.

        Raises:
            SettingsError: a limit is out of range, or a glob matches no family.
        """
        if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
            raise SettingsError(f"round_to must be a positive integer, found {round_to!r}")
        kept = _per_family("min_kept", min_kept, families, 0.0)
        caps = _per_family("max_group_sparsity", max_group_sparsity, families, 1.0)
        most, steps = [], []
        for family, alone, least, cap in zip(families, left_alone, kept, caps, strict=True):
            step = _step(family, round_to)
            limit = 0 if alone else _most(len(family), least, cap)
            most.append(portions(len(family), limit, step)[-1])
            steps.append(step)
        return cls(tuple(most), tuple(steps))


def _most(size: int, least: float, cap: float) -> int:
    if isinstance(least, bool) or least < 0 or (isinstance(least, float) and least >= 1):
        whole = ": what is to be kept whole is named in unprunable" if least == 1 else ""
        raise SettingsError(f"min_kept must be a count (int) or a fraction in [0, 1) (float), found {least!r}{whole}")
    if not 0 <= cap <= 1:
        raise SettingsError(f"max_group_sparsity must be in [0, 1], found {cap!r}")
    kept = math.ceil(least * size - 1e-9) if isinstance(least, float) else least
    return max(0, min(size - max(1, kept), math.floor(cap * size + 1e-9)))


def _per_family(name: str, given: PerFamily, families: Sequence[Family], default: float) -> list[float]:
    if not isinstance(given, Mapping):
        if not isinstance(given, Real):
            raise SettingsError(f"{name} must be a number or a dict {{pattern: number}}, found {given!r}")
        return [given] * len(families)
    check_patterns(name, given, families)
    hits = ([value for pattern, value in given.items() if family.matches(pattern)] for family in families)
    return [values[0] if values else default for values in hits]


def _step(family: Family, round_to: int) -> int:
    """The least number of ZIGs whose channels are a multiple of ``round_to`` along every axis that they are cut from.

    A ZIG in front of ``chunk(2)`` takes two rows of one weight and a column of the next: it is the column that decides.
    """
    return math.lcm(*(round_to // math.gcd(round_to, slot.index.shape[1]) for slot in family.slots))


def portions(size: int, limit: int, step: int) -> list[int]:
    """The numbers of ZIGs that may be gone: the rest is a multiple of ``step``."""
    return [0, *(gone for gone in range(size % step or step, limit + 1, step))]


def check_patterns(option: str, patterns: Iterable[str], families: Sequence[Family]) -> None:
    """Every glob pattern of an option must match some family."""
    others = [slot.tensor for family in families for slot in family.variables]
    check_matched(patterns, [*(family.name for family in families), *others], "family", option)
