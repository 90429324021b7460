"""What the command line refuses, in which words; exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fx_oto
from fx_oto.cli.main import main

INSPECT = ["inspect", "net.py:Net", "--input", "1,3,32,32"]
COMPRESS = ["compress", "net.py:Net", "--input", "1,3,32,32"]
TRAIN = ["--train", "net.py:train"]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            "net.py",
            "the model must be given as MODULE:NAME, such as package.module:factory or net.py:build; found",
        ),
        ("net:Nett", "net has no 'Nett'; did you mean 'Net'?"),
        ("net:Holder.ne", "net.Holder has no 'ne'; did you mean 'net'?"),
        (
            "tourch:nn",
            "no module is called 'tourch', neither in the working directory nor installed; did you mean 'torch'",
        ),
        ("torch.nm:Linear", "no module is called 'torch.nm', neither in the working directory nor installed; did you"),
        ("./nett.py:Net", "no file nett.py exists; did you mean 'net.py'?"),
        ("net.py:leaving", "net.py:leaving failed with SystemExit: no data here (--traceback shows where)"),
        ("net.py:number", "net.py:number is of type int: expected a function or class that returns a torch.nn.Module"),
        ("net.py:example", "net.py:example returned dict: expected a torch.nn.Module"),
        (
            "net.py:train",
            "net.py:train cannot be called with these arguments: missing a required argument: 'gm'; it takes (gm",
        ),
        ("broken.py:Net", "importing broken.py failed with ValueError: no such thing (--traceback shows where)"),
        ("script:Net", "importing script failed with SystemExit: 3; keep what a script does under if __name__"),
        (
            "lacking:Net",
            "importing lacking failed with ModuleNotFoundError: No module named 'nowhere'; install 'nowhere'",
        ),
    ],
)
def test_models_that_are_not_there(refused, folder, model, text):
    (folder / "broken.py").write_text("raise ValueError('no such thing')")
    (folder / "script.py").write_text("import sys; sys.exit(3)")
    (folder / "lacking.py").write_text("import nowhere")
    assert f"error: {text}" in refused("inspect", model, "--input", "1,3,32,32")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            "1,a",
            "--input 1,a: a size must be a positive integer, found 'a'; expected [NAME=]SIZES[:DTYPE[:LOW-HIGH]],",
        ),
        ("0,3", "--input 0,3: a size must be a positive integer, found '0'"),
        ("1,3:x:y:z", "--input 1,3:x:y:z: expected [NAME=]SIZES[:DTYPE[:LOW-HIGH]]"),
        ("1,3:flot32", "torch has no dtype 'flot32'; did you mean 'float32'"),
        ("1,3:int64:9-1", "expected LOW-HIGH with LOW < HIGH, such as 0-30522 or -1-1; found '9-1'"),
        ("1,4,32,32", "the model does not run on the example inputs"),
    ],
)
def test_inputs_that_do_not_fit(refused, spec, text):
    assert text in refused("inspect", "net.py:Net", "--input", spec)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("1,16", "to have one of the following scalar types: Long, Int"),
        ("1,16:int64:200-300", "index out of range in self"),
    ],
)
def test_token_ids_that_are_none_say_how_they_are_given(refused, spec, text):
    said = refused("inspect", "net.py:encoder", "--input", spec)
    assert text in said
    assert "\n--input: expected [NAME=]SIZES[:DTYPE[:LOW-HIGH]], such as 1,3,224,224 or input_ids=1,128:int64" in said


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--kwargs", "width"], "--kwargs expects NAME=VALUE, such as num_classes=10; found 'width'"),
        (["--kwargs", "width=3+"], "--kwargs width: expected a Python literal, such as 3, 0.1, None, [1,2] or 'text'"),
        (["--kwargs", "width=3", "width=4"], "--kwargs gives width twice"),
        (
            ["--kwargs", "wdth=3"],
            "cannot be called with these arguments: got an unexpected keyword argument 'wdth'; it takes (width=16, ",
        ),
        (["--kwargs", "width=-3"], "net.py:Net failed with RuntimeError: Trying to create tensor with negative"),
        (["--state-dict", "none.pt"], "--state-dict none.pt: no such file"),
        (
            ["--state-dict", "net.py"],
            "net.py cannot be loaded with torch.load(weights_only=True): write it with torch.save(",
        ),
        (["--state-dict", "bad.safetensors"], "bad.safetensors cannot be loaded with torch.load(weights_only=True)"),
        (["--state-dict", "other.pt"], 'other.pt does not fit Net: Missing key(s) in state_dict: "stem.weight"'),
        (["--state-dict", "list.pt"], "expected a state_dict, tensors by name; found list in --state-dict"),
        (["--device", "mta"], "--device mta: Expected one of cpu"),
        (["--only", "foo"], "the pattern 'foo' matches no parameter or module; names look like 'stem.weight'"),
        (["--unprunable", "foo"], "the pattern 'foo' in unprunable matches no parameter or module"),
    ],
)
def test_options_that_cannot_work(refused, folder, options, text):
    if "bad.safetensors" in options:
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    (folder / "bad.safetensors").write_bytes(b"no tensors")
    torch.save({"other": torch.ones(1)}, folder / "other.pt")
    torch.save([torch.ones(1)], folder / "list.pt")
    assert text in refused(*INSPECT, *options)


def test_a_model_that_is_ready_takes_no_arguments(refused):
    assert "net.py:ready is an instance, so --kwargs cannot be used" in refused(
        "inspect", "net.py:ready", "--input", "1,3,32,32", "--kwargs", "width=3"
    )


def test_example_inputs_that_are_none(refused):
    assert "example_inputs must be a tensor" in refused("inspect", "net.py:Net", "--inputs", "net.py:bad_example")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            [],
            "none of the 48 ZIGs is zero, so there is nothing to cut: train with --train MODULE:FUNCTION and a target",
        ),
        (TRAIN, "--train needs one target, a fraction in (0, 1): one of --target-group-sparsity, --target-params, "),
        ([*TRAIN, "--target-macs", ".1", "--target-params", ".1"], "; found --target-params and --target-macs"),
        ([*TRAIN, "--target-macs", ".1"], "--train needs --total-steps, the steps that FUNCTION takes in all"),
        (["--dry-run", "2"], "fraction must be a number in [0, 1], found 2.0"),
        (["--dry-run", ".5", "--target-macs", ".5"], "--target-macs can only be used with --train MODULE:FUNCTION"),
        (["--dry-run", ".5", "--lr", ".5"], "--lr can only be used with --train MODULE:FUNCTION"),
        (
            ["--dry-run", ".5", "--output", "x.onnx"],
            "--output x.onnx: expected a file ending in .pt2 (program), .pt or",
        ),
        (["--dry-run", ".5", "--output", "no/x.pt"], "--output no/x.pt: no folder no exists"),
        (
            ["--dry-run", ".5", "--device", "meta"],
            "a model on --device meta has no numbers, so it cannot be compressed: use inspect",
        ),
    ],
)
def test_jobs_that_cannot_be_done(refused, options, text):
    assert text in refused(*COMPRESS, *options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--target-macs", "2"], "target_macs must be a number between 0 and 1, both excluded; found 2.0"),
        (["--optimizer", "SDG"], "--optimizer: torch.optim has no 'SDG'; did you mean 'SGD'?"),
        (["--optimizer", "net:Net"], "--optimizer net:Net: expected a subclass of torch.optim.Optimizer, found"),
        (
            ["--set", "momntum=3"],
            "'momntum' is neither an argument of DHSPG nor of SGD, its base: did you mean 'momentum'?",
        ),
        (["--set", "lr=1", "--lr", "2"], "--lr 2 and --set lr=1 say the same: give one of them"),
        (["--set", "target_macs=0.2", "--target-macs", ".5"], "--target-macs 0.5 and --set target_macs=0.2 say the"),
        (["--set", "total_steps=3"], "--total-steps 10 and --set total_steps=3 say the same: give one of them"),
        (["--train", "net.py:leaving"], "net.py:leaving(gm, optimizer) failed with SystemExit: no data here"),
        (["--train", "net.py:number"], "--train net.py:number is of type int: expected a function of (gm, optimizer)"),
        (
            ["--train", "net.py:train_badly"],
            "net.py:train_badly(gm, optimizer) failed with KeyError: 'labels' (--trace",
        ),
    ],
)
def test_trainings_that_cannot_be_done(refused, options, text):
    rest = [] if "--target-macs" in options else ["--target-macs", "0.5"]
    assert text in refused(*COMPRESS, *TRAIN, "--total-steps", "10", *rest, *options)


@pytest.mark.parametrize(
    ("draw", "text"),
    [
        ("no/w.png", "--draw no/w.png: no folder no exists"),
        ("w.xyz", "a picture cannot be saved as 'w.xyz': expected a suffix such as .png, .svg or .pdf, found '.xyz'"),
        (".", "--draw .: this is a folder; name a file"),
    ],
)
def test_a_place_for_pictures_is_looked_for_before_any_work(refused, draw, text):
    nothing = ["net.py:nothing_of_this_name", "--input", "1,3,32,32"]
    assert text in refused("inspect", *nothing, "--draw", draw)
    assert text in refused("compress", *nothing, *TRAIN, "--total-steps", "9", "--target-macs", ".5", "--draw", draw)


def test_what_is_not_writable_is_refused_before_any_work(refused, folder, monkeypatch):
    (folder / "w.png").write_bytes(b"")
    monkeypatch.setattr("os.access", lambda *_: False)
    for options in (["--draw", "w.png"], ["--draw", "new.png"], ["--output", "small.pt"]):
        text = f"{' '.join(options)}: nothing can be written there: permission is denied"
        assert text in refused("compress", "net.py:nothing", "--input", "1", "--dry-run", ".5", *options)


def test_pictures_without_matplotlib_are_refused_before_any_work(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pictures need matplotlib" in refused("inspect", "net.py:nothing", "--input", "1", "--draw", "w.png")
    assert "pictures need matplotlib" in refused("demo", "--draw", "pictures")


def test_the_traceback_on_request(refused):
    options = [*TRAIN, "--total-steps", "10", "--target-macs", "0.5", "--train", "net.py:train_badly"]
    assert 'raise KeyError("labels")' in refused(*COMPRESS, *options, "--traceback")
    assert "Traceback" not in refused(*COMPRESS, *options)


def test_ctrl_c(capsys):
    assert main([*COMPRESS, "--train", "net.py:stopped", "--total-steps", "10", "--target-macs", "0.5"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_reader_that_has_gone():
    command = [sys.executable, "-m", "fx_oto", *INSPECT, "--json"]
    found = {**os.environ, "PYTHONPATH": str(Path(fx_oto.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=found) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_our_warnings_are_one_message(capsys, folder):
    (folder / "loud.py").write_text(
        "import warnings, fx_oto, net\n"
        "def build():\n"
        "    for _ in range(2): warnings.warn('something was kept', fx_oto.FxOtoWarning)\n"
        "    return net.Net()\n"
    )
    assert main(["inspect", "loud.py:build", "--input", "1,3,32,32"]) == 0
    assert capsys.readouterr().err == "warning: something was kept\n"


def test_an_output_that_is_a_folder_is_refused_at_once(refused, tmp_path):
    folder = tmp_path / "small.pt2"
    folder.mkdir()
    assert "this is a folder; name a file" in refused(*COMPRESS, "--dry-run", ".5", "--output", str(folder))
