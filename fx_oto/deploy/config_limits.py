"""Before a training: which families a model's configuration can say, and which it cannot."""

from __future__ import annotations

import copy
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fx_oto.capture import unwrapped
from fx_oto.core.errors import FxOtoError, InputError
from fx_oto.core.tables import Tabular, counted, table
from fx_oto.deploy.copying import all_tensors
from fx_oto.deploy.rebuilding import Configured, Key, Place, Sizes, dims_of, named
from fx_oto.deploy.recipes import Build, recipe_of
from fx_oto.deploy.write_back import write_back
from fx_oto.deploy.written import WriteBack
from fx_oto.passes.physical_slicing import PhysicalSlicing
from fx_oto.zigs.families import Family
from fx_oto.zigs.partition import partition

__all__ = ["ConfigLimits", "TiedFamilies", "config_limits"]


_WIDTH = 50


@dataclass(frozen=True)
class TiedFamilies:
    """Families whose sizes the same settings of a configuration say.

    Attributes:
        patterns: globs that match these families, and no other; one, if one is enough.
        families: their names.
        zigs: how many ZIGs each of them has, ascending, without repeats.
        settings: names of the settings.
        reason: why they must stay whole; empty if they may go, each of them the same fraction.
    """

    patterns: tuple[str, ...]
    families: tuple[str, ...]
    zigs: tuple[int, ...]
    settings: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class ConfigLimits(Tabular):
    """What a model's configuration can say of a pruned model, as options of ``DHSPG``.

    Attributes:
        tied: the families, by the settings that say them.

    Example:
        >>> import torch, fx_oto
        >>> from types import SimpleNamespace
        >>> class Net(torch.nn.Sequential):
        ...     def __init__(self, config):
        ...         super().__init__(torch.nn.Linear(4, config.width), torch.nn.Linear(config.width, 2))
        ...         self.config = config
        >>> net = Net(SimpleNamespace(width=8))
        >>> limits = fx_oto.config_limits(fx_oto.prepare(net, torch.randn(2, 4)), net)
        >>> limits.uniform, limits.unprunable
        (('0',), ())
    """

    tied: tuple[TiedFamilies, ...]

    @property
    def uniform(self) -> tuple[str | tuple[str, ...], ...]:
        """Globs, or several together, each of families that may go, and must keep the same fraction."""
        return tuple(one.patterns if one.patterns[1:] else one.patterns[0] for one in self.tied if not one.reason)

    @property
    def unprunable(self) -> tuple[str, ...]:
        """Globs of families that must stay whole."""
        return tuple(pattern for one in self.tied if one.reason for pattern in one.patterns)

    @property
    def _summary(self) -> str:
        kept = counted(sum(len(one.families) for one in self.tied if one.reason), "family", "families")
        free = counted(sum(len(one.families) for one in self.tied if not one.reason), "family", "families")
        return f"{free} can go as the config says, and {kept} must stay whole"

    def to_dict(self) -> dict[str, Any]:
        """``uniform``, ``unprunable``, and ``tied``, with what each holds."""
        return {
            "uniform": self.uniform,
            "unprunable": self.unprunable,
            "tied": [
                {name: list(v) if isinstance(v, tuple) else v for name, v in vars(one).items()} for one in self.tied
            ],
        }

    def _tables(self, style: str) -> tuple[str, ...]:
        rows = [
            (
                "\n".join(one.patterns),
                "/".join(map(str, one.zigs)),
                "\n".join(one.settings),
                textwrap.fill(one.reason or "uniform", _WIDTH),
            )
            for one in self.tied
        ]
        return (table(rows, ("families", "ZIGs", "config", "uniform, or whole because"), style),)


