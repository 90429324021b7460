"""``inspect``: what it prints, its JSON, and how models and inputs are named."""

from __future__ import annotations

import json

import pytest
import torch
from support.vision import torchvision_models

import fx_oto
from fx_oto.cli.main import main
from fx_oto.cli.values import read_inputs

INPUT = ["--input", "1,3,32,32"]


def inspected(capsys, *argv):
    assert main(["inspect", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_json_agrees_with_the_partition(capsys, folder):
    found = inspected(capsys, "net.py:Net", *INPUT)
    from net import Net

    net = Net()
    zigs = fx_oto.partition(fx_oto.prepare(net, torch.randn(1, 3, 32, 32)))
    assert found["schema"] == 1
    assert found["command"] == "inspect"
    sizes = [{"dims": [["x", dim]], "size": size, "fixed": "", "decided": ""} for dim, size in ((0, 1), (1, 3))]
    assert found["capture"]["front_end"] == "fx_oto"
    assert found["capture"]["opaque"] == []
    assert found["capture"]["sizes"][:2] == sizes
    assert found["cost"]["params"] == sum(p.numel() for p in net.parameters()) == 5450
    assert found["cost"]["macs"] == zigs.macs.total
    assert [(f["name"], f["zigs"]) for f in found["families"]] == [(f.name, len(f)) for f in zigs.families]
    assert [one["params_per_zig"] for one in found["families"]] == zigs.params.marginal.tolist()
    assert found["zigs"] == 48
    slots = {(slot["tensor"], slot["dim"]): slot["variable"] for slot in found["families"][0]["slots"]}
    assert slots["stem.weight", 0]
    assert not slots["body.weight", 1]
    assert found["explained"]["kept"] == zigs.explain().kept == 10
    axes = {(axis["tensor"], axis["dim"]): axis for axis in found["axes"]}
    assert axes["head.weight", 0]["kept"] == 10
    assert axes["head.weight", 0]["why"] == "it is part of the model's output (op output)"
    assert axes["body.weight", 1]["families"] == ["stem.weight"]
    assert {cause["why"]: cause["axes"] for cause in found["causes"]}["it is the model's input 'x'"] == 1


def test_the_keys_of_the_json_are_stable(capsys):
    found = inspected(capsys, "net.py:Net", *INPUT)
    assert list(found) == [
        *("schema", "command", "version", "model", "capture", "cost", "explained", "zigs", "families", "removal"),
        *("causes", "axes", "warnings"),
    ]
    assert list(found["families"][0]) == ["name", "zigs", "params_per_zig", "macs_per_zig", "slots"]
    assert list(found["families"][0]["slots"][0]) == ["tensor", "dim", "variable", "indices"]
    assert list(found["causes"][0]) == ["why", "axes", "cost"]
    assert list(found["axes"][0]) == ["tensor", "dim", "size", "prunable", "kept", "cost", "families", "why"]


def test_what_would_be_left_is_what_is_left(capsys):
    foreseen = {row["fraction"]: row for row in inspected(capsys, "net.py:Net", *INPUT)["removal"]}[0.75]
    assert main(["compress", "net.py:Net", *INPUT, "--dry-run", "0.75", "--no-latency", "--json"]) == 0
    after = json.loads(capsys.readouterr().out)["after"]
    assert (foreseen["params"], foreseen["macs"]) == (after["params"], after["macs"])


def test_a_text_that_fits_the_width(capsys):
    assert main(["inspect", "net.py:Net", *INPUT, "--frozen"]) == 0
    text = capsys.readouterr().out
    assert "net.py:Net (Net): 5,450 parameters" in text
    assert "48 zero-invariant groups (ZIGs) in 2 families" in text
    assert "stem, norm, body" in text
    assert "head.weight[0]" in text
    assert "body.weight[2]" not in text  # a window is nothing to prune
    assert max(map(len, text.splitlines())) <= 100
    assert main(["inspect", "net.py:Net", *INPUT, "--frozen"]) == 0
    assert capsys.readouterr().out == text


def test_only_a_part(capsys):
    found = inspected(capsys, "net.py:Net", *INPUT, "--only", "norm", "body.bias")
    assert {axis["tensor"] for axis in found["axes"]} == {"norm.weight", "norm.bias", "body.bias"}
    assert [family["name"] for family in found["families"]] == ["stem.weight", "body.weight"]
    assert [f["name"] for f in inspected(capsys, "net.py:Net", *INPUT, "--only", "head")["families"]] == ["body.weight"]


@pytest.mark.parametrize(
    ("name", "params"), [("net:Net", 5450), ("net:ready", 1578), ("net:Holder.net", 506), ("./net.py:Net", 5450)]
)
def test_models_by_any_name(capsys, name, params):
    found = inspected(capsys, name, *INPUT)
    assert found["cost"]["params"] == params


def test_options_reach_the_model_and_its_analysis(capsys):
    found = inspected(capsys, "net.py:Net", *INPUT, "--kwargs", "width=4", "classes=3", "--unprunable", "stem")
    assert [family["name"] for family in found["families"]] == ["body.weight"]
    found = inspected(capsys, "net.py:Net", "--inputs", "net.py:example")
    assert found["zigs"] == 48
    found = inspected(capsys, "net.py:Net", *INPUT, "--device", "meta")
    assert found["cost"]["params"] == 5450


def test_named_inputs_and_attention(capsys):
    inputs = ["--input", "input_ids=1,16:int64:0-100", "--input", "mask=1,16:bool"]
    heads = inspected(capsys, "net.py:encoder", *inputs)
    widths = inspected(capsys, "net.py:encoder", *inputs, "--attention", "head_dim")
    sizes = [{f["name"]: f["zigs"] for f in found["families"]} for found in (heads, widths)]
    assert [size["layer.self_attn.in_proj_weight"] for size in sizes[:1]] == [4]
    assert 8 in sizes[1].values()


def test_shapes_are_read():
    inputs = read_inputs(["2,3", "5:int32:-7--3", "1,4:float64:2-2.5", "flag=3:bool"])
    one, two, three = inputs.args
    assert one.shape == (2, 3)
    assert two.dtype == torch.int32
    assert set(two.tolist()) <= {-7, -6, -5, -4}
    assert three.dtype == torch.float64
    assert 2 <= three.min() <= three.max() <= 2.5
    assert inputs.kwargs["flag"].dtype == torch.bool


def test_a_torchvision_network(capsys, folder):
    torchvision_models()
    found = inspected(capsys, "torchvision.models:resnet18", "--kwargs", "num_classes=7", "--input", "1,3,64,64")
    assert found["zigs"] == 2880
    assert found["cost"]["params"] == 11_180_103
