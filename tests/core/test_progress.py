"""Long work shows a bar on a terminal, and nothing elsewhere or when asked."""

from __future__ import annotations

import copy
import io
import re
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from support.training import prepared, train

import fx_oto
from fx_oto.core.progress import SWITCH, progress
from fx_oto.optim.latency import Latency


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def stream(monkeypatch, request):
    found = getattr(request, "param", io.StringIO)()
    monkeypatch.setattr("fx_oto.core.progress.sys", SimpleNamespace(stderr=found))
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr("fx_oto.core.progress._PATIENCE", 0)
    return found


def work(show=None):
    assert list(progress(range(5), "counting sheep", unit="sheep", show=show)) == list(range(5))


def test_silent_where_there_is_no_terminal(stream):
    work()
    work(show=False)
    assert stream.getvalue() == ""


def test_shown_when_asked(stream):
    work(show=True)
    assert re.search(r"counting sheep: 100%\|#+\| 5/5 \[.*sheep/s", stream.getvalue())


@pytest.mark.parametrize("stream", [Terminal], indirect=True)
def test_shown_on_a_terminal_unless_asked_not_to(stream, monkeypatch):
    work(show=False)
    monkeypatch.setenv(SWITCH, "0")
    work()
    assert stream.getvalue() == ""
    monkeypatch.delenv(SWITCH)
    work()
    assert "counting sheep: 100%" in stream.getvalue()


def test_the_environment_asks_for_all_and_an_argument_counts_more(stream, monkeypatch):
    monkeypatch.setenv(SWITCH, "1")
    work(show=False)
    assert stream.getvalue() == ""
    work()
    assert "counting sheep: 100%" in stream.getvalue()


@pytest.mark.parametrize("stream", [Terminal], indirect=True)
def test_what_is_done_at_once_shows_nothing(stream, monkeypatch):
    monkeypatch.setattr("fx_oto.core.progress._PATIENCE", 1000)
    work()
    assert stream.getvalue() == ""


def test_sensitivity_and_latency_show_theirs(stream):
    gm = prepared()
    fx_oto.sensitivity(gm, lambda gm: 1.0, fractions=0.5)
    fx_oto.latency(gm, torch.randn(2, 3, 8, 8, dtype=torch.float64), rounds=2, warmup=1)
    assert stream.getvalue() == ""
    fx_oto.sensitivity(gm, lambda gm: 1.0, fractions=0.5, progress=True)
    assert re.search(r"sensitivity: 100%\|#+\| 3/3", stream.getvalue())
    fx_oto.latency(gm, torch.randn(2, 3, 8, 8, dtype=torch.float64), rounds=2, warmup=1, progress=True)
    assert re.search(r"measuring latency: .*\| 0/2 ", stream.getvalue())


def test_the_optimizer_shows_the_training_when_asked(stream):
    settings = {"lr": 0.05, "target_group_sparsity": 0.5, "total_steps": 6, "saliency_batches": 1}
    gm = prepared()
    train(gm, fx_oto.DHSPG(gm, **settings), 6)
    assert stream.getvalue() == ""
    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, progress=True, **settings)
    train(gm, optimizer, 3)
    copy.deepcopy(optimizer)  # the bar is not copied
    train(gm, optimizer, 3)
    assert re.search(r"training: 100%\|#+\| 6/6 \[.*step/s, group sparsity 0\.500\]", stream.getvalue())


def test_a_resumed_training_goes_on_where_it_was(stream):
    settings = {"lr": 0.05, "target_group_sparsity": 0.5, "total_steps": 6, "saliency_batches": 1}
    gm = prepared()
    first = fx_oto.DHSPG(gm, **settings)
    train(gm, first, 5)
    second = fx_oto.DHSPG(gm, progress=True, **settings)
    second.load_state_dict(first.state_dict())
    train(gm, second, 1)
    assert "| 6/6 [" in stream.getvalue()


@pytest.mark.parametrize("stream", [Terminal], indirect=True)
def test_a_latency_target_shows_its_measurements(stream):
    gm = prepared()
    settings = {"lr": 0.05, "target_latency": 0.9999, "total_steps": 6}
    Latency(gm, rounds=2, progress=False).left(torch.tensor([3, 3]))
    assert stream.getvalue() == ""
    with suppress(fx_oto.SettingsError):  # this small, the compact model need not be the faster one
        fx_oto.DHSPG(gm, **settings)
    assert "measuring latency: " in stream.getvalue()
