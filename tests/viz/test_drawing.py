"""The graph coloured by family, and what is tied together: what they say is right, and can be read."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from support.pictures import boxes_of, check_legible, fills_at, lines_of
from support.vision import build, torchvision_models
from torch import nn

import fx_oto
from fx_oto.viz import wired_rows
from fx_oto.viz.style import DARK, FROZEN, family_colour, text_width


def residual():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.left = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1))
            self.right = nn.Conv2d(8, 5, 1)
            self.head = nn.Linear(13, 4)

        def forward(self, x):
            x = self.stem(x)
            x = torch.cat([x + self.left(x), self.right(x)], 1)
            return self.head(x.mean((2, 3)))

    return fx_oto.prepare(Net(), torch.randn(2, 3, 8, 8))


@pytest.fixture(scope="module")
def resnet():
    return fx_oto.prepare(build("resnet18"), torch.randn(2, 3, 64, 64))


def rows_by_name(picture):
    """For each name on a line: x and y of the number before it, and the number itself."""
    found = {}
    for y, row in lines_of(picture).items():
        for (x, number), (_, name) in itertools.pairwise(row):
            if re.fullmatch(r"\d+", number) and re.match(r"[a-z]", name):
                found.setdefault(name, []).append((x, y, int(number)))
    return found


def makers(gm):
    """The family that each module's first variable axis belongs to."""
    return {
        slot.tensor.rpartition(".")[0]: i
        for i, family in enumerate(fx_oto.partition(gm).families)
        for slot in family.variables
    }


def many_lanes():
    """Every layer of a block reads all those before it."""
    return torchvision_models().DenseNet(4, (3, 20), 8, bn_size=2)


@pytest.mark.parametrize("make", [lambda: build("resnet18"), many_lanes, lambda: build("swin_t")])
def test_every_text_can_be_read(make):
    gm = fx_oto.prepare(make(), torch.randn(2, 3, 64, 64))
    check_legible(fx_oto.draw_graph(gm))
    check_legible(fx_oto.partition(gm).draw())


def test_a_number_of_three_digits_fits_the_narrowest_box():
    assert text_width("888", wired_rows._SMALL - 0.5) < wired_rows._NUMBERED - 0.01


def test_nodes_have_the_colour_and_number_of_their_family(resnet):
    picture = fx_oto.draw_graph(resnet)
    rows, expected = rows_by_name(picture), makers(resnet)
    assert len(expected) == 40
    for module, family in expected.items():
        (x, y, number) = rows[module][0]
        assert number == family, module
        assert family_colour(family) in fills_at(picture, x, y), module


def test_what_is_kept_whole_is_grey_and_what_has_no_channels_white(resnet):
    picture = fx_oto.draw_graph(resnet)
    lines = lines_of(picture)
    y = next(y for y, row in lines.items() if "fc" in [text for _, text in row])
    right = next(x for x, text in lines[y] if text == "fc")
    found = {
        colour
        for left, top, wide, bottom, colour in boxes_of(picture)
        if wide - left <= 0.3 and right - 1.2 < left < right and top < y < bottom
    }
    assert FROZEN in found
    assert not found & {family_colour(i) for i in range(12)}


def test_a_value_of_several_families_shows_all_of_them():
    gm = residual()
    cat = next(node.name for node in gm.graph.nodes if node.name == "cat")
    expected = makers(gm)
    lines = lines_of(fx_oto.draw_graph(gm))
    row = next(row for row in lines.values() if cat in [text for _, text in row])
    assert {text for _, text in row[:2]} == {str(expected["stem"]), str(expected["right"])}


@pytest.mark.parametrize("depth", [1, 2])
def test_folding_counts_every_node(resnet, depth):
    every, picture = fx_oto.draw_graph(resnet), fx_oto.draw_graph(resnet, fold=depth)
    total = int(re.search(r"rows for (\d+) nodes", every.figure.axes[0].texts[1].get_text()).group(1))
    subtitle = picture.figure.axes[0].texts[1].get_text()
    rows = int(re.search(r"(\d+) rows for", subtitle).group(1))
    counts = [int(n) for n in re.findall(r"^(\d+) nodes$", "\n".join(_texts(picture)), re.M)]
    assert len(counts) < rows < total
    assert rows - len(counts) + sum(counts) == total
    assert f"modules at depth {depth} are one row each" in subtitle
    check_legible(picture)


