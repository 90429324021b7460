"""Names of any kind are drawn as they are, as far as the font goes: no maths, no warning, nothing on anything else."""

from __future__ import annotations

import pytest
import torch
from support.pictures import check_legible, texts
from torch import nn

import fx_oto
from fx_oto.core.picture import drawing
from fx_oto.reports.sensitivity import Sensitivity, Trial
from fx_oto.viz.style import clipped, printable, text_width

NAMES = {
    "maths": "$a_{1}^2$",
    "underscore": "_{hidden}",
    "format": "{0}{name}%s",
    "scripts": "层归一化_第一",
    "emoji": "🔥block",
    "right-to-left": "שכבה",
    "long": "W" * 200,
    "longer": "ab_" * 400 + "end",
}
# Of these torch.fx makes no code that can be read, but metrics and series may be called so.
ANY = NAMES | {"lines": "one\ntwo\tthree\rfour\x00", "surrogate": "half\udc80", "commands": "\\frac{1}{2}"}


def network(name):
    """Every module, every parameter, an input and the class of it are called so, as far as Python has it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(name, nn.Sequential(nn.Linear(4, 8), nn.ReLU()))
            self.add_module(f"{name}2", nn.Linear(8, 6))
            self.register_parameter(f"{name}3", nn.Parameter(torch.randn(2, 6)))

        def forward(self, x):
            x = getattr(self, f"{name}2")(getattr(self, name)(x)).relu()
            return x @ getattr(self, f"{name}3").T

    Net.__name__ = name
    return fx_oto.prepare(Net(), torch.randn(2, 4))


def pictures(name):
    gm = network(name)
    zigs = fx_oto.partition(gm)
    zigs.zero_(0.5)
    yield fx_oto.draw_graph(gm)
    yield fx_oto.draw_graph(gm, fold=1)
    yield fx_oto.draw_graph(gm, limit=3)
    yield zigs.draw()
    yield zigs.draw(limit=2)
    small = fx_oto.compress(gm)
    yield fx_oto.plot_widths(gm, small)
    yield fx_oto.plot_widths(gm, small, limit=2)
    yield fx_oto.sensitivity(gm, lambda gm: {name: 1.0, f"{name}2": 2.0}).plot()


SIMPLE = ("underscore", "emoji", "long", "right-to-left")  # they are like others, and each takes seconds


@pytest.mark.parametrize(
    "name", [pytest.param(NAMES[k], id=k, marks=pytest.mark.slow if k in SIMPLE else ()) for k in NAMES]
)
def test_names_of_all_kinds_can_be_drawn(name):
    for picture in pictures(name):
        _check_legible(picture)
        _check_drawn(picture, name)


def _check_legible(picture):
    with drawing():  # as it is saved: without hinting, a text is as wide as was reckoned
        check_legible(picture)


def _check_drawn(picture, name):
    """It is there, at least with its end; nothing is maths, and nothing has two lines."""
    found = [text for text in picture.figure.findobj(_is_text) if text.get_visible() and text.get_text().strip()]
    assert not any("\n" in text.get_text() for text in found)
    assert not any("$" in text.get_text() and text.get_parse_math() for text in found)
    assert any(printable(name)[-5:] in text.get_text() for text in found)
    assert picture.figure.get_figwidth() < 30
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert picture.to_svg().startswith("<?xml")


def _is_text(artist):
    import matplotlib.text

    return isinstance(artist, matplotlib.text.Text)


def sensitivity(name, families):
    def trial(position, fraction):
        metrics = {name: 0.5 + fraction, f"{name} again": 2.0 - fraction}
        return Trial(position, f"{name}{position}.weight", "", fraction, int(8 * fraction), 8, 100, 100, metrics)

    trials = [trial(position, fraction) for position in range(families) for fraction in (0.25, 0.5)]
    return Sensitivity(trial(-1, 0), tuple(trials))


@pytest.mark.parametrize("name", ANY.values(), ids=ANY)
@pytest.mark.parametrize("families", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_a_sensitivity_names_every_family(name, families):
    picture = sensitivity(name, families).plot()
    _check_legible(picture)
    _check_drawn(picture, f"{name}0.weight")
    shown = [text.strip() for text, _ in texts(picture.figure)]
    ends = printable(name)[-3:]
    assert all(any(text.endswith(f"{ends}{i}.weight") for text in shown) for i in range(families))


@pytest.mark.parametrize("name", ANY.values(), ids=ANY)
def test_a_tradeoff_names_every_series(name):
    points = {name: [(10, 80), (20, 85)], f"{name} again": [(10, 70)]}
    picture = fx_oto.plot_tradeoff({name: points, "two": points}, baseline={"two": 90}, xlabel=name, ylabel=name)
    _check_legible(picture)
    _check_drawn(picture, name)
    assert len(picture.figure.legends[0].get_texts()) == 3


def test_a_character_that_the_font_lacks_is_a_mark():
    assert printable("a层b🔥c") == "a\ufffdb\ufffdc"
    assert printable("one\ntwo\udc80") == "one\\ntwo\\udc80"
    assert printable("Größe → ∑ שכבה $_{}") == "Größe → ∑ שכבה $_{}"
    assert clipped("层" * 300, 7, 1.0).strip("\ufffd") == "…"
    assert text_width(clipped("层" * 300, 7, 1.0), 7) <= 1.0
