"""A picture is a figure of its own: the same bytes each time, whatever the user's settings, and no pyplot."""

from __future__ import annotations

import io
import random
import subprocess
import sys

import matplotlib
import matplotlib.image
import pytest
import torch
from torch import nn

import fx_oto
from fx_oto.viz.layout import columns, interval_lanes, value_lanes
from fx_oto.viz.style import DARK, FROZEN, clipped, family_colour, text_width

PREPARED = """
import sys, torch, fx_oto
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
gm = fx_oto.prepare(net, torch.randn(2, 4))
assert "matplotlib" not in sys.modules
"""


def run(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120, capture_output=True)


def draw():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return fx_oto.draw_graph(fx_oto.prepare(net, torch.randn(2, 4)))


def test_matplotlib_is_loaded_late_and_pyplot_never():
    run(
        PREPARED + "fx_oto.draw_graph(gm).to_svg(); fx_oto.partition(gm).draw()._repr_png_()\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )


def test_a_missing_matplotlib_is_named_with_its_remedy():
    code = (
        PREPARED
        + "sys.modules['matplotlib'] = None\ntry: fx_oto.draw_graph(gm)\n"
        + "except fx_oto.MissingPackageError as error: print(error)"
    )
    assert run(code).stdout.decode().strip() == (
        "pictures need matplotlib, which is not installed: pip install 'fx-oto[plot]'"
    )


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_files_are_the_same_bytes_each_time(tmp_path, suffix):
    before, after = draw().save(tmp_path / f"one.{suffix}"), draw().save(str(tmp_path / f"two.{suffix}"))
    assert before.read_bytes() == after.read_bytes()
    assert len(before.read_bytes()) > 2000


def test_settings_of_the_user_neither_matter_nor_are_lost():
    expected = draw().to_svg()
    with matplotlib.rc_context({"font.size": 30, "font.family": "serif", "svg.hashsalt": "mine", "axes.grid": False}):
        assert draw().to_svg() == expected
        assert matplotlib.rcParams["font.size"] == 30
        assert matplotlib.rcParams["svg.hashsalt"] == "mine"


def test_a_notebook_gets_a_small_png():
    picture = draw()
    assert matplotlib.image.imread(io.BytesIO(picture._repr_png_())).shape[1] == int(
        picture.figure.get_figwidth() * 110
    )
    assert len(picture._repr_png_()) < len(picture.to_svg()) / 2
    assert not hasattr(picture, "_repr_svg_")


@pytest.mark.parametrize(("name", "found"), [("a.docx", "'.docx'"), ("a", "'none'")])
def test_an_unknown_format_is_refused(tmp_path, name, found):
    with pytest.raises(fx_oto.SettingsError, match=rf"saved as '{name}': expected a suffix .* found {found}; .*svg"):
        draw().save(tmp_path / name)


def test_colours_are_distinct_and_carry_dark_text():
    colours = [family_colour(i) for i in range(24)]
    assert len(set(colours)) == 24
    assert family_colour(24) == colours[0]
    for colour in [*colours, FROZEN]:
        assert (_luminance(colour) + 0.05) / (_luminance(DARK) + 0.05) > 4.5, colour  # the WCAG's minimum


def _luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_no_two_values_in_use_share_a_lane(seed):
    source = random.Random(seed)
    inputs = [sorted(source.sample(range(row), min(row, source.randrange(4)))) for row in range(40)]
    lanes = value_lanes(inputs)
    last = {row: max([row, *(reader for reader, read in enumerate(inputs) if row in read)]) for row in range(40)}
    for first in range(40):
        for second in range(first + 1, 40):
            assert lanes[first] != lanes[second] or last[first] <= second
    chain = [[], *([row] for row in range(9))]
    assert value_lanes(chain) == [0] * 10


@pytest.mark.parametrize("seed", range(20))
def test_no_two_wires_in_a_lane_share_a_row(seed):
    source = random.Random(seed)
    wires = [tuple(sorted(source.choices(range(50), k=2))) for _ in range(40)]
    lanes = interval_lanes(wires)
    rows = [{(lane, row) for row in range(first, last + 1)} for lane, (first, last) in zip(lanes, wires, strict=True)]
    assert len(set().union(*rows)) == sum(map(len, rows))
    busiest = max(sum(first <= row <= last for first, last in wires) for row in range(50))
    assert busiest <= max(lanes) + 1 <= 2 * busiest


@pytest.mark.parametrize("rows", [1, 2, 17, 40, 41, 200, 701])
def test_columns_hold_every_row_once_and_are_wider_than_high(rows):
    found = columns(rows, 0.19, 3.2)
    assert [row for column in found for row in column] == list(range(rows))
    assert max(map(len, found)) * 0.19 <= len(found) * 3.2 + 0.19 or len(found) == 2  # a third one is no longer legible


def test_a_long_name_loses_its_beginning():
    name = "model.language.layers.17.self_attention.q_projection"
    assert clipped(name, 7, 9.0) == name
    short = clipped(name, 7, 1.5)
    assert name.endswith(short.removeprefix("…"))
    assert len(short) > 15
    assert 1.4 < text_width(short, 7) <= 1.5