def _texts(picture):
    return [text.get_text() for text in picture.figure.axes[0].texts]


def test_a_large_graph_is_folded_by_itself_and_says_so(resnet):
    subtitle = fx_oto.draw_graph(resnet, limit=40).figure.axes[0].texts[1].get_text()
    assert int(re.search(r"(\d+) rows for", subtitle).group(1)) <= 40
    assert subtitle.endswith("modules at depth 2 are one row each for size: see fold=")


def test_patterns_leave_the_rest_in_single_rows(resnet):
    found = _texts(fx_oto.draw_graph(resnet, "layer2.0", "fc"))
    assert found.count("…") == 2
    assert "output" in found  # alone, it is shown as it is
    assert "layer2.0.conv1" in found
    assert "layer2.1.conv1" not in found
    with pytest.raises(
        fx_oto.SettingsError, match=r"the pattern 'head\*' matches no node or module; names look like 'x', 'conv1'"
    ):
        fx_oto.draw_graph(resnet, "head*")


def test_parameters_stand_before_what_reads_them():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.Parameter(torch.randn(size)) for size in ((6, 4), (3, 6)))

        def forward(self, x):
            first, second = self.first, self.second
            return torch.relu(x @ first.T) @ second.T

    found = _texts(fx_oto.draw_graph(fx_oto.prepare(Net(), torch.randn(2, 4))))
    names = [text for text in found if text in ("first", "second", "matmul", "matmul_1", "relu")]
    assert list(dict.fromkeys(names)) == ["first", "matmul", "relu", "second", "matmul_1"]


def test_a_long_reason_is_shown_whole():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.words(x))

    picture = fx_oto.partition(fx_oto.prepare(Net(), torch.randint(0, 50, (2, 5)))).draw()
    assert any(text.startswith("kept whole: it is the vocabulary that indices look up (op") for text in _texts(picture))
    check_legible(picture)


def test_a_shape_stands_where_it_is_another_than_above(resnet):
    rows = lines_of(fx_oto.draw_graph(resnet)).values()
    details = {name: detail for row in rows for (_, name), (_, detail) in itertools.pairwise(row)}
    assert details["layer2.0.conv1"] == "Conv2d  2×128×8×8"
    assert details["layer2.0.bn1"] == "BatchNorm2d"


def test_pictures_fit_a_notebook(resnet):
    for picture in (fx_oto.draw_graph(resnet), fx_oto.partition(resnet).draw()):
        assert picture.figure.get_figwidth() <= 10
        assert int.from_bytes(picture._repr_png_()[16:20]) <= 1000


def test_masks_are_bars_below_what_they_mask(resnet):
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    found = [c for c in fx_oto.draw_graph(resnet).figure.axes[0].collections if isinstance(c, LineCollection)]
    (bars,) = [lines.get_segments() for lines in found if tuple(lines.get_colors()[0]) == to_rgba(DARK)]
    masked = {node.args[0] for node in resnet.graph.nodes if node.target == "zig_masks"}
    assert len(bars) == len(masked) + 1  # and one in the legend


def test_a_partition_shows_who_makes_and_who_reads_each_family(resnet):
    zigs = fx_oto.partition(resnet)
    picture = zigs.draw()
    axes = picture.figure.axes[0]
    lines = lines_of(picture)
    place = {text: y for y, row in lines.items() for _, text in row if re.match(r"[a-z]+\d?[\d.]*", text)}
    (rings,) = [
        {round(y, 4) for _, y in dots.get_offsets()} for dots in axes.collections if len(dots.get_offsets()) > 1
    ]
    for i, family in enumerate(zigs.families):
        made = {slot.tensor.rpartition(".")[0] for slot in family.variables}
        read = {slot.tensor.rpartition(".")[0] for slot in family.slots} - made
        shown = {name for name, y in place.items() if str(i) in [text for _, text in lines[y][:-1]]}
        assert made <= shown
        assert {place[name] for name in read} <= rings
        assert read
    assert sum(len({slot.tensor.rpartition(".")[0] for slot in f.variables}) for f in zigs.families) == 40


