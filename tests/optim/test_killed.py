"""A training whose process is killed again and again ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

import pytest
import torch
from support import killed
from support.torchrun import torchrun

KINDS = [("DHSPG", "SGD", "model"), ("DHSPG", "AdamW", "gm"), ("HESSO", "SGD", "gm"), ("HESSO", "AdamW", "model")]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system kills processes in another way")
@pytest.mark.parametrize(("kind", "base", "trained"), KINDS)
@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_a_training_that_is_killed_ends_as_one_that_is_not(tmp_path, kind, base, trained, kills):
    file, dice = tmp_path / "saved.pt", random.Random(f"{kind}{base}")
    steps = sorted(dice.sample(range(killed.EVERY, killed.STEPS), kills))
    for step in steps:
        command = [sys.executable, killed.__file__, str(file), kind, base, trained, str(step)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = killed.train(file, kind, base, trained)
    unbroken = killed.train(tmp_path / "other.pt", kind, base, trained)
    assert all(map(torch.equal, resumed.state_dict().values(), unbroken.state_dict().values()))
    assert sum(int((layer.weight == 0).all(1).sum()) for layer in unbroken if hasattr(layer, "weight")) == 20
    left, right = (torch.load(name) for name in (file, tmp_path / "other.pt"))
    assert str(left["optimizer"]["state"]) == str(right["optimizer"]["state"])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system kills processes in another way")
@pytest.mark.parametrize(("kind", "base", "trained"), [KINDS[0], pytest.param(*KINDS[3], marks=pytest.mark.slow)])
@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_two_processes_that_are_killed_end_as_two_that_are_not(tmp_path, kind, base, trained, kills):
    """Both are killed in one step, before or after the first has saved; what is saved is whole in any case."""
    files, dice = (tmp_path / "saved.pt", tmp_path / "other.pt"), random.Random(f"{kind}{base}")

    def run(file, step):
        return torchrun(2, killed.__file__, file, kind, base, trained, step)

    for step in sorted(dice.sample(range(killed.EVERY, killed.STEPS), kills)):
        done = run(files[0], step)
        assert done.returncode != 0
        assert "SIGKILL" in done.stderr, done.stderr[-3000:]
    for file in files:
        done = run(file, -1)
        assert done.returncode == 0, done.stderr[-3000:]
    left, right = map(torch.load, files)
    assert left["step"] == right["step"] == killed.STEPS
    assert all(map(torch.equal, left["model"].values(), right["model"].values()))
    assert str(left["optimizer"]["state"]) == str(right["optimizer"]["state"])
    phases = [saved["optimizer"]["param_groups"][0]["zigs"]["phases"] for saved in (left, right)]
    assert all(map(torch.equal, *phases))
    assert sum(int((phase == 2).sum()) for phase in phases[0]) == 20  # gone
