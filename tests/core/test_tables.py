"""Every result that is a table shows itself alike: as text, HTML, Markdown and JSON, with the same content."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fx_oto
from fx_oto.core.tables import Tabular, macs_text, table

IMAGE = torch.randn(2, 3, 12, 12)


class Net(nn.Module):
    """Its code reads a number that slicing changes."""

    def __init__(self, config):
        super().__init__()
        self.config, self.width = config, config.width
        self.conv, self.norm = nn.Conv2d(3, self.width, 3), nn.BatchNorm2d(self.width)
        self.head = nn.Linear(self.width * 100, 4)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().reshape(-1, self.width * 100))


def trained():
    """A prepared model, the compact one, and what was written back of it."""
    net = Net(SimpleNamespace(width=8))
    limits = fx_oto.config_limits(fx_oto.prepare(net, IMAGE), net)
    gm = fx_oto.prepare(net, IMAGE)
    optimizer = fx_oto.DHSPG(gm, lr=0.001, target_group_sparsity=0.5, total_steps=8)
    for _ in range(8):
        optimizer.zero_grad()
        loss = gm(IMAGE).square().mean()
        loss.backward()
        optimizer.note_loss(loss)
        optimizer.step()
    small = fx_oto.compress(gm)
    return gm, small, fx_oto.WriteBack.of(fx_oto.write_back(small, net)), limits


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(x + self.down(self.up(x).relu()))


def dropped():
    """What went with a branch."""
    gm = fx_oto.prepare(Residual(), torch.randn(2, 4))
    fx_oto.partition(gm).zero_zigs_(0, torch.arange(8))
    return fx_oto.Context.of(fx_oto.compress(gm)).get(fx_oto.DroppedBranches)


@pytest.fixture(scope="module")
def results():
    gm, small, written, limits = trained()
    zigs = fx_oto.partition(gm)
    report = fx_oto.report(small)
    found = (
        zigs,
        zigs.explain(),
        zigs.forecast(),
        fx_oto.default_pipeline(),
        fx_oto.cost(gm, IMAGE),
        fx_oto.latency({"full": gm, "compact": small}, IMAGE, rounds=2, warmup=0),
        fx_oto.sensitivity(gm, lambda gm: gm(IMAGE).sum(), fractions=0.5),
        report,
        report.training,
        fx_oto.Context.of(small).get(fx_oto.SlicingPlan),
        written,
        limits,
        dropped(),
    )
    return {type(one).__name__: one for one in found}


KINDS = {
    "ConfigLimits": "uniform",
    "Cost": "params",
    "DroppedBranches": "tensors",
    "Explanation": "axes",
    "Forecast": "removal",
    "LatencyComparison": "models",
    "Partition": "families",
    "Pipeline": "passes",
    "Report": "passes",
    "Sensitivity": "trials",
    "SlicingPlan": "axes",
    "Trajectory": "points",
    "WriteBack": "attributes",
}


def test_all_of_them_are_here(results):
    public = [getattr(fx_oto, name) for name in fx_oto.__all__]
    tabular = {kind.__name__ for kind in public if isinstance(kind, type) and issubclass(kind, Tabular)}
    assert tabular == results.keys() == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_they_show_themselves(results, name):
    result = results[name]
    html, markdown = result._repr_html_(), result.to_markdown()
    assert html.count("<table>") == html.count("</table>") >= 1
    rules = [line for line in markdown.splitlines() if line.startswith(("|-", "|:"))]
    assert len(rules) >= 1
    data = json.loads(result.to_json())
    assert data == json.loads(json.dumps(result.to_dict()))
    assert data[KINDS[name]]


@pytest.mark.parametrize("name", ["Explanation", "Partition", "Pipeline", "Sensitivity", "SlicingPlan", "Trajectory"])
def test_text_and_markdown_say_the_same(results, name):
    words = [text.replace("\\|", "|").split() for text in (str(results[name]), results[name].to_markdown())]
    bare = [sorted(word for word in text if word.strip("-|:")) for text in words]
    assert bare[0] == [word for word in bare[1] if word != "|"]


def test_json_counts_what_there_is(results):
    zigs, found = results["Partition"].to_dict(), results["Explanation"].to_dict()
    assert zigs["zigs"] == 8 == sum(family["zigs"] for family in zigs["families"])
    assert zigs["params"] == found["params"] == 3 * 8 * 9 + 8 + 8 + 8 + 800 * 4 + 4
    assert zigs["macs"] == results["Cost"].macs
    slots = {(slot["tensor"], slot["dim"]): slot["indices"] for slot in zigs["families"][0]["slots"]}
    assert slots["conv.weight", 0] == 8
    assert slots["head.weight", 1] == 800
    assert {(axis["tensor"], axis["dim"], axis["size"]) for axis in zigs["frozen"]} >= {("head.weight", 0, 4)}
    assert all(axis["why"] for axis in zigs["frozen"])
    kept = {(axis["tensor"], axis["dim"]): (axis["prunable"], axis["kept"]) for axis in found["axes"]}
    assert kept["head.weight", 0] == (0, 4)
    assert kept["head.weight", 1] == (800, 0)


def test_json_of_a_plan(results):
    axes = {(axis["tensor"], axis["dim"]): axis for axis in results["SlicingPlan"].to_dict()["axes"]}
    vectors = ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    expected = dict.fromkeys([(name, 0) for name in vectors], (8, 4)) | {("head.weight", 1): (800, 400)}
    assert {key: (axis["size"], len(axis["kept"])) for key, axis in axes.items()} == expected
    columns = [100 * channel + i for channel in axes["conv.weight", 0]["kept"] for i in range(100)]
    assert axes["head.weight", 1]["kept"] == columns


@pytest.mark.parametrize("name", KINDS)
def test_a_notebook_leaves_cells_where_they_are(results, name):
    html = results[name]._repr_html_()
    assert "<td>" not in html  # which it would move to the right
    assert '<td style="text-align: right;">' in html or name in ("Pipeline", "ConfigLimits")


@pytest.mark.parametrize("name", KINDS)
def test_no_repr_fills_the_screen(results, name):
    assert len(repr(results[name])) < 1000


def test_what_partitions_hold_is_short_as_well(results):
    assert repr(results["Partition"]) == "<Partition: 8 zero-invariant groups in 1 family>"
    assert "tensor(" not in repr(results["Partition"].families)


def test_json_of_a_pipeline(results):
    first, second, third = results["Pipeline"].to_dict()["passes"]
    assert first["options"].startswith("DependencyAnalysis(attention='heads', ")
    assert (second["requires"], second["provides"]) == (["Dependencies"], ["Partition"])
    assert (second["preserves"], third["preserves"][:2]) == ("everything", ["Dependencies", "Partition"])


def test_a_loss_that_is_no_number_is_null():
    training = fx_oto.Trajectory(8, "group sparsity 0.5")
    for step, loss in enumerate((0.5, math.nan, torch.tensor(math.inf), None)):
        training.add(step, step, loss)
    points = json.loads(training.to_json())["points"]
    assert [point["loss"] for point in points] == [0.5, None, None, None]
    assert [point["group_sparsity"] for point in points] == [0, 0.125, 0.25, 0.375]


def test_a_bar_in_a_cell_stays_in_it():
    @fx_oto.transformation_pass(name="a|b")
    def nothing(gm):
        return None

    assert r"| a\|b " in fx_oto.Pipeline((nothing,)).to_markdown()
    assert "a|b" in str(fx_oto.Pipeline((nothing,)))


def test_zeroing_can_be_chained():
    zigs = fx_oto.partition(fx_oto.prepare(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(2, 4)))
    assert zigs.zero_zigs_(0, torch.tensor([1, 5])) is zigs
    assert zigs.removed().tolist() == [2]


def test_the_last_column_is_wrapped_between_words():
    rows = [("a" * 10, "one two three four five six seven eight"), ("b", "nine")]
    lines = table(rows, ("name", "words"), width=40).splitlines()
    assert max(map(len, lines)) <= 40
    assert len(lines) == 5
    assert " ".join(line[12:].strip() for line in lines[2:4]) == rows[0][1]


def test_multiply_adds_are_those_of_one_sample():
    assert (macs_text(3_000), macs_text(3_000, 2)) == ("3,000", "1,500")
    assert (macs_text(8_178_368_512, 2), macs_text(5, 0)) == ("4,089.18M", "5")