def test_a_partition_gives_the_causes_of_what_is_kept(resnet):
    found = _texts(fx_oto.partition(resnet).draw())
    assert "kept whole: it is part of the model's output (op output) (2 axes)" in found
    assert "kept whole: it is the model's input 'x' (1 axis)" in found


def test_patterns_choose_families(resnet):
    found = _texts(fx_oto.partition(resnet).draw("layer1.0.conv1"))
    assert "layer1.0.conv2" in found  # reads what conv1 makes
    assert "layer1.1.conv1" in found  # reads what layer1.0.conv1 reads
    assert "layer4.0.conv1" not in found
    with pytest.raises(
        fx_oto.SettingsError, match=r"the pattern 'stem' matches no parameter or module; names look like 'conv1.we"
    ):
        fx_oto.partition(resnet).draw("stem")


def test_a_partition_is_folded_by_module(resnet):
    picture = fx_oto.partition(resnet).draw(fold=1)
    names = [row[-2][1] for row in lines_of(picture).values() if len(row) > 1][:7]
    assert names == ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert "10 layers" not in _texts(picture)[:3]
    assert _texts(picture).count("10 layers") == 3


def test_nothing_prunable_is_drawn_too():
    gm = fx_oto.prepare(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4))
    assert "0 families; 3 rows for 3 nodes (0 more compute masks and sizes)" in _texts(fx_oto.draw_graph(gm))
    assert "0 groups in 0 families, 1 rows for 1 layers" in _texts(fx_oto.partition(gm).draw())


@pytest.mark.parametrize(
    "draw", [lambda gm: fx_oto.draw_graph(gm, fold=0), lambda gm: fx_oto.partition(gm).draw(fold=0)]
)
def test_a_depth_of_nothing_is_refused(resnet, draw):
    with pytest.raises(fx_oto.SettingsError, match=r"fold must be at least 1, .*; found 0"):
        draw(resnet)


def test_an_unprepared_module_is_refused():
    with pytest.raises(fx_oto.MissingResultError, match=r"expected the GraphModule that fx_oto.prepare"):
        fx_oto.draw_graph(nn.Linear(2, 2))
    with pytest.raises(fx_oto.MissingResultError, match=r"run the pass 'dependency-analysis' first"):
        fx_oto.draw_graph(fx_oto.trace(nn.Linear(2, 2), torch.randn(1, 2)))


def test_the_networkx_graph_tells_the_same(resnet):
    zigs = fx_oto.partition(resnet)
    graph = zigs.to_networkx()
    for family in zigs.families:
        lead = str(family.variables[0])
        for slot in family.slots:
            node = graph.nodes[str(slot)]
            assert node["size"] == resnet.state_dict()[slot.tensor].shape[slot.dim]
            assert node["prunable"] + node["kept"] == node["size"]
            assert node["variable"] >= slot.variable
            assert str(slot) == lead or graph.edges[lead, str(slot)] == {"family": family.name, "zigs": len(family)}
    assert graph.nodes["fc.weight[0]"]["frozen"]
    assert graph.nodes["fc.weight[0]"]["kept"] == 1000
    assert "size" not in fx_oto.Context.of(resnet).get(fx_oto.Partition).to_networkx().nodes["conv1.weight[0]"]


def test_a_model_without_parameters_is_drawn():
    gm = fx_oto.prepare(nn.ReLU(), torch.randn(2, 4))
    for picture in (fx_oto.partition(gm).draw(), fx_oto.partition(gm).draw(fold=1), fx_oto.draw_graph(gm)):
        assert picture._repr_png_().startswith(b"\x89PNG")
