"""A user's file, in the working directory of each test."""

from __future__ import annotations

import sys
import textwrap

import pytest

from fx_oto.cli.main import main

NET = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, width=16, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        return self.head(F.relu(self.body(F.relu(self.norm(self.stem(x))))).mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, input_ids, mask=None):
        return self.head(self.layer(self.embedding(input_ids), src_key_padding_mask=mask))


def encoder():
    return Encoder()


def example():
    return {"x": torch.randn(2, 3, 32, 32)}


def bad_example():
    return 3


def train(gm, optimizer, steps=40):
    print("a line of the user's own")
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(gm(torch.randn(8, 3, 32, 32)), torch.randint(0, 10, (8,)))
        loss.backward()
        optimizer.note_loss(loss)
        optimizer.step()


def train_badly(gm, optimizer):
    raise KeyError("labels")


def leaving(gm=None, optimizer=None):
    raise SystemExit("no data here")


def stopped(gm, optimizer):
    raise KeyboardInterrupt


ready = Net(8)
number = 3


class Holder:
    net = Net(4)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(textwrap.dedent(NET))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def refused(capsys):
    """Run a command that is refused; returns the message."""

    def run(*argv):
        assert main(list(argv)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    return run
