"""Latency: the models take turns after a warm-up, each is waited for, and nothing is changed; no time is asserted."""

from __future__ import annotations

import json
import statistics

import pytest
import torch
from torch import nn

import fx_oto
from fx_oto.reports import timing

CALLS = []


class Counting(nn.Module):
    """Notes how it is called."""

    def __init__(self, name):
        super().__init__()
        self.name, self.dropout, self.weight = name, nn.Dropout(), nn.Parameter(torch.ones(2))
        self.dropout.eval()

    def forward(self, x, scale=1):
        CALLS.append((self.name, self.training, torch.is_grad_enabled(), tuple(x.shape), scale))
        return x


@pytest.fixture(autouse=True)
def _forget():
    CALLS.clear()


def test_models_take_turns_after_a_warm_up():
    models = {"full": Counting("full"), "compact": Counting("compact")}
    found = fx_oto.latency(models, ((torch.ones(3, 1),), {"scale": 2}), rounds=4, warmup=2)
    expected = [(name, False, False, (3, 1), 2) for name in ("full", "compact")]
    assert expected * 6 == CALLS
    assert [len(model.seconds) for model in found] == [4, 4]
    assert torch.is_grad_enabled()
    assert all(model.training and not model.dropout.training for model in models.values())


def test_modes_are_restored_when_a_model_fails():
    models = [nn.Linear(4, 4), nn.Linear(5, 5)]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fx_oto.latency(models, torch.ones(2, 4))
    assert all(model.training for model in models)
    assert torch.is_grad_enabled()


def test_devices_are_waited_for_before_the_clock_is_read(monkeypatch):
    events = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: events.append(str(device)))
    model = Counting("meta").to("meta")
    model.register_forward_hook(lambda *_: events.append("forward"))
    runs = [timing._run(model, fx_oto.ExampleInputs.of(torch.ones(2, 1)))]
    ticks = iter(range(100))
    seconds = timing.in_turns(runs, 2, 1, clock=lambda: events.append("clock") or next(ticks))
    assert events == ["meta", *["clock", "forward", "meta", "clock"] * 3]
    assert seconds == [[1, 1]]


def test_medians_quartiles_and_ratios():
    durations = {"a": [9.0, 2.0, 1.0, 4.0, 3.0, 5.0], "b": [7.0, 1.0, 1.0, 1.5, 2.0, 2.5]}
    now, order = [0.0], [name for pair in zip(*[[key] * 6 for key in durations], strict=True) for name in pair]
    reads = []

    def clock():
        reads.append(now[0])
        if len(reads) % 2:
            name = order[len(reads) // 2]
            now[0] += durations[name][len(reads) // 4]
            return reads[-1]
        return now[0]

    seconds = timing.in_turns([lambda: None, lambda: None], 5, 1, clock=clock)
    assert seconds == [durations["a"][1:], durations["b"][1:]]
    one = timing.ModelLatency("a", tuple(seconds[0]), 1.0)
    assert one.median == statistics.median(seconds[0]) == 3
    assert one.quartiles == (2, 4)
    assert timing.ModelLatency("a", (0.5,), 1.0).quartiles == (0.5, 0.5)
    both = timing.LatencyComparison((one, timing.ModelLatency("b", tuple(seconds[1]), 0.5)))
    assert str(both).splitlines()[2].split() == ["a", "3e+03", "ms", "2e+03", "–", "4e+03", "ms", "100.0%"]
    assert both["b"].median == 1.5
    assert "<table>" in both._repr_html_()
    assert both.to_markdown().startswith("| model")
    assert json.loads(both.to_json())["models"][1] == {
        "name": "b",
        "median": 1.5,
        "quartiles": [1, 2],
        "ratio": 0.5,
        "seconds": [1, 1, 1.5, 2, 2.5],
    }


def test_ratios_are_to_the_first():
    found = fx_oto.latency([Counting("a"), Counting("b"), nn.Identity()], torch.ones(1), rounds=3)
    assert [model.name for model in found] == ["0: Counting", "1: Counting", "2: Identity"]
    assert [model.ratio for model in found] == [model.median / found.models[0].median for model in found]
    assert found.models[0].ratio == 1
    (alone,) = fx_oto.latency(nn.Identity(), torch.ones(1), rounds=1, warmup=0)
    assert alone.ratio == 1


def test_wrong_arguments():
    x = torch.ones(2, 4)
    for models, text in ((len, "<built-in function len>"), ({}, r"\{\}"), ({"a": len}, "'builtin_function_or_method'")):
        with pytest.raises(fx_oto.InputError, match=r"models must be a torch.nn.Module, a list .*; found .*" + text):
            fx_oto.latency(models, x)
    with pytest.raises(fx_oto.SettingsError, match="rounds must be at least 1 and warmup at least 0; found 0 and 3"):
        fx_oto.latency(nn.Linear(4, 2), x, rounds=0)
    with pytest.raises(fx_oto.SettingsError, match=r"no model is called 'b'; this comparison has '0: Linear'"):
        fx_oto.latency(nn.Linear(4, 2), x, rounds=1)["b"]
