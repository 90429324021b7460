"""A limit holds for every graph, and what shares a row for it is neighbours, is counted and is named."""

from __future__ import annotations

import random
import re

import pytest
import torch
from support.pictures import check_legible, lines_of
from torch import nn

import fx_oto
from fx_oto.viz.folding import folded, labelled, span


class Loop(nn.Module):
    """One layer over and over, or one of several by turns, with a functional node after each."""

    def __init__(self, times, layers=1):
        super().__init__()
        self.times = times
        for i in range(layers):
            self.add_module(f"part{i}", nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        parts = [child for name, child in self.named_children() if name != "head"]
        for i in range(self.times):
            x = parts[i % len(parts)](x).relu()
        return self.head(x)


def flat(layers):
    chain = [nn.Linear(4, 4) if i % 2 == 0 else nn.ReLU() for i in range(layers - 1)]
    return nn.Sequential(*chain, nn.Linear(4, 2))


def prepared(net):
    return fx_oto.prepare(net, torch.randn(2, 4))


def texts(picture):
    return [text.get_text() for text in picture.figure.axes[0].texts]


def check_limit(picture, limit):
    """At most so many rows, of which every node is in one; the subtitle, to look at."""
    subtitle = texts(picture)[1]
    rows, nodes = map(int, re.search(r"(\d+) rows for (\d+) nodes", subtitle).groups())
    counts = [int(n) for n in re.findall(r"^(\d+) nodes$", "\n".join(texts(picture)), re.M)]
    assert rows <= limit < nodes
    assert rows - len(counts) + sum(counts) == nodes
    check_legible(picture)
    return subtitle


@pytest.fixture(scope="module")
def loop():
    return prepared(Loop(500))


def test_what_runs_between_two_calls_of_a_module_joins_it(loop):
    picture = fx_oto.draw_graph(loop)
    assert (
        "modules at depth 1 are one row each; what runs between two calls of one is part of it for size: see fold="
        in (check_limit(picture, 200))
    )
    names = [row[-2][1] for row in lines_of(picture).values() if len(row) > 1]
    assert "part0" in names
    assert "999 nodes" in texts(picture)  # 500 calls, and the 499 nodes between them
    assert "relu_499" in names


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 7, 100, 999])
def test_any_limit_holds(loop, limit):
    check_limit(fx_oto.draw_graph(loop, limit=limit), limit)


@pytest.mark.parametrize("net", [Loop(2000), Loop(300, layers=300)], ids=["one layer", "300 layers"])
def test_functional_nodes_do_not_break_a_limit(net):
    gm = prepared(net)
    check_limit(fx_oto.draw_graph(gm), 200)


def test_patterns_do_not_break_a_limit(loop):
    check_limit(fx_oto.draw_graph(loop, "relu*", limit=50), 50)


def test_an_exported_graph_without_modules_is_folded_by_neighbours():
    program = torch.export.export(Loop(300).eval(), (torch.randn(2, 4),))
    for node in program.graph_module.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    gm = prepared(program.module())
    subtitle = check_limit(fx_oto.draw_graph(gm, limit=60), 60)
    assert re.search(r"up to \d+ neighbours share a row for size: see limit=$", subtitle)


def test_a_flat_sequence_is_folded_by_neighbours():
    gm = prepared(flat(600))
    picture = fx_oto.draw_graph(gm)
    subtitle = check_limit(picture, 200)
    assert subtitle.endswith("; up to 4 neighbours share a row for size: see limit=")
    assert {"0–3", "4–7", "596–599", "output"} <= set(texts(picture))
    zigs = fx_oto.partition(gm).draw(limit=100)
    assert texts(picture).count("100 more families: see partition(gm)") == 1
    assert not any(text.startswith("400:") for text in texts(picture))
    assert "for 301 layers; up to 4 neighbours share a row for size: see limit=" in texts(zigs)[1]
    assert {"0–6", "8–14", "4 layers"} <= set(texts(zigs))
    check_legible(zigs)


def test_bars_of_neighbours_add_up():
    gm = prepared(flat(41))
    fx_oto.partition(gm).zero_(0.5)
    picture = fx_oto.plot_widths(gm, fx_oto.compress(gm), limit=5)
    (axes,) = picture.figure.axes
    before, after = ([bar.get_width() for bar in bars] for bars in axes.containers)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0–8", "10–18", "20–28", "30–38", "40"]
    assert before == [20, 20, 20, 20, 2]
    assert after == [10, 10, 10, 10, 2]
    assert "for each module, up to 5 neighbours in one bar" in picture.figure.texts[1].get_text()


@pytest.mark.parametrize("draw", ["graph", "partition", "widths"])
def test_a_picture_without_a_row_is_refused(loop, draw):
    drawn = {
        "graph": lambda: fx_oto.draw_graph(loop, limit=0),
        "partition": lambda: fx_oto.partition(loop).draw(limit=0),
        "widths": lambda: fx_oto.plot_widths(loop, loop, limit=0),
    }
    with pytest.raises(fx_oto.SettingsError, match=r"limit must be at least 1, .*; found 0"):
        drawn[draw]()


@pytest.mark.parametrize("seed", range(60))
def test_rows_are_neighbours_and_as_few_as_asked_for(seed):
    source = random.Random(seed)
    number, limit = source.randrange(1, 80), source.randrange(1, 40)
    known = ["", "", "a", "b.c", "b.d", "b.d.e", "f.g.h", "f.g"]
    paths = [path for path in source.choices(known, k=number) for _ in range(source.randrange(1, 4))]
    kinds = source.choices([None, "inner", "end"], [source.random(), 2, source.random()], k=len(paths))
    found = folded(paths, None, limit, kinds)
    assert [i for row in found.rows for i in row] == list(range(len(paths)))
    assert len(found.rows) <= limit
    assert all(found.rows)
    if len(paths) <= limit and None not in kinds:
        assert found.rows == [[i] for i in range(len(paths))]


@pytest.mark.parametrize("seed", range(30))
def test_labels_are_as_few_as_asked_for(seed):
    source = random.Random(seed)
    names = [".".join(source.choices("abcdefghij", k=source.randrange(1, 4))) for _ in range(60)]
    limit = source.randrange(1, 70)
    labels, folding = labelled(names, None, limit)
    assert len(labels) == len(names)
    assert len(set(labels)) <= limit
    if len(set(names)) <= limit:
        assert labels == names
    elif folding.most > 1:
        assert len({name[0] for name in names}) > limit


def test_a_run_is_named_by_its_ends():
    assert span("12", "47") == "12–47"
    assert span("net.layers.12", "net.layers.47") == "net.layers.12–47"
    assert span("stem", "net.layers.47") == "stem–net.layers.47"
    assert span("stem", "stem") == "stem"
