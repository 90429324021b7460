"""What is reported of passes and trainings is true, whole and readable in each form."""

from __future__ import annotations

import copy
import gc
import json
from html.parser import HTMLParser

import pytest
import torch
from support.networks import DemoNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fx_oto
from fx_oto.core.memory import PeakMemory

IMAGE = torch.randn(2, 3, 16, 16)


def counted(model):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(IMAGE)
    return counter.get_total_flops() // 2


@pytest.fixture(scope="module")
def compressed():
    seen = []
    gm = fx_oto.prepare(DemoNet(), IMAGE, on_pass=seen.append)
    fx_oto.partition(gm).zero_(0.5)
    return gm, fx_oto.compress(gm, on_pass=seen.append), seen


def test_every_pass_is_recorded_and_shown_to_the_hook(compressed):
    _, small, seen = compressed
    records = fx_oto.report(small).records
    assert list(records) == seen
    names = ["dependency-analysis", "zig-partition", "mask-insertion", "physical-slicing", "verification"]
    assert [record.name for record in records] == names
    assert [record.modified for record in records] == [False, False, True, True, False]
    assert all(record.seconds > 0 for record in records)


def test_numbers_agree_with_torch_and_the_state_dict(compressed):
    gm, small, _ = compressed
    for record, (before, after) in zip(
        fx_oto.report(small).records[2:], [(gm, gm), (gm, small), (small, small)], strict=True
    ):
        assert record.macs == (counted(before), counted(after))
        assert record.params == tuple(sum(p.numel() for p in model.parameters()) for model in (before, after))
        assert record.nodes[1] == len(after.graph.nodes)


def test_what_was_resized_is_what_the_state_dicts_say(compressed):
    gm, small, _ = compressed
    old, new = ({name: tuple(t.shape) for name, t in model.state_dict().items()} for model in (gm, small))
    resized = fx_oto.report(small).records[3].resized
    assert {name: pair for name, pair in resized.items() if None not in pair} == {
        name: (old[name], new[name]) for name in new if old[name] != new[name]
    }
    assert {name for name, (_, after) in resized.items() if after is None} >= {name for name in old if "mask" in name}


def test_the_diff_shows_the_masks_that_were_inserted(compressed):
    masking, slicing = fx_oto.report(compressed[1]).records[2:4]
    added = [line for line in masking.diff.splitlines() if line.startswith("+ ")]
    assert sum("self.zig_masks(bn1, 0, 1)" in line for line in added) == 1
    assert "zig_masks(" not in slicing.after.code
    assert "self.zig_masks" not in slicing.after.code
    assert "None" not in masking.after.code


def test_refusals_carry_their_reasons(compressed):
    refusals = fx_oto.report(compressed[1]).records[1].refusals
    assert any(
        text.startswith("linear2.weight[0], linear2.bias[0]: it is part of the model's output") for text in refusals
    )
    frozen = {str(axis.reason).split(" (op ")[0] for axis in fx_oto.partition(compressed[0]).frozen}
    assert {text.split(": ")[1].split(" (op ")[0] for text in refusals} == frozen


