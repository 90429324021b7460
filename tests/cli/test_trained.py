"""What ``--train`` has trained is not lost by what fails after it, or in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fx_oto
from fx_oto.cli import compressing
from fx_oto.cli.main import main
from fx_oto.core import paths

NET = ["compress", "net.py:Net", "--input", "2,3,32,32", "--no-latency"]
SETTINGS = ["--total-steps", "10", "--lr", "0.1", "--target-macs", "0.4"]
TRAIN = [*NET, "--train", "steps.py:ten", *SETTINGS]

STEPS = """
import net

def ten(gm, optimizer):
    net.train(gm, optimizer, steps=10)

def failing(gm, optimizer):
    net.train(gm, optimizer, steps=7)
    raise OSError("no such image")

def stopped(gm, optimizer):
    net.train(gm, optimizer, steps=1)
    raise KeyboardInterrupt
"""


@pytest.fixture(autouse=True)
def steps(folder):
    (folder / "steps.py").write_text(STEPS)


def files(folder):
    return {path.name for path in folder.iterdir() if path.suffix not in (".py", "")}


def failing_cut(monkeypatch, error):
    def fail(gm):
        assert list(Path().glob("*-trained.pt"))  # whatever ends the process now
        raise error

    monkeypatch.setattr(compressing, "cut", fail)


@pytest.mark.parametrize(
    ("error", "code"),
    [(fx_oto.VerificationError("they differ"), 2), (KeyboardInterrupt(), 130), (MemoryError("too little"), 1)],
)
@pytest.mark.parametrize(("output", "name"), [(["--output", "small.pt"], "small-trained.pt"), ([], "Net-trained.pt")])
def test_the_command_goes_on_from_a_training_before_a_failure(capsys, folder, monkeypatch, error, code, output, name):
    whole = [*TRAIN, "--output", "whole.pt"]
    assert main(whole) == 0
    assert files(folder) == {"whole.pt"}  # the weights themselves were there until it was written
    with monkeypatch.context() as patch:
        failing_cut(patch, error)
        if code == 1:  # a mistake of ours, whose traceback ends in the note
            with pytest.raises(MemoryError) as caught:
                main([*TRAIN, *output])
            said = "".join(caught.value.__notes__)
        else:
            assert main([*TRAIN, *output]) == code
            said = capsys.readouterr().err
    assert f"The weights after 10 steps are in {name}; go on with --state-dict {name}: without --train" in said
    assert main([*NET, "--state-dict", name, "--output", "small.pt"]) == 0
    found, expected = (torch.load(folder / one) for one in ("small.pt", "whole.pt"))
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert torch.equal(tensor, expected[key]), key
    assert name in files(folder)  # it is the user's to remove


@pytest.mark.parametrize(
    ("function", "code", "said"),
    [
        (
            "failing",
            2,
            "failed with OSError: no such image (--traceback shows where)\nThe weights after 7 steps are in",
        ),
        ("stopped", 130, "\ninterrupted\nThe weights after 1 step are in small-trained.pt; go on with --state-dict"),
    ],
)
def test_a_training_that_fails_keeps_what_was_trained(capsys, folder, function, code, said):
    assert main([*NET, "--train", f"steps.py:{function}", *SETTINGS, "--output", "small.pt"]) == code
    assert said in capsys.readouterr().err
    assert main([*TRAIN, "--state-dict", "small-trained.pt", "--output", "small.pt"]) == 0
    assert files(folder) == {"small-trained.pt", "small.pt"}


def test_a_training_without_a_step_leaves_nothing(refused, folder):
    refused(*NET, "--train", "net.py:train_badly", *SETTINGS)
    assert files(folder) == set()


def test_no_file_is_overwritten(capsys, folder, monkeypatch):
    for name in ("small-trained.pt", "small-trained-2.pt"):
        (folder / name).write_text("of another training")
    failing_cut(monkeypatch, fx_oto.VerificationError("they differ"))
    assert main([*TRAIN, "--output", "small.pt"]) == 2
    assert "are in small-trained-3.pt; go on with --state-dict small-trained-3.pt" in capsys.readouterr().err
    assert {(folder / name).read_text() for name in ("small-trained.pt", "small-trained-2.pt")} == {
        "of another training"
    }


def test_without_an_output_the_weights_stay(capsys, folder):
    assert main(TRAIN) == 0
    assert "without --output: wrote Net-trained.pt, the trained weights; go on with --state-dict" in " ".join(
        capsys.readouterr().out.split()
    )
    assert files(folder) == {"Net-trained.pt"}
    assert main([*TRAIN, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trained"] == "Net-trained-2.pt"
    assert main([*TRAIN, "--json", "--output", "small.pt"]) == 0
    assert json.loads(capsys.readouterr().out)["trained"] is None


def test_a_disk_that_is_full_for_them_does_not_end_the_command(capsys, folder, monkeypatch):
    replace = paths.os.replace

    def full(source, path):
        if path.name.endswith("-trained.pt"):
            raise OSError(28, "No space left on device")
        replace(source, path)

    monkeypatch.setattr(paths.os, "replace", full)
    assert main([*TRAIN, "--output", "small.pt"]) == 0
    assert "warning: the trained weights are not saved: small-trained.pt cannot be written: No space" in (
        " ".join(capsys.readouterr().err.split())
    )
    assert files(folder) == {"small.pt"}


@pytest.mark.parametrize("name", ["small.pt2", "small.pt", "small.safetensors"])
def test_an_output_that_cannot_be_written_leaves_the_one_before(refused, folder, monkeypatch, name):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    (folder / name).write_text("of another training")

    def full(source, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths.os, "replace", full)
    said = refused(*NET, "--dry-run", "0.5", "--output", name)
    assert f"error: {name} cannot be written: No space left on device. What was there before is as it was" in said
    assert (folder / name).read_text() == "of another training"
    assert files(folder) == {name}


LIMITED = """
import resource, sys
from fx_oto.cli.main import main

resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["small.pt2", "small.pt"])
def test_a_file_that_may_not_grow(folder, name):
    """Of which torch's own writers make an error without these words, or the end of the process."""
    (folder / name).write_text("of another training")
    (folder / "limited.py").write_text(LIMITED)
    command = [sys.executable, "limited.py", *NET, "--dry-run", "0.5", "--output", name]
    found = {**os.environ, "PYTHONPATH": str(Path(fx_oto.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=found, check=False, timeout=300)
    assert done.returncode == 2, done.stderr
    assert f"error: {name} cannot be written: File too large" in done.stderr
    assert (folder / name).read_text() == "of another training"
