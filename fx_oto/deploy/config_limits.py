"""Before a training: which families a model's configuration can say, if they keep equally many, and which it cannot."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
        reason: why the configuration cannot say less of them; empty if it can, where they keep equally many.
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
    """

    tied: tuple[TiedFamilies, ...]

    @property
    def uniform(self) -> tuple[str | tuple[str, ...], ...]:
        """Globs, or several together, of families that may go, each of such that must keep equally many."""
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
    all that may go is cut out of a copy, and written back; what does not fit is tried alone.

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
    limits = _Limits(model, families, build)
    return ConfigLimits(tuple(limits.tried(gm, [limits.tied(members) for members in limits.groups()])))


class _Limits:
    """What the settings of a model's configuration have to do with its families.

    Raises:
        InputError: the model's class does not build it from a configuration.
    """

    def __init__(self, model: nn.Module, families: Sequence[Family], build: Build | None) -> None:
        self.model, self.families, self.build = model, families, build
        base, first = _configured(model, build), _first_names(model)
        sizes = dims_of(model)
        self.places = [_places(family, sizes) for family in families]
        prunable = {(slot.tensor, slot.dim) for family in families for slot in family.slots}
        self.settings: dict[Key, set[Place]] = {}
        for key in base.numbers():
            changed: Iterable[Place] = (base.effect(key) or (None, ()))[1]
            places: set[Place] = {(first.get(one[0], one[0]), one[1]) for one in changed if isinstance(one, tuple)}
            if places and places <= prunable:  # else it changes what is kept whole
                self.settings[key] = places

    def groups(self) -> list[list[int]]:
        """The positions of families that share a setting."""
        groups = [{i} for i in range(len(self.families))]
        for places in self.settings.values():
            hit = [group for group in groups if any(self.places[i] & places for i in group)]
            groups = [group for group in groups if group not in hit] + [set().union(*hit)]
        return sorted(sorted(group) for group in groups)

    def tied(self, members: list[int]) -> TiedFamilies:
        """What the configuration can say of families that share settings."""
        mine = [self.families[i] for i in members]
        theirs = set().union(*(self.places[i] for i in members))
        said = {key: places for key, places in self.settings.items() if places & theirs}
        zigs = tuple(sorted({len(family) for family in mine}))
        settings = tuple(map(named, said))
        reason = ""
        if not theirs <= set().union(*said.values()):
            reason = "no number of the config says the size of these alone"
        elif len(zigs) > 1:
            reason = "one number of the config says sizes of families with different numbers of ZIGs"
        return TiedFamilies(self._patterns(members), tuple(one.name for one in mine), zigs, settings, reason)

    def _patterns(self, members: list[int]) -> tuple[str, ...]:
        """Globs that match some families, and no other: one, if that can be."""
        mine = [self.families[i] for i in members]
        others = [family for i, family in enumerate(self.families) if i not in members]
        names = [family.name for family in mine]
        for patterns in _globs(names):
            every = all(any(map(one.matches, patterns)) for one in mine)
            if every and not any(any(map(one.matches, patterns)) for one in others):
                return patterns
        return tuple(names)

    def tried(self, gm: GraphModule, tied: list[TiedFamilies]) -> list[TiedFamilies]:
        """Cut what can go by its sizes out of a copy, all at once, or where that fails, each alone."""
        free = [one for one in tied if not one.reason and one.zigs[0] > 1]
        if not free or not self._refusal(gm, free):
            return tied
        return [replace(one, reason=self._refusal(gm, [one])) if one in free else one for one in tied]

    def _refusal(self, gm: GraphModule, tied: Sequence[TiedFamilies]) -> str:
        trial = copy.deepcopy(gm)
        zigs = partition(trial)
        names = {name for one in tied for name in one.families}
        for i, family in enumerate(self.families):
            if family.name in names:
                zigs.zero_zigs_(i, torch.arange(len(family) // 2))
        try:
            small = PhysicalSlicing()(trial).graph_module
            return WriteBack.of(write_back(small, self.model, self.build)).config_refusal
        except FxOtoError as error:
            return str(error)


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
