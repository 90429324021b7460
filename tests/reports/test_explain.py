"""Why not pruned: every axis of every parameter is accounted for, with op, source line and cost."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fx_oto


class Net(nn.Module):
    """Something of everything: prunable, sorted over channels, named unprunable, the classes, and what is not used."""

    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 16, 1)
        self.d, self.fc = nn.Conv2d(16, 12, 1, bias=False), nn.Linear(12, 5)
        self.scale = nn.Parameter(torch.ones(()))
        self.spare = nn.Parameter(torch.randn(7, 4))

    def forward(self, x):
        x = F.relu(self.bn(self.a(x)))
        x = self.b(x).sort(1).values
        x = F.relu(self.c(x)) * self.scale
        return self.fc(self.d(x).mean((2, 3)))


def line_of(text, where=Net):
    """``"file.py:12"``: where the code of a class holds a text."""
    lines, start = inspect.getsourcelines(where)
    return f"{__file__}:{start + next(i for i, line in enumerate(lines) if text in line)}"


def found_of(*patterns):
    return fx_oto.partition(fx_oto.prepare(Net(), torch.randn(2, 3, 8, 8), unprunable=["c"])).explain(*patterns)


@pytest.fixture
def found():
    return found_of()


INPUT = "it is the model's input 'x'"
SORT = "sort runs along it"
NAMED = "'c' is unprunable, and so is all that is tied to it"
OUTPUT = "it is part of the model's output"


def test_every_axis_has_a_row_with_its_exact_cost_the_largest_first(found):
    rows = [(axis.tensor, axis.dim, axis.size, axis.prunable, axis.kept, axis.cost) for axis in found]
    held = [
        ("b.weight", 0, 6, 0, 6, 6 * 8 * 9),
        ("a.weight", 1, 3, 0, 3, 3 * 8 * 9),
        ("d.weight", 1, 16, 0, 16, 16 * 12),
        ("c.weight", 0, 16, 0, 16, 16 * 6),
        ("c.weight", 1, 6, 0, 6, 6 * 16),
        ("fc.weight", 0, 5, 0, 5, 5 * 12),
        ("c.bias", 0, 16, 0, 16, 16),
        ("b.bias", 0, 6, 0, 6, 6),
        ("fc.bias", 0, 5, 0, 5, 5),
    ]
    assert rows[: len(held)] == held
    assert all(kept == cost == 0 for *_, kept, cost in rows[len(held) :])
    model = Net()
    longer = [(name, dim) for name, p in model.named_parameters() for dim, size in enumerate(p.shape) if size > 1]
    assert sorted((name, dim) for name, dim, *_ in rows) == sorted(longer)
    assert len(found) == len(longer)


def test_rows_name_the_family_or_the_reason_with_op_and_line(found):
    axes = {(axis.tensor, axis.dim): axis for axis in found}
    assert axes["bn.bias", 0].families == (("a.weight", 8),)
    assert axes["fc.weight", 1].families == (("d.weight", 12),)
    assert axes["b.weight", 1].why == ""
    assert axes["a.weight", 3].why == "no channels lie along it, as with a convolution's window"
    assert axes["spare", 1].why == "it is not used by the traced graph, so the compact model does not have it"
    (sort,) = axes["b.weight", 0].frozen
    assert (sort.reason.why, sort.reason.op, sort.reason.source) == (SORT, "sort", line_of(".sort(1)"))
    (reader,) = axes["c.weight", 1].frozen
    assert (reader.reason.op, reader.reason.source) == ("convolution", line_of("self.c(x)"))
    assert reader.reason.origin == sort.reason
    assert axes["a.weight", 1].frozen[0].reason.origin.why == INPUT
    assert axes["fc.bias", 0].frozen[0].reason.source == ""  # no line of forward makes the output


def test_causes_count_each_parameter_once_the_largest_first(found):
    assert [(cause.reason.why, cause.axes, cause.cost) for cause in found.causes] == [
        (SORT, 3, 6 * 8 * 9 + 6 + 6 * 16),  # what is sorted, and what reads it
        (NAMED, 3, 16 * 6 + 16 + 16 * 12),
        (INPUT, 1, 3 * 8 * 9),
        (OUTPUT, 2, 5 * 12 + 5),
    ]


def test_an_element_that_two_axes_hold_for_one_cause_counts_once():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 6))

        def forward(self, x):
            return x + self.w

    found = fx_oto.partition(fx_oto.prepare(Both(), torch.randn(4, 6))).explain()
    assert [(axis.cost, axis.kept) for axis in found] == [(24, 4), (24, 6)]
    assert [(cause.reason.why, cause.cost) for cause in found.causes] == [(INPUT, 24)]
    assert (found.params, found.prunable, found.kept) == (24, 0, 24)


def test_totals(found):
    model = Net()
    left = [model.b.bias, model.c.weight, model.c.bias, model.fc.bias, model.scale]
    assert found.params == sum(p.numel() for p in model.parameters()) - model.spare.numel()
    assert found.kept == sum(p.numel() for p in left)
    assert found.prunable + found.kept == found.params


def test_part_of_an_axis_and_several_families_are_told_apart():
    class Cat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)
            self.out = nn.Conv2d(17, 5, 1)

        def forward(self, x):
            return self.out(torch.cat([self.a(x), self.b(x).relu(), x, self.c(x).cumsum(1)], 1))

    found = fx_oto.partition(fx_oto.prepare(Cat(), torch.randn(2, 3, 8, 8))).explain("out.weight")
    (axis,) = (axis for axis in found if axis.dim == 1)
    assert (axis.families, axis.prunable, axis.kept, axis.cost) == ((("a.weight", 8), ("b.weight", 4)), 12, 5, 25)
    assert "a.weight (8), b.weight (4)" in str(found)


def test_the_text_has_totals_causes_and_rows_in_this_order(found):
    text = str(found)
    assert text.startswith("1,048 parameters: 924 in prunable families, 124 (11.8%) can never go\n")
    cause = re.search(r"534 +51\.0% +3 +sort runs along it \(op sort at \S*test_explain\.py:\d+\)", text)
    row = re.search(r"b\.weight +0 +6 +0 +6 +432 +sort runs along it", text)
    assert cause.start() < row.start()
    assert re.search(r"c\.weight +1 +6 .* \(op convolution at \S+\) – since sort runs along it \(op sort at", text)
    assert re.search(r"spare +0 +7 +0 +0 +0 +it is not used by the traced graph", text)
    assert "bn.weight" not in text  # nothing of it is kept whole
    assert re.search(r"bn\.weight +0 +8 +8 +a\.weight +0 +0", str(found_of("bn")))


def test_html_and_markdown(found):
    html = found._repr_html_()
    assert html.count("<table>") == 2
    assert "sort runs along it" in html
    assert "<details>" not in html
    assert f"<details><summary>all {len(found)} axes</summary><table>" in found_of("*")._repr_html_()
    assert "because" not in found_of("a.bias")._repr_html_()  # nothing is kept, so there is no cause
    markdown = found.to_markdown().splitlines()
    rows = [line for line in markdown if line.startswith("| b.weight")]
    assert all(row.count("|") == 9 for row in rows)
    assert len(rows) == 1  # only its filters are kept whole


def test_a_bar_in_a_pattern_does_not_end_the_markdown_cell():
    gm = fx_oto.prepare(Net(), torch.randn(2, 3, 8, 8), unprunable=["[c|d]"])
    row = next(line for line in fx_oto.partition(gm).explain("c.bias").to_markdown().splitlines() if "c.bias" in line)
    assert "'[c\\|d]'" in row


@pytest.mark.parametrize(
    ("patterns", "tensors"),
    [
        (("fc",), {"fc.weight", "fc.bias"}),
        (("b*",), {"b.weight", "b.bias", "bn.weight", "bn.bias"}),
        (("*.bias", "spare"), {"a.bias", "bn.bias", "b.bias", "c.bias", "fc.bias", "spare"}),
    ],
)
def test_globs_choose_parameters_and_modules(patterns, tensors):
    zigs = fx_oto.partition(fx_oto.prepare(Net(), torch.randn(2, 3, 8, 8)))
    found, model = zigs.explain(*patterns), Net()
    assert {axis.tensor for axis in found} == tensors
    assert found.params == sum(model.get_parameter(name).numel() for name in tensors - {"spare"})


def test_a_glob_finds_a_tied_parameter_under_each_of_its_names():
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    model.append(nn.Linear(8, 8, bias=False))
    model[3].weight = model[2].weight
    found = fx_oto.partition(fx_oto.prepare(model, torch.randn(2, 6))).explain("3")
    assert {axis.tensor for axis in found} == {"2.weight"}


def test_a_glob_that_matches_nothing_is_refused():
    zigs = fx_oto.partition(fx_oto.prepare(Net(), torch.randn(2, 3, 8, 8)))
    with pytest.raises(
        fx_oto.SettingsError, match=r"the pattern 'layer9\.\*' matches no parameter or module; names look like 'scale'"
    ):
        zigs.explain("layer9.*")


def test_an_exported_graph_has_the_same_lines_and_keeps_what_it_does_not_use():
    exported = torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),), strict=False).module()
    found = fx_oto.partition(fx_oto.prepare(exported, torch.randn(2, 3, 8, 8))).explain()
    axes = {(axis.tensor, axis.dim): axis for axis in found}
    assert axes["b.weight", 0].frozen[0].reason.source == line_of(".sort(1)")
    assert axes["c.weight", 1].frozen[0].reason.source == line_of("self.c(x)")
    assert axes["a.weight", 1].frozen[0].reason.source == line_of("self.a(x)")
    spare = axes["spare", 0]  # the exported module holds it, so the compact one will
    assert (spare.kept, spare.cost, spare.why) == (7, 28, "it is not used by the traced graph")
    assert found.params == sum(p.numel() for p in Net().parameters())


def test_lines_of_an_installed_package_are_its_own():
    from support.vision import build

    model = build("resnet18")
    found = fx_oto.partition(fx_oto.prepare(model, torch.randn(2, 3, 64, 64))).explain("conv1", "fc")
    lines, start = inspect.getsourcelines(type(model)._forward_impl)
    line = start + next(i for i, text in enumerate(lines) if "self.conv1(x)" in text)
    (axis,) = (axis for axis in found if axis.tensor == "conv1.weight" and axis.kept)
    assert axis.frozen[0].reason.source.endswith(f"torchvision/models/resnet.py:{line}")
    assert f" torchvision/models/resnet.py:{line})" in axis.why


def test_a_family_of_one_group_cannot_go():
    class Rolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g, self.o = nn.Conv2d(3, 12, 3), nn.Linear(12, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = self.f(x).relu().mean((2, 3))
            return self.o(self.g(x + x.roll(1, 1)).relu())

    zigs = fx_oto.partition(fx_oto.prepare(Rolled(), torch.randn(2, 3, 8, 8)))
    assert sorted(map(len, zigs.families)) == [1, 5]
    found = zigs.explain()
    kept = {(axis.tensor, axis.dim): (axis.prunable, axis.kept) for axis in found}
    assert kept["f.weight", 0] == kept["f.bias", 0] == (0, 12)
    assert kept["g.weight", 1] == (0, 12)
    assert kept["g.weight", 0] == (5, 0)
    why = "all of it is tied into a single group, and one group of each family stays"
    assert next(axis.why for axis in found if (axis.tensor, axis.dim) == ("f.weight", 0)) == why
    assert next(cause.cost for cause in found.causes if cause.why == why) == 12 * 3 * 9 + 12 + 5 * 12
    assert found.prunable == 5 * 12 + 5 + 3 * 5
    assert found.kept == 12 * 3 * 9 + 12 + 3
