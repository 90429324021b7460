"""Models that remember the sizes of their last call: what they were called on before makes no difference."""

from __future__ import annotations

import copy

import pytest
import torch
from support.kinds import holds
from torch import nn

import fx_oto

IMAGES, OTHERS = torch.randn(2, 3, 6, 8), [torch.randn(3, 3, 6, 8), torch.randn(2, 3, 5, 7), torch.randn(1, 3, 12, 4)]


class Placed(nn.Module):
    """Adds places to each pixel, which it makes anew where sizes have changed."""

    shape = None

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 3, 1)
        self.places = torch.empty(0)
        self.made = {}

    def forward(self, x):
        h = self.second(self.first(x).relu())
        return self.last((h + self.places_for(h)).relu())

    def new(self, h):
        rows = torch.arange(h.size(2), dtype=h.dtype, device=h.device)
        return rows[:, None] / 7 - torch.linspace(0, 1, h.size(3), dtype=h.dtype, device=h.device)


class OfShape(Placed):
    def places_for(self, h):
        if self.shape != h.shape:
            self.places, self.shape = self.new(h), h.shape
        return self.places


class OfSides(Placed):
    def places_for(self, h):
        height, width = h.shape[-2:]
        if self.places.numel() == 0 or self.places.size(-2) != height or self.places.size(-1) != width:
            self.places = self.new(h)
        return self.places


class OfAll(Placed):
    def __init__(self):
        super().__init__()
        self.shape = None

    def places_for(self, h):
        if self.shape is None or self.shape != h.shape:
            self.places, self.shape = self.new(h), h.shape
        return self.places


class OfKey(Placed):
    def places_for(self, h):
        key = tuple(h.shape[2:])
        if self.made.get("key") != key:
            self.made = {"key": key, "places": self.new(h)}
        return self.made["places"]


class OfLength(Placed):
    """Asks whether a number has changed that it keeps, as the only size that code asks about."""

    shape = 0

    def places_for(self, h):
        if self.shape != h.size(3):
            self.shape, self.places = h.size(3), torch.linspace(0, 1, h.size(3), dtype=h.dtype)
        return self.places


@pytest.mark.parametrize("kind", Placed.__subclasses__())
def test_sizes_are_free_though_the_model_was_called_on_these(kind):
    model = kind().double()
    for images in (IMAGES, OTHERS[0], IMAGES):
        model(images.double())
    before = dict(vars(model))
    assert not fx_oto.Context.of(fx_oto.trace(model, IMAGES.double())).capture.opaque
    assert all(vars(model)[key] is value for key, value in before.items())
    assert holds(model, IMAGES, OTHERS).zigs == 20


class First(Placed):
    """Keeps what the first images were, whatever comes after."""

    def places_for(self, h):
        if self.shape is None:
            self.shape, self.places = h.shape, h.detach().mean((0, 2, 3), keepdim=True)
        if self.shape == h.shape:
            return self.places
        return -self.places


class Scaled(Placed):
    """Keeps a scale of the first images of each size."""

    def places_for(self, h):
        if self.shape != h.shape:
            self.shape, self.places = h.shape, h.detach().std()
        return self.places


class Longest(Placed):
    """Scales by the largest width so far, until images are much smaller."""

    shape = 0

    def places_for(self, h):
        width = h.size(3)
        if width > self.shape or (width < 5 and self.shape > 5):
            self.shape, self.places = width, torch.ones(width, dtype=h.dtype).sum()
        return 1 / self.places


class Counted(Placed):
    """Counts how often the width has changed, in a tensor without sizes."""

    def places_for(self, h):
        if len(self.places) != h.size(3):
            self.times = getattr(self, "times", torch.zeros((), dtype=h.dtype)) + 1
            self.places = torch.linspace(0, 1, h.size(3), dtype=h.dtype)
        return self.places * self.times


@pytest.mark.parametrize("kind", [Longest, Counted])
def test_what_depends_on_earlier_sizes_is_not_forgotten(kind):
    model = kind().double().eval()
    model(IMAGES.double())
    gm = fx_oto.prepare(model, IMAGES.double())
    for width in (8, 7, 6, 12):
        images = torch.randn(2, 3, 6, width, dtype=torch.float64)
        found = run_unless_captured_at_others(gm, images)
        assert found is not None or width != 8
        if found is not None:
            torch.testing.assert_close(found, copy.deepcopy(model)(images))


def run_unless_captured_at_others(gm, images):
    try:
        return gm(images)
    except AssertionError:
        return None


@pytest.mark.parametrize("kind", [First, Scaled])
def test_what_depends_on_the_first_images_is_captured_as_it_is(kind):
    model = kind().double().eval()
    model(IMAGES.double())
    kept = model.shape, model.places
    with pytest.warns(fx_oto.FxOtoWarning, match="batches of 2 only"):
        gm = fx_oto.prepare(model, IMAGES.double())
    for images in (IMAGES.double(), torch.randn(2, 3, 6, 8, dtype=torch.float64)):
        torch.testing.assert_close(gm(images), model(images))
    assert model.shape == kept[0]
    assert model.places is kept[1]
    assert any(size.fixed or size.decided for size in fx_oto.Context.of(gm).capture.sizes)
