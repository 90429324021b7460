"""How many ZIGs of each family may go, in what portions, and which families keep the same fraction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from fx_oto.core.errors import SettingsError
from fx_oto.core.patterns import check_matched, patterns_in
from fx_oto.zigs.depth import Depth
from fx_oto.zigs.families import Family

__all__ = ["Limits", "PerFamily", "Rules", "Uniform", "check_patterns", "portions"]

PerFamily = float | Mapping[str, float]
Uniform = str | Iterable[str | Iterable[str]]


@dataclass(frozen=True)
class Rules:
    """What a user lets go.

    Attributes:
        min_kept: number (int) or fraction (float) of ZIGs to keep, of all families or by glob of their tensors' or
            modules' names. 0 (int): all of a family may go where its branch goes with it, else one is kept.
        max_group_sparsity: largest fraction of a family that may go, of all or by glob.
        round_to: the channels left of each family are a multiple of this number, or all.
        uniform: sets of globs; the families that one set matches keep the same fraction.
        unprunable: globs of families that are left alone.
        prune_frozen: whether families with parameters that are not trained are pruned.
    """

    min_kept: PerFamily = 1
    max_group_sparsity: PerFamily = 1.0
    round_to: int = 1
    uniform: tuple[tuple[str, ...], ...] = ()
    unprunable: tuple[str, ...] = ()
    prune_frozen: bool = False

    @classmethod
    def of(
        cls, *, uniform: Uniform = (), unprunable: Iterable[str] = (), prune_frozen: bool = False, **others: Any
    ) -> Rules:
        """Take globs as a user gives them: each alone, or several that stand for one set of families."""
        alone = isinstance(uniform, str) or not isinstance(uniform, Iterable)
        given: list[Any] = [uniform] if alone else list(uniform)
        sets = tuple(map(patterns_in, given))
        return cls(uniform=sets, unprunable=patterns_in(unprunable), prune_frozen=prune_frozen, **others)

    def settings(self) -> dict[str, str]:
        """Each by its name, in words that are the same wherever globs stand for the same sets: ``"round_to=8"``."""
        found: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        found["uniform"] = sorted(sorted(patterns) for patterns in self.uniform)
        found["unprunable"] = sorted(self.unprunable)
        return {
            name: f"{name}={dict(value) if isinstance(value, Mapping) else value!r}" for name, value in found.items()
        }


@dataclass(frozen=True)
class Limits:
    """How many ZIGs of each family may go, in what portions, and which families keep the same fraction.

    Attributes:
        most: the largest number that may go, for each family.
        steps: channels are kept in multiples of this many ZIGs, for each family.
        alike: sets of families that keep the same fraction: equally many, where they are of one size.
        parts: for each family, how many of its ZIGs go at once, so that those alike keep the same fraction: of families
            of 64 and 96 ZIGs, 2 and 3; of families of one size, 1.
    """

    most: tuple[int, ...]
    steps: tuple[int, ...]
    alike: tuple[tuple[int, ...], ...] = ()
    parts: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        families: Sequence[Family],
        left_alone: Sequence[bool],
        rules: Rules,
        depth: Depth | None = None,
    ) -> Limits:
        """Read a user's limits.

        Args:
            families: the partition's families.
            left_alone: for each family, whether nothing is taken from it.
            rules: what a user lets go; of several globs that match a family, the first counts.
            depth: tells which families can go altogether; None: none can.

        Raises:
            SettingsError: a limit is out of range, a glob matches no family, or such of sizes without a common divisor
                that are to keep the same fraction, or 0 are to be kept of families of which none can go altogether.
        """
        round_to = rules.round_to
        if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
            raise SettingsError(f"round_to must be a positive integer, found {round_to!r}")
        kept = _per_family("min_kept", rules.min_kept, families, 0.0)
        caps = _per_family("max_group_sparsity", rules.max_group_sparsity, families, 1.0)
        whole = _whole(families, left_alone, rules.min_kept, kept, caps, depth)
        rows = zip(families, left_alone, kept, caps, strict=True)
        limits = [
            0 if alone else _most(len(family), least, cap, int(i not in whole))
            for i, (family, alone, least, cap) in enumerate(rows)
        ]
        steps = [_step(family, round_to) for family in families]
        alike = _alike(families, rules.uniform)
        parts = [1] * len(families)
        for those in alike:
            common = math.gcd(*(len(families[j]) for j in those))
            for i in those:
                parts[i] = len(families[i]) // common
            limit = min(limits[j] // parts[j] for j in those)  # the strictest of them holds for all
            step = math.lcm(*(steps[j] // math.gcd(steps[j], parts[j]) for j in those))
            for i in those:
                limits[i], steps[i] = limit * parts[i], step * parts[i]
        most = [portions(len(one), limit, step)[-1] for one, limit, step in zip(families, limits, steps, strict=True)]
        return cls(tuple(most), tuple(steps), alike, tuple(parts))

    @property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """The sets of families that keep the same fraction, and each other family alone."""
        together = {i for those in self.alike for i in those}
        return (*self.alike, *((i,) for i in range(len(self.most)) if i not in together))


def _alike(families: Sequence[Family], uniform: Sequence[Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    """The families that each set of patterns matches; those that share one are one set."""
    check_patterns("uniform", [pattern for patterns in uniform for pattern in patterns], families)
    sets: list[set[int]] = []
    for patterns in uniform:
        found = {i for i, family in enumerate(families) if any(map(family.matches, patterns))}
        pattern = ", ".join(patterns)
        sizes = sorted({len(families[i]) for i in found})
        if len(sizes) > 1 and math.gcd(*sizes) == 1:
            raise SettingsError(
                f"the families that {pattern!r} matches in uniform cannot keep the same fraction, for their sizes have "
                f"no common divisor: {', '.join(map(str, sizes))} ZIGs. Give a pattern for each size"
            )
        found = found.union(*(one for one in sets if one & found))
        sets = [one for one in sets if not one & found] + [found]
    return tuple(tuple(sorted(one)) for one in sets)


def _whole(
    families: Sequence[Family],
    alone: Sequence[bool],
    given: PerFamily,
    kept: Sequence[float],
    caps: Sequence[float],
    depth: Depth | None,
) -> frozenset[int]:
    """The families of which none need be kept: 0 (int) was given for them, and a branch goes with each."""
    wanted = [i for i, least in enumerate(kept) if type(least) is int and not least and not alone[i] and caps[i] == 1]
    found = depth.may_go(wanted) if depth is not None and wanted else frozenset[int]()
    for pattern, least in given.items() if isinstance(given, Mapping) else ():
        mine = [i for i, family in enumerate(families) if family.matches(pattern)]
        if type(least) is int and not least and set(mine) & set(wanted) and not found.intersection(mine):
            raise SettingsError(
                f"min_kept={{{pattern!r}: 0}} asks that all of {families[mine[0]].name!r}"
                f"{' and others' if len(mine) > 1 else ''} may go, but no branch goes with it: without it an output "
                "would depend on no input, or what is left of it is read where its size is needed. Keep 1 or more"
            )
    return found


def _most(size: int, least: float, cap: float, floor: int = 1) -> int:
    if isinstance(least, bool) or least < 0 or (isinstance(least, float) and least >= 1):
        whole = ": what is to be kept whole is named in unprunable" if least == 1 else ""
        raise SettingsError(f"min_kept must be a count (int) or a fraction in [0, 1) (float), found {least!r}{whole}")
    if not 0 <= cap <= 1:
        raise SettingsError(f"max_group_sparsity must be in [0, 1], found {cap!r}")
    kept = math.ceil(least * size - 1e-9) if isinstance(least, float) else least
    return max(0, min(size - max(floor, kept), math.floor(cap * size + 1e-9)))


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