def config_limits(gm: GraphModule, model: nn.Module, build: Build | None = None) -> ConfigLimits:
    """Find what of a prepared model can go so that the model's ``config`` can say it, and ``from_pretrained`` build it.

    The class is built from configurations with other numbers, to see which sizes depend on which setting. Then half of
    all that may go is cut out of a copy, which is written back; where that does not fit, parts are tried alone.

    Args:
        gm: what ``prepare`` returned; it is not changed.
        model: the model that was given to ``prepare``, with a ``config`` from which ``type(model)(config)`` builds it.
        build: what builds it in the place of its class, as for ``write_back``.

    Returns:
        Globs for ``DHSPG(gm, …, uniform=limits.uniform, unprunable=limits.unprunable)``; a table when printed.

    Raises:
        InputError: the model has no such ``config``, or ``build`` builds another one.
        MissingResultError: ``gm`` is not prepared.

    Example:
        >>> import torch, fx_oto
        >>> from types import SimpleNamespace
        >>> class Net(torch.nn.Module):
        ...     def __init__(self, config):
        ...         super().__init__()
        ...         self.config = config
        ...         self.first = torch.nn.Linear(4, config.width)
        ...         self.last = torch.nn.Linear(config.width, 2)
        ...     def forward(self, x):
        ...         return self.last(self.first(x).relu())
        >>> net = Net(SimpleNamespace(width=8))
        >>> print(fx_oto.config_limits(fx_oto.prepare(net, torch.randn(2, 4)), net))
        1 family can go as the config says, and 0 families must stay whole
        <BLANKLINE>
        families    ZIGs    config    uniform, or whole because
        ----------  ------  --------  ---------------------------
        first       8       width     uniform
    """
    model = unwrapped(model)
    families = partition(gm).families
    return ConfigLimits(_Limits(gm, model, families, build).tied())


