"""A written-back model and its configuration: what ``from_pretrained`` builds must be the same model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fx_oto.core.context import Context
from fx_oto.deploy.attributes import Attribute, Values
from fx_oto.deploy.comparing import compared, outputs
from fx_oto.deploy.rebuilding import (
    Configured,
    Key,
    Place,
    Sizes,
    dims_of,
    fill,
    named,
    number_at,
    numbers_of,
    shapes_of,
)
from fx_oto.deploy.solving import Search
from fx_oto.deploy.written import SetAttribute, WriteBack

__all__ = ["Configuring", "configured"]

_MOST_NAMED = 2


@dataclass(frozen=True)
class Configuring:
    """What became of a model's configuration.

    Attributes:
        model: the model, with its configuration and all that follows from it set, where that can be.
        changes: the settings.
        attributes: the numbers that modules hold, and that are others now.
        refusal: why the configuration does not say it; empty if it does.
        call: what builds it, as code spells it, if that is not its class with a configuration.
    """

    model: nn.Module
    changes: tuple[SetAttribute, ...] = ()
    attributes: tuple[SetAttribute, ...] = ()
    refusal: str = ""
    call: str = ""


class _NotSaidError(Exception):
    """A configuration cannot say a model; the text tells why."""


def configured(
    result: nn.Module,
    report: WriteBack,
    base: Configured,
    small: GraphModule,
    needed: Values,
    make: Callable[[Values], nn.Module],
) -> Configuring:
    """Set the configuration of a written-back model to its sizes.

    Args:
        result: the written-back model.
        report: what was done to it.
        base: what builds the user's model.
        small: the compact graph.
        needed: the numbers that code of modules needs.
        make: writes the compact graph back with other values of attributes.
    """
    try:
        _check_classes(report)
        return _Configuration(result, base, small, needed, make).said()
    except _NotSaidError as error:
        return Configuring(result, refusal=str(error))


def _check_classes(report: WriteBack) -> None:
    for layer in report.layers:
        raise _NotSaidError(f"{layer.module!r} is of the class {layer.after} now, which no config asks for")
    for graph in report.graphs:
        where = repr(graph.module) if graph.module else "the model"
        raise _NotSaidError(f"{where} computes a graph, as its code does not fit: {graph.reason}")


class _Configuration:
    def __init__(
        self, result: nn.Module, base: Configured, small: GraphModule, needed: Values, make: Callable[[Values], Any]
    ) -> None:
        self.result, self.small, self.make, self.model = result, small, make, base.like
        needed = dict(needed) | _leaves_numbers(result, base.like)
        self.base, self.text = Configured(base.recipe, base.like, tuple(needed)), base.recipe.text
        self.wanted = dims_of(result)
        self.wanted.update(needed.items())

    def said(self) -> Configuring:
        """The model with its configuration.

        Raises:
            _NotSaidError: the configuration cannot say it.
        """
        self._check_base()
        failed = ""
        for values in self._candidates():
            try:
                return self._verified(values)
            except _NotSaidError as error:
                failed = failed or str(error)
        raise _NotSaidError(failed or self._text())

    def _check_base(self) -> None:
        try:
            full = self.base.build({})
        except Exception as error:
            raise _NotSaidError(f"{self.text} fails ({type(error).__name__}: {error})") from error
        theirs, mine = shapes_of(full), shapes_of(self.model)
        odd = next((name for name in (*mine, *theirs) if mine.get(name) != theirs.get(name)), None)
        if odd is not None:
            raise _NotSaidError(
                f"{self.text} is another model than the one that was compressed: {odd!r} is "
                f"{mine.get(odd, 'not there')} in the model, and {theirs.get(odd, 'not there')} by this"
            )
        added = next((name for name in shapes_of(self.result) if name not in mine), None)
        if added is not None:
            raise _NotSaidError(f"{added!r} is new: it holds what channels that are gone contributed")

    def _candidates(self) -> Iterator[dict[Key, Any]]:
        self.search = Search(self.base, self.wanted)
        yield from self.search.solutions()
        explicit = self.base.left_out()
        if explicit:
            search = Search(self.base.explicit(), self.wanted)
            for values in search.solutions():
                yield self._shortest(explicit | values, explicit)
            if len(search.wrong(search.nearest)) < len(self.search.wrong(self.search.nearest)):
                self.search = search

    def _shortest(self, values: dict[Key, Any], explicit: dict[Key, Any]) -> dict[Key, Any]:
        """The values without those that the code would compute all the same."""
        for key in explicit:
            fewer = {other: value for other, value in values.items() if other != key}
            if self.base.sizes(fewer) == self.base.sizes(values):
                values = fewer
        return values

    def _verified(self, values: dict[Key, Any]) -> Configuring:
        """The model with these settings, compared with what its class builds from them.

        Raises:
            _NotSaidError: it is not the same.
        """
        before, after = numbers_of(self.base.build({})), numbers_of(self.base.build(values))
        changed = {place: number for place, number in after.items() if before.get(place) != number}
        changed = {place: number for place, number in changed.items() if _is_held(self.model, place)}
        model = self.make(changed)
        any_batch = Context.of(self.small).capture.takes_any_batch
        difference = compared(model, self.small, Context.of(self.small).inputs, any_batch)
        if not difference.fits:
            raise _NotSaidError(f"with all that the config says, it computes something else: {difference.text}")
        self._check_saved(values)
        self._check_same(model, values, any_batch)
        return Configuring(
            model,
            tuple(SetAttribute("", named(key), self._before(key), value) for key, value in values.items()),
            tuple(
                SetAttribute(place.module, place.name, before.get(place), number)
                for place, number in changed.items()
                if len(place.steps) == 1
            ),
            call=self._call(values),
        )

    def _call(self, values: dict[Key, Any]) -> str:
        return self.base.recipe.call(self.base.with_values(values)) if self.base.recipe.call else ""

    def _before(self, key: Key) -> Any:
        try:
            return self.base.value(key)
        except (AttributeError, LookupError):
            return None

    def _check_saved(self, values: dict[Key, Any]) -> None:
        """What a file holds of the configuration must say the same."""
        config = self.base.with_values(values)
        if not hasattr(config, "to_dict") or not hasattr(type(config), "from_dict"):
            return
        try:
            again = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
            found = shapes_of(self.base.build_from(again))
        except Exception as error:
            raise _NotSaidError(f"the config cannot be saved and loaded ({type(error).__name__}: {error})") from error
        if found != shapes_of(self.result):
            raise _NotSaidError(f"{', '.join(map(named, values))} cannot be saved with the config")

    def _check_same(self, model: nn.Module, values: dict[Key, Any], any_batch: bool) -> None:
        """What is built from the settings, with the same state dict, must return the same bit for bit."""
        given = Context.of(self.small).inputs
        for inputs in (given, given.doubled()) if any_batch else (given,):
            wanted = outputs(model, inputs, False)
            try:
                rebuilt = self._rebuilt(model, values)
                found = outputs(rebuilt, inputs, False)
            except Exception as error:
                raise _NotSaidError(f"what {self.text} builds fails ({type(error).__name__}: {error})") from error
            if not all(_equal(*pair) for pair in zip(wanted, found, strict=True)):
                raise _NotSaidError(self._why_another(model, rebuilt))

    def _rebuilt(self, model: nn.Module, values: dict[Key, Any]) -> nn.Module:
        rebuilt = self.base.build(values)
        if not fill(rebuilt, model.state_dict(), model):
            rebuilt = self.base.build(values, filled=True)
            fill(rebuilt, model.state_dict(), model)
        return rebuilt

    def _why_another(self, model: nn.Module, rebuilt: nn.Module) -> str:
        theirs, saved = dict(rebuilt.named_buffers()), model.state_dict()
        buffers = [name for name, held in model.named_buffers() if name not in saved and not _equal(held, theirs[name])]
        why = f", as {buffers[0]!r}, which no file holds, is another" if buffers else ""
        return f"what {self.text} builds computes something else with these parameters{why}"

    def _text(self) -> str:
        wrong = self.search.wrong(self.search.nearest)
        places = [place for place in self.wanted if place in wrong]
        tensors = [place for place in places if not isinstance(place, Attribute)]
        named = [_described(place, self.wanted, self.search.nearest) for place in (tensors or places)[:_MOST_NAMED]]
        more = len(tensors or places) - len(named)
        parts = [*named, *([f"and {more} more"] if more else [])]
        return f"no numbers make {self.text} build all sizes; with those that say most, {', '.join(parts)}"


def _is_held(model: nn.Module, place: Attribute) -> bool:
    """Whether a model has the object that holds a number."""
    return number_at(model, Attribute(place.module, place.steps[:-1])) is not None


def _leaves_numbers(result: nn.Module, model: nn.Module) -> dict[Attribute, float | None]:
    """The epsilons of torch's norms that are others now."""
    before = dict(model.named_modules(remove_duplicate=False))
    return {
        Attribute(path, ("eps",)): module.eps
        for path, module in result.named_modules(remove_duplicate=False)
        if isinstance(module, nn.RMSNorm) and module.eps != getattr(before[path], "eps", None)
    }


def _described(place: Place, wanted: Sizes, found: Sizes) -> str:
    if isinstance(place, Attribute):
        return f"{place} is {found.get(place)}, and must be {wanted[place]}"
    return f"{place[0]}[{place[1]}] has {found.get(place)}, and must have {wanted[place]}"


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
