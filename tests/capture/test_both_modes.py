"""Where one training mode has a tensor and the other a number, or nothing, both meet the same channels."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto


@dataclass
class Record:
    """What code makes, with a cache in evaluation alone."""

    part: torch.Tensor
    cache: torch.Tensor | None = None


class Net(nn.Module):
    """Linear layers around some code."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.inner, self.shift, self.code = nn.Linear(8, 8), nn.Parameter(torch.randn(8)), code

    def forward(self, x):
        return self.c(F.relu(self.b(self.code(self, self.a(x)))))


def _share(model, h):
    return h.new_tensor([0.5]).expand(h.shape[0], 1) if model.training else 0.5


def _matched(model, h):
    match model.training:
        case True:
            return h * 2
        case _:
            return h


def _spread(model, h):
    """Reads the second size first in training."""
    scale = 1 / h.shape[1] if model.training else 1
    batch, width = h.shape
    return h * scale + h.square().mean(1, keepdim=True).expand(batch, width)


CODES = {
    "shift or 0": lambda m, h: h + (m.shift if m.training else 0),
    "0 or shift": lambda m, h: h + (0 if m.training else m.shift),
    "factor or 1": lambda m, h: h * (m.shift if m.training else 1),
    "layer or 0": lambda m, h: h + (m.inner(h) if m.training else 0),
    "0 or layer": lambda m, h: h + (0 if m.training else m.inner(h)),
    "bias or None": lambda m, h: F.linear(h, m.inner.weight, bias=m.inner.bias if m.training else None),
    "weight of a norm or None": lambda m, h: F.layer_norm(h, (8,), m.shift if m.training else None),
    "a part more": lambda m, h: torch.cat([h, *([m.inner(h)] if m.training else [])], -1)[..., :8],
    "random or a half": lambda m, h: h + _share(m, h) * m.inner(h) + (1 - _share(m, h)) * m.shift,
    "an argument more": lambda m, h: torch.clamp(h, min=0.1) if m.training else torch.clamp(h, 0.1, 2.0),
    "a record with one part more": lambda m, h: (Record(h) if m.training else Record(h, cache=h)).part,
    "training is True": lambda m, h: h * 2 if m.training is True else h,
    "training is not False": lambda m, h: h * 2 if m.training is not False else h,
    "False is training": lambda m, h: h if False is m.training else h * 2,
    "training == True": lambda m, h: h * 2 if m.training == True else h,  # noqa: E712
    "not training": lambda m, h: h if not m.training else h * 2,
    "a bool": lambda m, h: h * (2 if isinstance(m.training, bool) and m.training else 1),
    "matched": _matched,
    "dropout beside": lambda m, h: F.dropout(h, 0.0, m.training) * (2 if m.training is True else 1),
    "a number": lambda m, h: h * (1 + m.training) if m.training is not None else h,
    "the other way round": lambda m, h: m.shift * h if m.training else h * 0.5,
    "sizes in another order": _spread,
    "nobody reads it": lambda m, h: (h + (m.shift if m.training else 0), h)[1],
}


# A second product, or a norm, only to choose between the results, would cost more than is gained.
KEPT = ("bias or None", "weight of a norm or None", "a part more")


@pytest.mark.parametrize("name", CODES)
def test_a_tensor_or_a_number(name):
    found = compress_half(Net(CODES[name]), torch.randn(3, 4))
    assert found.zigs == (6 if name in KEPT else 14)


def test_the_reason_is_told():
    gm = fx_oto.prepare(Net(CODES["bias or None"]), torch.randn(3, 4))
    reasons = {axis.reason.why for axis in fx_oto.partition(gm).frozen if axis.tensor == "inner.weight"}
    assert reasons == {"it meets a tensor that there is in training only"}


