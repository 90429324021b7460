"""``compress``: training, trying, cutting, and the file that it writes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from support.vision import torchvision_models

import fx_oto
from fx_oto.cli.main import main

NET = ["compress", "net.py:Net", "--input", "2,3,32,32"]
TRAIN = ["--train", "net.py:train", "--total-steps", "40", "--lr", "0.1"]

LOAD = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
inputs = torch.load("inputs.pt")
torch.save([program(x) for x in inputs], "outputs.pt")
assert "fx_oto" not in sys.modules and "net" not in sys.modules
"""


def compressed(capsys, *argv):
    assert main([*argv, "--json"]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def in_a_fresh_process(folder, file, inputs):
    torch.save(inputs, folder / "inputs.pt")
    (folder / "load.py").write_text(LOAD)
    subprocess.run([sys.executable, "load.py", file], cwd=folder, check=True, timeout=300)
    return torch.load(folder / "outputs.pt")


def sparse_net():
    """A network of the user's with half of each family zero, and its compact form."""
    from net import Net

    net = Net().eval()
    torch.nn.init.uniform_(net.norm.running_mean)
    gm = fx_oto.prepare(net, torch.randn(2, 3, 32, 32))
    fx_oto.partition(gm).zero_(0.5)
    return net, gm, fx_oto.compress(gm)


def test_train_cut_and_write(capsys, folder):
    found, printed = compressed(
        capsys, *NET, *TRAIN, "--set", "momentum=0.9", "--target-macs", "0.4", "--output", "small.pt2"
    )
    assert "a line of the user's own" in printed
    assert found["target"] == {"name": "macs", "value": 0.4}
    assert found["reached"]["macs"] <= 0.4
    assert found["after"]["macs"] == round(found["reached"]["macs"] * found["before"]["macs"])
    assert found["after"]["params"] < found["before"]["params"] == 5450
    assert found["after"]["bytes"] < found["before"]["bytes"]
    assert found["after"]["seconds"] > 0
    assert 0 < found["group_sparsity"] < 1
    assert found["verification"]["error"] <= found["verification"]["tolerance"]
    assert [one["name"] for one in found["passes"]][-2:] == ["physical-slicing", "verification"]
    assert found["training"]["points"][-1]["group_sparsity"] == pytest.approx(found["group_sparsity"])
    assert found["output"]["kind"] == "program"
    assert found["output"]["dynamic_batch"] is True
    assert found["output"]["bytes"] == (folder / "small.pt2").stat().st_size


@pytest.mark.parametrize("batch", [1, 2])
def test_the_program_runs_without_any_code_of_ours(capsys, folder, batch):
    net, _, small = sparse_net()
    torch.save(net.state_dict(), folder / "sparse.pt")
    found, _ = compressed(
        capsys, "compress", "net.py:Net", "--input", f"{batch},3,32,32", "--state-dict", "sparse.pt", "--no-latency",
        "--output", "small.pt2",
    )  # fmt: skip
    assert found["group_sparsity"] == 0.5
    assert found["target"] is found["training"] is found["before"]["seconds"] is None
    inputs = [torch.randn(n, 3, 32, 32) for n in (1, 2, 5)]
    for x, output in zip(inputs, in_a_fresh_process(folder, "small.pt2", inputs), strict=True):
        torch.testing.assert_close(output, small(x))
        torch.testing.assert_close(output, net(x))


def test_exact_norms_survive_the_file(capsys, folder):
    found, _ = compressed(
        capsys, "compress", "net.py:encoder", "--input", "1,16:int64:0-100", "--dry-run", "0.5", "--no-latency",
        "--output", "small.pt2",
    )  # fmt: skip
    assert found["output"]["dynamic_batch"] is True
    assert found["output"]["error"] <= 1e-5
    outputs = in_a_fresh_process(folder, "small.pt2", [torch.randint(0, 100, (3, 16))])
    assert outputs[0].shape == (3, 16, 5)


@pytest.mark.parametrize("name", ["small.pt", "small.safetensors"])
def test_the_tensors_alone(capsys, folder, name):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    _, gm, small = sparse_net()
    torch.save({"epoch": 3, "state_dict": gm.state_dict()}, folder / "sparse.pt")  # with the masks that it has
    found, _ = compressed(capsys, *NET, "--state-dict", "sparse.pt", "--no-latency", "--output", name)
    assert found["output"]["kind"] == "state_dict"
    if name.endswith(".pt"):
        state = torch.load(folder / name, weights_only=True)
    else:
        from safetensors.torch import load_file

        state = load_file(folder / name)
    assert set(state) == set(small.state_dict())
    small.load_state_dict({key: torch.zeros_like(value) for key, value in small.state_dict().items()})
    small.load_state_dict(state)
    assert small(torch.randn(1, 3, 32, 32)).abs().max() > 0


def test_a_dry_run_prints_before_and_after(capsys, folder):
    assert main([*NET, "--dry-run", "0.5", "--draw", "widths.svg"]) == 0
    assert "</svg>" in (folder / "widths.svg").read_text()
    text = capsys.readouterr().out
    assert "50.0% of the zero-invariant groups are gone" in text
    assert "captured by fx_oto" in text
    for row in ("parameters", "MACs", "state_dict", "latency", "physical-slicing"):
        assert row in text
    assert "asked" not in text


def test_other_optimizers_and_targets(capsys):
    found, _ = compressed(
        capsys, *NET, *TRAIN[:-2], "--lr", "1e-3", "--method", "hesso", "--optimizer", "torch.optim:AdamW",
        "--no-latency", "--target-group-sparsity", "0.5", "--set", "weight_decay=0.01", "round_to=2",
    )  # fmt: skip
    assert found["reached"]["group_sparsity"] == 0.5


def test_a_torchvision_network(capsys, folder):
    torchvision_models()
    found, _ = compressed(
        capsys, "compress", "torchvision.models:mobilenet_v3_small", "--input", "1,3,32,32", "--dry-run", "0.5",
        "--no-latency", "--output", "small.pt2",
    )  # fmt: skip
    assert found["output"]["dynamic_batch"] is True
    assert found["after"]["params"] < 0.5 * found["before"]["params"]


DRY = [*NET, "--dry-run", "0.5", "--no-latency", "--output"]


def test_inputs_of_no_common_batch_are_exported_as_they_are(capsys, folder):
    (folder / "pair.py").write_text(
        "import net\n"
        "class Pair(net.Net):\n"
        "    def forward(self, x, y):\n"
        "        return super().forward(x).sum(0), super().forward(y)\n"
    )
    inputs = ["--input", "2,3,32,32", "--input", "3,3,32,32"]
    found, _ = compressed(capsys, "compress", "pair.py:Pair", *inputs, *DRY[4:], "small.pt2")
    assert found["output"]["dynamic_batch"] is False
    assert found["output"]["error"] <= 1e-5


def test_a_program_that_differs_is_not_written(refused, folder, monkeypatch):
    monkeypatch.setattr("fx_oto.cli.saving.relative_error", lambda *_: 0.5)
    text = "the program for small.pt2, loaded again, differs from the compact model by 5.0e-01 of the output, so it was"
    found = refused(*DRY, "small.pt2")
    assert text in found
    assert "; the tensors of the compact model are in small-tensors.pt instead" in found
    assert not (folder / "small.pt2").exists()
    assert torch.load(folder / "small-tensors.pt")["stem.weight"].shape == (8, 3, 3, 3)


def test_what_cannot_be_exported_is_said(refused, folder, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("not today")

    monkeypatch.setattr("torch.export.export", refuse)
    text = "torch.export cannot take the compact model (RuntimeError: not today); the tensors of the compact model are"
    assert text in refused(*DRY, "small.pt2")
    assert torch.load(folder / "small-tensors.pt")["stem.weight"].shape == (8, 3, 3, 3)


def test_what_was_trained_is_written_before_pictures(folder, monkeypatch):
    def fail(*_):
        raise RuntimeError("no picture today")

    monkeypatch.setattr("fx_oto.cli.compressing.plot_widths", fail)
    with pytest.raises(RuntimeError, match="no picture today"):
        main([*DRY, "small.pt", "--draw", "widths.svg"])
    assert torch.load(folder / "small.pt")["stem.weight"].shape == (8, 3, 3, 3)


def test_safetensors_may_be_missing(refused, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "writing small.safetensors needs safetensors: pip install" in refused(*DRY, "small.safetensors")
    (folder / "full.safetensors").write_bytes(b"")
    assert "reading full.safetensors needs safetensors" in refused(*DRY[:4], "--state-dict", "full.safetensors")