class _Limits:
    """What the settings of a model's configuration have to do with its families.

    Raises:
        InputError: the model's class does not build it from a configuration.
    """

    def __init__(self, gm: GraphModule, model: nn.Module, families: Sequence[Family], build: Build | None) -> None:
        self.gm, self.model, self.families, self.build = gm, model, families, build
        base, first = _configured(model, build), _first_names(model)
        sizes = dims_of(model)
        self.places = [_places(family, sizes) for family in families]
        prunable = {(slot.tensor, slot.dim) for family in families for slot in family.slots}
        self.all: dict[Key, set[Place]] = {}
        for key in base.numbers():
            changed: Iterable[Place] = (base.effect(key) or (None, ()))[1]
            places: set[Place] = {(first.get(one[0], one[0]), one[1]) for one in changed if isinstance(one, tuple)}
            if places and places <= prunable:  # else it changes what is kept whole
                self.all[key] = places
        self.settings = self._needed()
        self.reasons: dict[int, str] = {}
        self.fitting: set[tuple[int, ...]] = set()

    def _needed(self) -> dict[Key, set[Place]]:
        """The settings without those that say nothing more, as the width of heads where there is their number."""
        needed = dict(self.all)
        for key in sorted(self.all, key=lambda key: -len(self.all[key])):
            fewer = {other: places for other, places in needed.items() if other != key}
            if self._said(fewer) == self._said(self.all):
                needed = fewer
        return needed

    def _said(self, settings: dict[Key, set[Place]]) -> list[bool]:
        """For each family, whether settings say all that it fills."""
        every = set().union(*settings.values())
        return [mine <= every for mine in self.places]

    def tied(self) -> tuple[TiedFamilies, ...]:
        """All families, by the settings that say them.

        Where what shares settings cannot go, the one with the widest reach stays as it is, such as the width of the
        whole network, of which that of each MLP is a multiple: others may still say a part.
        """
        while True:
            groups = self._groups()
            free = [group for group in groups if not self._reason(group)]
            failing = {group: why for group in self._untried(free) if (why := self._refusal([group]))}
            if not failing:
                return tuple(self._described(group) for group in self._joined(groups))
            for group, why in failing.items():
                self.reasons.update(dict.fromkeys(group, why))
                mine = self._settings_of(group)
                del self.all[max(mine, key=lambda key: len(mine[key]))]
            self.settings = self._needed()

    def _groups(self) -> list[tuple[int, ...]]:
        """The positions of families that share settings."""
        groups = [{i} for i in range(len(self.families))]
        for places in self.settings.values():
            hit = [group for group in groups if any(self.places[i] & places for i in group)]
            groups = [group for group in groups if group not in hit] + [set().union(*hit)]
        return sorted(tuple(sorted(group)) for group in groups if group)

    def _joined(self, groups: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The same, with those that must stay whole for one reason together."""
        whole: dict[str, tuple[int, ...]] = {}
        for group in groups:
            if reason := self._reason(group):
                whole[reason] = (*whole.get(reason, ()), *group)
        return [*(group for group in groups if not self._reason(group)), *whole.values()]

    def _settings_of(self, group: tuple[int, ...]) -> dict[Key, set[Place]]:
        mine = set().union(*(self.places[i] for i in group))
        return {key: places for key, places in self.settings.items() if places & mine}

    def _reason(self, group: tuple[int, ...]) -> str:
        """Why nothing of a group can go, as far as sizes tell."""
        mine = set().union(*(self.places[i] for i in group))
        if mine <= set().union(*self._settings_of(group).values()):
            return ""
        known = [self.reasons[i] for i in group if i in self.reasons]
        return known[0] if known else "no number says the size of these alone"

    def _untried(self, free: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The groups that are to be tried alone: none, if all of them fit together."""
        several = [
            group for group in free if group not in self.fitting and any(len(self.families[i]) > 1 for i in group)
        ]
        if several and not self._refusal(several):
            self.fitting.update(several)
            return []
        return several

    def _refusal(self, groups: Sequence[tuple[int, ...]]) -> str:
        """What speaks against cutting half of these; empty if nothing does."""
        trial = copy.deepcopy(self.gm)
        zigs = partition(trial)
        for group in groups:
            whole = math.gcd(*(len(self.families[i]) for i in group))
            if whole == 1:
                sizes = sorted({len(self.families[i]) for i in group})
                return f"one number says the sizes of families of {', '.join(map(str, sizes))} ZIGs"
            for i in group:
                zigs.zero_zigs_(i, torch.arange(whole // 2 * (len(self.families[i]) // whole)))
        try:
            small = PhysicalSlicing()(trial).graph_module
            return WriteBack.of(write_back(small, self.model, self.build)).config_refusal
        except FxOtoError as error:
            return str(error)

    def _described(self, group: tuple[int, ...]) -> TiedFamilies:
        mine = [self.families[i] for i in group]
        zigs = tuple(sorted({len(family) for family in mine}))
        settings = tuple(map(named, self._settings_of(group)))
        return TiedFamilies(self._patterns(group), tuple(one.name for one in mine), zigs, settings, self._reason(group))

    def _patterns(self, members: tuple[int, ...]) -> tuple[str, ...]:
        """Globs that match some families, and no other: one, if that can be."""
        mine = [self.families[i] for i in members]
        others = [family for i, family in enumerate(self.families) if i not in members]
        names = [family.name for family in mine]
        axes = tuple(f"{slot.tensor}[{slot.dim}]" for slot in (family.variables[0] for family in mine))
        for patterns in (*_globs(names), axes):
            every = all(any(map(one.matches, patterns)) for one in mine)
            if every and not any(any(map(one.matches, patterns)) for one in others):
                return patterns
        return tuple(names)


def _configured(model: nn.Module, build: Build | None) -> Configured:
    """What builds the model, with settings that are left out made."""
    recipe, kind = recipe_of(model, build), type(model).__name__
    if recipe is None:
        raise InputError(f"{kind} has no config from which {kind}(config) builds it: give build, which builds it")
    base = Configured(recipe, model)
    if base.sizes({}) != dims_of(model):
        raise InputError(f"{recipe.text} does not build the tensors that the model has, so it cannot say what they are")
    return base.explicit()


def _places(family: Family, sizes: Sizes) -> set[Place]:
    """The dimensions that a family fills; if there is none, those that it has a part in."""
    parts: dict[Place, int] = {(slot.tensor, slot.dim): slot.index.numel() for slot in family.slots}
    return {place for place, part in parts.items() if sizes.get(place) == part} or set(parts)


def _first_names(model: nn.Module) -> dict[str, str]:
    """For each name of a tensor, the name that graphs have for it."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in all_tensors(model)}


def _globs(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Globs that match all names, the plainest first."""
    parts = [name.split(".") for name in names]
    if len(set(map(len, parts))) == 1:
        alike = [column[0] if len(set(column)) == 1 else "*" for column in zip(*parts, strict=True)]
        yield from ((".".join(alike[:end]),) for end in (-1, len(alike)) if set(alike[:end]) - {"*"})
    end: list[str] = []
    for column in zip(*(reversed(one) for one in parts), strict=False):
        if len(set(column)) > 1:
            break
        end.insert(0, column[0])
    yield from ((".".join(("*", *one)),) for one in (end[:-1], end) if one)
    numbered = [["*" if part.isdigit() else part for part in one] for one in parts]
    yield from (tuple(dict.fromkeys(".".join(one[:last]) for one in numbered)) for last in (-1, None))