def _dropped_at_random(h):
    drawn = torch.argsort(torch.randn(len(h), h.shape[1] - 1), dim=-1)[:, : max(1, h.shape[1] // 2)]
    return torch.cat([h[:, :1], h[:, 1:].gather(1, drawn.sort().values.unsqueeze(-1).expand(-1, -1, h.shape[2]))], 1)


# What training makes of tokens.
FEWER = {
    "every other": lambda h: h[:, ::2],
    "the first, and the last": lambda h: torch.cat([h[:, :1], h[:, -2:]], 1),
    "one more": lambda h: torch.cat([h, h.mean(1, keepdim=True)], 1),
    "at random": _dropped_at_random,
    "a mean, which is broadcast": lambda h: h.mean(1, keepdim=True),
}


class Tokens(nn.Module):
    """Has other numbers of tokens in training than in evaluation."""

    def __init__(self, fewer):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.norm, self.fewer = nn.LayerNorm(8), fewer

    def forward(self, x):
        h = self.a(x)
        h = self.fewer(h) if self.training else h
        return self.c((h + self.b(F.relu(self.norm(h)))).mean(1))


@pytest.mark.parametrize("name", FEWER)
def test_fewer_tokens_in_training(name):
    model = Tokens(FEWER[name])
    found = compress_half(model, torch.randn(3, 6, 4))
    assert found.zigs == 8
    x, outputs = torch.randn(2, 6, 4, dtype=torch.float64), []
    for one in (model, found.small):
        torch.manual_seed(0)
        outputs.append(one.train()(x))
    torch.testing.assert_close(*outputs)


class Widths(nn.Module):
    """Has twice the channels in training, which a module reads, or none."""

    def __init__(self, module):
        super().__init__()
        self.a, self.b, self.module = nn.Linear(4, 8), nn.Linear(8, 8), module

    def forward(self, x):
        h = self.a(x)
        h = torch.cat([h, h], -1) if self.training else h
        h = h.relu() if self.module is None else self.module(h)
        return self.b(h.unflatten(-1, (-1, 8)).sum(-2)).relu().mean(-1)


@pytest.mark.parametrize("module", [None, nn.ReLU()])
def test_other_widths_in_training(module):
    gm = compress_half(Widths(module), torch.randn(3, 4)).gm
    kept = [axis.reason.why for axis in fx_oto.partition(gm).frozen if (axis.tensor, axis.dim) == ("a.weight", 0)]
    assert kept == ([] if module is None else ["training and evaluation return different things here"])


class Detector(nn.Module):
    """Reads its targets in training alone, and selects, by values, in evaluation alone."""

    def __init__(self, loss):
        super().__init__()
        self.a, self.b, self.loss = nn.Linear(4, 8), nn.Linear(8, 2), loss

    def forward(self, x, targets=None):
        y = self.b(self.a(x).relu())
        if self.training and targets is not None:
            return {"loss": self.loss(y, targets)}
        return [{"kept": row[row > 0]} for row in y]


LOSSES = {
    "each target": lambda y, targets: sum((y - target["y"]).square().mean() for target in targets),
    "each target of each row": lambda y, targets: sum((row - t["y"]).square().mean() for row in y for t in targets),
    "the second": lambda y, targets: (y - targets[1]["y"]).mean(),
    "backwards": lambda y, targets: sum((y - target["y"]).square().mean() for target in reversed(targets)),
}


@pytest.mark.filterwarnings("ignore:the graph takes batches of 2 only")  # the rows are iterated over
@pytest.mark.parametrize("name", LOSSES)
def test_targets_that_training_alone_reads(name):
    model = Detector(LOSSES[name])
    targets = [{"y": torch.tensor(1.0)}, {"y": torch.tensor(0.25)}]
    gm = fx_oto.prepare(model, (torch.randn(2, 4), targets))
    x = torch.randn(2, 4)
    torch.testing.assert_close(gm.train()(x, targets), model.train()(x, targets))
    torch.testing.assert_close(gm.eval()(x, targets), model.eval()(x, targets))
    assert fx_oto.partition(gm).num_zigs == 8


class AttributeDict(dict):
    """Without an attribute it raises a KeyError, as many write it."""

    __getattr__ = dict.__getitem__


class OwnItems(dict):
    """Has its items as its attributes."""

    def __init__(self, **items):
        super().__init__(**items)
        self.__dict__ = self


class Pair(NamedTuple):
    out: torch.Tensor
    aux: torch.Tensor | None = None


# Of the mode, and two heads.
FORMS = {
    "a key more": lambda t, aux, out: {"out": out(), **({"aux": aux()} if t else {})},
    "a key more, before": lambda t, aux, out: {**({"aux": aux()} if t else {}), "out": out()},
    "a tensor or None": lambda t, aux, out: {"out": out(), "aux": aux() if t else None},
    "a list within": lambda t, aux, out: {"out": out(), "more": {"aux": [aux()] if t else []}},
    "a dictionary within": lambda t, aux, out: (out(), {"aux": aux()} if t else {}),
    "other keys": lambda t, aux, out: {"aux": aux()} if t else {"out": out()},
    "a key more in evaluation": lambda t, aux, out: {"out": out(), **({} if t else {"aux": aux()})},
    "an ordered dictionary": lambda t, aux, out: OrderedDict(out=out(), **({"aux": aux()} if t else {})),
    "a dictionary of attributes": lambda t, aux, out: AttributeDict(out=out(), **({"aux": aux()} if t else {})),
    "a dictionary that is its own attributes": lambda t, aux, out: OwnItems(out=out(), **({"aux": aux()} if t else {})),
    "a list": lambda t, aux, out: [out(), *([aux()] if t else [])],
    "a tuple or a tensor": lambda t, aux, out: (out(), aux()) if t else out(),
    "a record": lambda t, aux, out: Record(out(), aux() if t else None),
    "a named tuple": lambda t, aux, out: Pair(out(), aux() if t else None),
    "a loss or scores": lambda t, aux, out: {"loss": aux().mean()} if t else {"scores": out()},
}


class Heads(nn.Module):
    """Has a head whose output there is in one mode only."""

    def __init__(self, form):
        super().__init__()
        self.stem, self.body, self.form = nn.Linear(4, 8), nn.Linear(8, 8), form
        self.aux, self.out = nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x):
        early = self.stem(x).relu()
        late = self.body(early).relu()
        return self.form(self.training, lambda: self.aux(early), lambda: self.out(late))


@pytest.mark.parametrize("name", FORMS)
def test_an_output_of_one_mode_is_whole(name):
    found = compress_half(Heads(FORMS[name]), torch.randn(3, 4))
    assert found.zigs == (20 if "loss" in name else 16)  # of a mean over a head's channels these can go


class Cached(nn.Module):
    """Returns a record that holds more in evaluation, as language models do with their cache."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.a(x).relu()
        return Record(self.b(h)) if self.training else Record(self.b(h), cache=h.detach())


def test_an_output_that_holds_more_in_one_mode():
    model, x = Cached(), torch.randn(2, 4)
    gm = fx_oto.prepare(model, x)
    for training in (False, True):
        expected, found = model.train(training)(x), gm.train(training)(x)
        torch.testing.assert_close(found.part, expected.part)
        assert (found.cache is None) == (expected.cache is None) == training


# Batch norms that training alone calls, by functions.
LEARNING = {
    "by name": lambda h, n: F.batch_norm(h, n.running_mean, n.running_var, n.weight, n.bias, training=True),
    "by position": lambda h, n: F.batch_norm(h, n.running_mean, n.running_var, n.weight, n.bias, True, 0.3),
    "of torch": lambda h, n: torch.batch_norm(h, n.weight, n.bias, n.running_mean, n.running_var, True, 0.1, 0.1, True),
    "native": lambda h, n: torch.native_batch_norm(h, n.weight, n.bias, n.running_mean, n.running_var, True, 0.1, 0.1)[
        0
    ],
    "of its class": lambda h, n: nn.BatchNorm1d.forward(n, h * 2),
}


class Learns(nn.Module):
    """Calls its norm in a way of its own in training, so that this stands in the graph beside what evaluation does."""

    def __init__(self, norm):
        super().__init__()
        self.a, self.b, self.norm, self.call = nn.Linear(4, 8), nn.Linear(8, 3), nn.BatchNorm1d(8), norm

    def forward(self, x):
        h = self.a(x)
        h = self.call(h, self.norm).relu() if self.training else self.norm(h)
        return self.b(h.relu())


@pytest.mark.parametrize("name", LEARNING)
def test_statistics_are_learnt_in_training_alone(name):
    model = Learns(LEARNING[name])
    found = compress_half(model, torch.randn(6, 4))
    assert found.zigs == 8
    before = {name: buffer.clone() for name, buffer in found.small.named_buffers()}
    found.small.eval()(torch.randn(5, 4, dtype=torch.float64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in found.small.named_buffers())
    found.small.train()(torch.randn(5, 4, dtype=torch.float64))
    assert not torch.equal(found.small.get_buffer("norm.running_mean"), before["norm.running_mean"])
