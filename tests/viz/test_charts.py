"""Widths, trainings and tradeoffs: the numbers that are drawn are the real ones."""

from __future__ import annotations

import random
import statistics

import pytest
import torch
from support.pictures import check_legible
from support.vision import build
from torch import nn

import fx_oto
from fx_oto.viz.style import family_colour


@pytest.fixture(scope="module")
def pruned():
    gm = fx_oto.prepare(build("resnet18"), torch.randn(2, 3, 64, 64))
    zigs = fx_oto.partition(gm)
    generator = torch.Generator().manual_seed(3)
    for i, family in enumerate(zigs.families):
        count = int(len(family) * torch.rand((), generator=generator)) - 1
        zigs.zero_zigs_(i, torch.randperm(len(family), generator=generator)[:count])
    return gm, fx_oto.compress(gm, verify=False)


def bars_of(picture):
    """For each name: the lengths of its two bars, and the colour of the second."""
    found = {}
    for axes in picture.figure.axes:
        before, after = axes.containers
        for label, one, two in zip(axes.get_yticklabels(), before, after, strict=True):
            found[label.get_text()] = (one.get_width(), two.get_width(), two.get_facecolor())
    return found


def test_bars_are_the_widths_of_the_two_modules(pruned):
    import matplotlib.colors

    gm, small = pruned
    picture = fx_oto.plot_widths(gm, small)
    check_legible(picture)
    found = bars_of(picture)
    colours = {f.name: matplotlib.colors.to_rgba(family_colour(i)) for i, f in enumerate(fx_oto.partition(gm).families)}
    layers = {name: module for name, module in small.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert set(found) == set(layers)
    for name, module in layers.items():
        before, after, colour = found[name]
        assert before == gm.get_parameter(f"{name}.weight").shape[0]
        assert after == module.weight.shape[0]
        assert colour == colours.get(f"{name}.weight", colour)
    assert any(after < before / 2 for before, after, _ in found.values())
    assert found["fc"][:2] == (1000, 1000)


def test_folded_bars_add_up(pruned):
    gm, small = pruned
    every, folded = bars_of(fx_oto.plot_widths(gm, small)), bars_of(fx_oto.plot_widths(gm, small, fold=1))
    assert list(folded) == ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    for part in (0, 1):
        layer = [bar[part] for name, bar in every.items() if name.startswith("layer3.")]
        assert folded["layer3"][part] == sum(layer)
    assert len(bars_of(fx_oto.plot_widths(gm, small, limit=12))) == 10
    assert set(bars_of(fx_oto.plot_widths(gm, small, "layer1.0.*"))) == {"layer1.0.conv1", "layer1.0.conv2"}


def test_the_width_of_a_transposed_convolution_lies_along_its_second_axis():
    net = nn.Sequential(nn.ConvTranspose2d(3, 12, 2), nn.ReLU(), nn.Conv2d(12, 3, 1))
    gm = fx_oto.prepare(net, torch.randn(2, 3, 8, 8))
    small = fx_oto.compress(_half(gm))
    assert bars_of(fx_oto.plot_widths(gm, small))["0"][:2] == (12, 6)


def test_several_weights_of_one_module_have_a_bar_each():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    gm = fx_oto.prepare(Net(), torch.randn(2, 4, 5))
    found = bars_of(fx_oto.plot_widths(gm, fx_oto.compress(_half(gm))))
    assert {name: bar[:2] for name, bar in found.items()} == {
        "lstm.weight_ih_l0": (32, 16),
        "lstm.weight_hh_l0": (32, 16),
        "head": (2, 2),
    }


def _half(gm):
    fx_oto.partition(gm).zero_(0.5)
    return gm


def test_widths_refuse_what_does_not_fit(pruned):
    gm, small = pruned
    with pytest.raises(
        fx_oto.InputError, match=r"no layer in common: .* found Linear with the parameters weight, bias"
    ):
        fx_oto.plot_widths(gm, nn.Linear(2, 2))
    with pytest.raises(
        fx_oto.InputError, match=r"conv1.weight has shape .* after and \(64, 3, 7, 7\) before: expected"
    ):
        fx_oto.plot_widths(gm, build("resnet18").apply(_wider))
    with pytest.raises(fx_oto.SettingsError, match=r"the pattern 'head' matches no layer, a parameter with two axes"):
        fx_oto.plot_widths(gm, small, "head")
    with pytest.raises(fx_oto.SettingsError, match=r"fold must be at least 1"):
        fx_oto.plot_widths(gm, small, fold=0)


def _wider(module):
    if isinstance(module, nn.Conv2d) and module.kernel_size == (7, 7):
        module.weight = nn.Parameter(torch.zeros(65, 3, 7, 7))


def trained(steps=60, noted=True):
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    gm = fx_oto.prepare(net, torch.randn(4, 6))
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (gm(torch.randn(8, 6)) - 1).square().mean()
        loss.backward()
        if noted:
            optimizer.note_loss(loss)
        optimizer.step()
    return fx_oto.report(gm).training


def test_a_training_is_drawn_as_it_went():
    training = trained()
    picture = training.plot()
    check_legible(picture)
    rows = training.rows()
    loss, sparsity = picture.figure.axes
    assert list(loss.lines[0].get_ydata()) == [row[2] for row in rows]
    assert list(sparsity.lines[0].get_xdata()) == [row[0] for row in rows]
    assert list(sparsity.lines[0].get_ydata()) == [row[1] for row in rows]
    assert sparsity.lines[0].get_ydata()[-1] == 0.5
    assert picture.figure.get_suptitle().split() == training.summary.replace(";", "").split()


def test_without_losses_the_sparsity_is_drawn_alone():
    assert [axes.get_ylabel() for axes in trained(10, noted=False).plot().figure.axes] == ["group sparsity"]
    with pytest.raises(fx_oto.SettingsError, match="nothing to plot: the optimizer has taken no step yet"):
        fx_oto.Trajectory(4, "half").plot()


def test_a_tradeoff_has_means_and_deviations():
    source = random.Random(0)
    runs = {name: [(cost, [source.gauss(90, 2) for _ in range(4)]) for cost in (40, 10, 20)] for name in ("a", "b")}
    picture = fx_oto.plot_tradeoff(runs, baseline=92.5)
    check_legible(picture)
    axes = picture.figure.axes[0]
    assert axes.get_xlabel() == "MACs left (%)"
    assert list(axes.lines[0].get_ydata()) == [92.5, 92.5]
    for container, points in zip(axes.containers, runs.values(), strict=True):
        line, _, (bars,) = container.lines
        expected = sorted((cost, statistics.fmean(values), statistics.stdev(values)) for cost, values in points)
        assert list(line.get_xdata()) == [cost for cost, _, _ in expected]
        assert list(line.get_ydata()) == pytest.approx([mean for _, mean, _ in expected])
        halves = [(segment[1, 1] - segment[0, 1]) / 2 for segment in bars.get_segments()]
        assert halves == pytest.approx([spread for _, _, spread in expected])
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == ["without compression", "a", "b"]


def test_panels_share_colours_and_a_legend():
    panels = {"one": {"a": [(10, 80), (20, 85)], "b": [(10, 70)]}, "two": {"b": [([5, 6], [60, 61])]}}
    picture = fx_oto.plot_tradeoff(panels, baseline={"two": 90}, ylabel="top-1 (%)")
    check_legible(picture)
    one, two = picture.figure.axes
    assert (one.get_title(), two.get_title(), one.get_ylabel()) == ("one", "two", "top-1 (%)")
    assert one.containers[1].lines[0].get_color() == two.containers[0].lines[0].get_color()
    assert one.containers[0].lines[0].get_color() != one.containers[1].lines[0].get_color()
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == ["a", "b", "without compression"]
    assert list(two.containers[0].lines[0].get_xdata()) == [5.5]


@pytest.mark.parametrize("nothing", [{}, {"a": []}, {"panel": {"a": []}}])
def test_a_tradeoff_of_nothing_is_refused(nothing):
    with pytest.raises(fx_oto.SettingsError, match=r"nothing to plot: .* found no point"):
        fx_oto.plot_tradeoff(nothing)


def test_uneven_repetitions_are_refused():
    with pytest.raises(fx_oto.SettingsError, match=r"a point has 2 costs and 3 qualities: expected one number"):
        fx_oto.plot_tradeoff({"a": [([1, 2], [3, 4, 5])]})
