"""A training whose process is killed again and again ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

import pytest
import torch
from support import killed

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