def test_families_without_a_mask_are_named():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.fc = nn.LSTM(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.fc(self.lstm(x)[0])

    masking = fx_oto.report(fx_oto.prepare(Recurrent(), torch.randn(3, 2, 4))).records[2]
    assert [text.split(":")[0] for text in masking.refusals] == [
        "the mask of the family 'lstm.weight_ih_l0' is not applied"
    ]


def test_ops_without_a_rule_are_refusals():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(torch.linalg.matrix_exp(self.a(x).view(-1, 6, 1) @ torch.ones(1, 6)).sum(-1))

    with pytest.warns(fx_oto.FxOtoWarning, match="matrix_exp") as warned:
        gm = fx_oto.prepare(Odd(), torch.randn(2, 4))
    assert warned[0].filename == __file__  # the line of the user's that led to it
    assert any(
        text.startswith("no rule is known") and "matrix_exp" in text for text in fx_oto.report(gm).records[0].refusals
    )


def test_the_text_is_tables(compressed):
    report = fx_oto.report(compressed[1])
    captured, table, refused = str(report).split("\n\n")
    assert captured.startswith("captured by fx_oto; sizes: x[0]: any")
    assert table.splitlines()[0].split("  ")[0] == "pass"
    sliced = report.records[3]
    row = next(line for line in table.splitlines() if line.startswith("physical-slicing"))
    assert f"{sliced.params[0]:,} → {sliced.params[1]:,} ({sliced.params[1] / sliced.params[0]:.1%})" in row
    before, after = (f"{macs / report.samples / 1e6:,.2f}M" for macs in sliced.macs)
    assert report.samples == 2
    assert f"{before} → {after}" in row  # of one sample, as all tables have it
    assert refused.splitlines()[0].split("  ")[0] == "pass"
    assert max(map(len, str(report).splitlines())) < 160


class _Checker(HTMLParser):
    """Whether tags are closed in order, and how many of each there are."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_html_folds_out_each_pass(compressed):
    report = fx_oto.report(compressed[1])
    text = report._repr_html_()
    page = _Checker(text)
    assert not page.open
    assert page.seen.count("details") == 5
    assert "conv2.weight" in text
    assert "zig_masks" in text
    assert '<td style="text-align: left;">conv2.weight' in text  # a notebook would move it to the right
    assert '<td style="text-align: right;">' in text
    assert "<td>" not in text
    assert "changed tensors</summary>" in text


def test_names_of_users_do_not_become_html():
    @fx_oto.transformation_pass(name="<b>loud</b>")
    def loud(gm):
        return None

    text = fx_oto.report(loud(fx_oto.trace(nn.Linear(2, 2), torch.randn(1, 2))).graph_module)._repr_html_()
    assert "<b>loud" not in text
    assert "&lt;b&gt;loud" in text


def test_markdown_and_json_hold_everything(compressed):
    report = fx_oto.report(compressed[1])
    markdown, data = report.to_markdown(), json.loads(report.to_json())
    assert markdown.count("<details>") == markdown.count("</details>") == 5
    for record, told in zip(report.records, data["passes"], strict=True):
        assert (told["name"], told["seconds"], told["peak_memory"]) == (record.name, record.seconds, record.peak_memory)
        assert (tuple(told["params"]), tuple(told["macs"])) == (record.params, record.macs)
        assert told["diff"] == record.diff
        assert told["refusals"] == list(record.refusals)
        assert all(reason in markdown for reason in record.refusals)
        assert record.diff in markdown
    assert data["capture"]["front_end"] == "fx_oto"
    assert data["training"] is None


def test_the_training_is_part_of_the_report():
    gm = fx_oto.prepare(DemoNet(), IMAGE)
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, total_steps=10)
    for _ in range(10):
        optimizer.zero_grad()
        loss = gm(IMAGE).square().mean()
        loss.backward()
        optimizer.note_loss(loss)
        optimizer.step()
    report = fx_oto.report(fx_oto.compress(gm))
    training = json.loads(report.to_json())["training"]
    assert training["points"][-1]["group_sparsity"] == pytest.approx(fx_oto.partition(gm).group_sparsity())
    for text in (str(report), report._repr_html_(), report.to_markdown()):
        assert report.training.summary in text
        assert "group sparsity" in text


def test_a_second_round_goes_on_with_the_record_of_the_first():
    gm = fx_oto.prepare(DemoNet(), IMAGE)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    again = fx_oto.report(fx_oto.prepare(small, IMAGE[:1]))
    assert again.records[:5] == fx_oto.report(small).records
    assert [record.name for record in again.records[5:]] == ["dependency-analysis", "zig-partition", "mask-insertion"]
    assert again.capture.front_end == "fx_oto"
    assert again.records[-1].macs[1] * 2 == again.records[4].macs[1]  # of half the batch


def test_a_copy_keeps_the_training_up_to_then_and_json_has_no_nan():
    gm = fx_oto.prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, total_steps=10)

    def train(losses):
        for noted in losses:
            optimizer.zero_grad()
            gm(torch.randn(2, 4)).square().mean().backward()
            optimizer.note_loss(torch.tensor(noted))
            optimizer.step()

    train([0.5, float("nan"), float("inf")])
    best = copy.deepcopy(gm)
    train([0.25] * 7)
    assert [len(fx_oto.report(one).training.rows()) for one in (best, gm)] == [3, 10]
    text = fx_oto.report(best).to_json()
    assert [point["loss"] for point in json.loads(text)["training"]["points"]] == [0.5, None, None]
    assert "NaN" not in text
    assert "Infinity" not in text


def test_peak_memory_is_seen():
    gc.collect()  # so that nothing is given back meanwhile
    with PeakMemory() as memory:
        if memory.bytes is None:
            pytest.skip("this system does not tell a process its memory")
        tensor = torch.ones(256 * 2**20, dtype=torch.uint8)
        for _ in range(20):
            tensor.add_(1)
        del tensor
    assert 200 * 2**20 < memory.bytes < 400 * 2**20


def test_a_pass_that_takes_memory_says_so():
    @fx_oto.transformation_pass
    def greedy(gm):
        torch.ones(256 * 2**20, dtype=torch.uint8).add_(1).add_(1).add_(1).add_(1).sum()

    gc.collect()
    peak = fx_oto.report(greedy(fx_oto.trace(nn.Linear(2, 2), torch.randn(1, 2))).graph_module).records[0].peak_memory
    assert peak is None or peak > 200 * 2**20
