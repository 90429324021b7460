"""Values of a configuration's numbers with which its class builds given sizes, found by building."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fx_oto.deploy.attributes import Attribute
from fx_oto.deploy.rebuilding import Configured, Key, Place, Sizes

__all__ = ["Search"]

_MOST_BUILT = 300


class Search:
    """Sets one number of a configuration after the other, each to what makes some size right and no other wrong.

    Attributes:
        nearest: the sizes with the fewest that are wrong so far.
    """

    def __init__(self, configured: Configured, wanted: Sizes) -> None:
        self.configured, self.wanted = configured, wanted
        self.keys = configured.numbers()
        self.nearest: Sizes = configured.sizes({}) or {}
        self._visited: set[frozenset[tuple[Key, Any]]] = set()

    def solutions(self) -> Iterator[dict[Key, Any]]:
        """Values with which every size is as wanted."""
        yield from self._from({}, self.configured.sizes({}))

    def wrong(self, sizes: Sizes) -> set[Place]:
        """The places whose sizes are not as wanted."""
        return {place for place, size in self.wanted.items() if sizes.get(place) != size}

    def _from(self, values: dict[Key, Any], sizes: Sizes | None) -> Iterator[dict[Key, Any]]:
        known = frozenset(values.items())
        if sizes is None or known in self._visited or len(self._visited) >= _MOST_BUILT:
            return
        self._visited.add(known)
        wrong = self.wrong(sizes)
        if len(wrong) < len(self.wrong(self.nearest)):
            self.nearest = sizes
        if not wrong:
            yield values
            return
        for key in self._open(wrong, values):
            for value in self._suggested(key, sizes, wrong):
                other = {**values, key: value}
                found = self.configured.sizes(other)
                if found is not None and found.keys() == sizes.keys() and _is_better(self.wrong(found), wrong):
                    yield from self._from(other, found)

    def _open(self, wrong: set[Place], values: dict[Key, Any]) -> list[Key]:
        """The settings that may mend one of the wrong places, that with the fewest of them; tensors come first."""
        ordered = [place for place in self.wanted if place in wrong]  # of a set, the order is never the same
        mending = {
            place: [key for key in self.keys if key not in values and place in self._changed(key)] for place in ordered
        }
        some = {place: keys for place, keys in mending.items() if keys}
        tensors = [keys for place, keys in some.items() if not isinstance(place, Attribute)]
        return min(tensors or some.values(), key=len, default=[])

    def _changed(self, key: Key) -> Sizes:
        effect = self.configured.effect(key)
        return effect[1] if effect is not None else {}

    def _suggested(self, key: Key, sizes: Sizes, wrong: set[Place]) -> list[Any]:
        """Values of a setting that may make a wrong size right."""
        effect, value = self.configured.effect(key), self.configured.value(key)
        if effect is None:
            return []
        found: dict[Any, None] = {}
        base = self.configured.sizes({}) or {}
        for place, size in effect[1].items():
            if place in wrong and _are_numbers(sizes[place], self.wanted[place], size, base[place]):
                slope = (effect[0] - value) / (size - base[place])
                ratio = value * self.wanted[place] / sizes[place] if sizes[place] else value
                along = value + (self.wanted[place] - sizes[place]) * slope
                found |= dict.fromkeys(_rounded(value, self.wanted[place], ratio, along))
        return [one for one in found if one != value]


def _are_numbers(*found: Any) -> bool:
    return all(type(one) in (int, float) for one in found)


def _rounded(like: Any, *values: Any) -> list[Any]:
    """As numbers of a kind; of one that code rounds down, also the next above."""
    if isinstance(like, int):
        return [round(one) for one in values if round(one) > 0 and math.isclose(one, round(one))]
    return [number for one in values if one > 0 for number in (float(one), math.nextafter(one, math.inf))]


def _is_better(now: set[Place], before: set[Place]) -> bool:
    """Whether fewer tensors are wrong, and no other ones; or, with the same, fewer numbers that modules hold."""
    tensors, attributes = _apart(now)
    tensors_before, attributes_before = _apart(before)
    return tensors < tensors_before or (tensors == tensors_before and len(attributes) < len(attributes_before))


def _apart(places: set[Place]) -> tuple[set[Place], set[Place]]:
    attributes: set[Place] = {place for place in places if isinstance(place, Attribute)}
    return places - attributes, attributes
