"""Sizes of 1, of which code thinks apart: where it does the same all the same, one graph takes them and larger ones."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import fx_oto

SIZES = [(2, 5), (3, 4), (1, 5), (2, 1), (1, 1)]


class Sequences(nn.Module):
    """Layers over (batch, length, 6), with a table of one row, and what a test does in between."""

    def __init__(self, middle, zeros=False):
        super().__init__()
        self.first, self.last, self.middle = nn.Linear(6, 16), nn.Linear(16, 4), middle
        self.row, self.norm = nn.Parameter(torch.randn(1, 1, 16)), nn.BatchNorm1d(16)
        if zeros:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, x):
        return self.last(self.middle(self, torch.relu(self.first(x)), *x.shape[:2]))


def expanded(net, h, batch, length):
    row = net.row
    if batch != 1:
        row = row.expand(batch, -1, -1)
    return h + row


def expanded_for_more(net, h, batch, length):
    return h + (net.row.repeat(batch, 1, 1) if batch > 1 else net.row)


def causal(net, h, batch, length):
    scores = h @ h.transpose(1, 2)
    if length > 1:
        scores = scores + torch.ones(length, length).tril().log()
    return scores.softmax(-1) @ h


def fused(net, h, batch, length):
    h = h.view(batch, length, 2, 8).transpose(1, 2)
    attended = nn.functional.scaled_dot_product_attention(h, h, h, is_causal=length > 1)
    return attended.transpose(1, 2).flatten(2)


def of_both(net, h, batch, length):
    row = net.row if batch == 1 else net.row.expand(batch, -1, -1)
    return h + (row if length == 1 else row.expand(-1, length, -1))


def normalized_in_training(net, h, batch, length):
    h = expanded(net, h, batch, length)
    return net.norm(h.flatten(0, 1)).view(batch, length, 16) if net.training else h


def expanded_by_len(net, h, batch, length):
    return h + (net.row if len(h) == 1 else net.row.expand(len(h), -1, -1))


ALIKE = [expanded, expanded_by_len, expanded_for_more, causal, fused, of_both, normalized_in_training]


def doubled_alone(net, h, batch, length):
    return 2 * h if batch == 1 else h


def doubled_alone_in_training(net, h, batch, length):
    return 2 * h if batch == 1 and net.training else h


def nearly(net, h, batch, length):
    return h * (1 + 1e-6) if batch == 1 else h


def half_a_batch(net, h, batch, length):
    return 2 * h if batch // 2 == 0 else h


def doubled_alone_by_len(net, h, batch, length):
    return 2 * h if len(h) == 1 else h


OTHERWISE = [doubled_alone, doubled_alone_by_len, doubled_alone_in_training, nearly, half_a_batch]


def same(gm, model, size):
    """Whether they return the same, in both modes in which the model takes it."""
    x, outcomes = torch.randn(*size, 6), []
    for training in (False, True):
        twin = copy.deepcopy(model).train(training)
        try:
            expected = twin(x)
        except ValueError:  # of a batch norm over one value
            continue
        outcomes.append(torch.equal(expected, copy.deepcopy(gm).train(training)(x)))
    return all(outcomes)


@pytest.mark.parametrize("example", SIZES, ids=str)
@pytest.mark.parametrize("middle", ALIKE)
def test_code_that_saves_work_for_one(middle, example):
    model = Sequences(middle).eval()
    before = copy.deepcopy(model.state_dict())
    gm = fx_oto.prepare(model, torch.randn(*example, 6))
    assert [str(size) for size in fx_oto.Context.of(gm).capture.sizes] == ["x[0]: any", "x[1]: any", "x[2]: any"]
    assert all(size.size == one for size, one in zip(fx_oto.Context.of(gm).capture.sizes, (*example, 6), strict=True))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert all(same(gm, model, size) for size in SIZES)


@pytest.mark.filterwarnings("ignore:forward did not use these parameters:fx_oto.FxOtoWarning")
@pytest.mark.parametrize("middle", ALIKE)
def test_compact_models_take_one_and_more(middle):
    model = Sequences(middle).eval()
    gm = fx_oto.prepare(model, torch.randn(1, 5, 6))
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm)
    assert small.first.out_features == 8
    written = fx_oto.write_back(small, model).eval()
    for size in SIZES:
        x = torch.randn(*size, 6)
        torch.testing.assert_close(small.eval()(x), model(x))
        torch.testing.assert_close(written(x), model(x))


@pytest.mark.parametrize("zeros", [False, True], ids=["", "behind zeros"])
@pytest.mark.parametrize("example", [(2, 5), (1, 5)], ids=str)
@pytest.mark.parametrize("middle", OTHERWISE)
@pytest.mark.filterwarnings("ignore:the graph takes batches")
def test_code_that_does_something_else_for_one(middle, example, zeros):
    """A head of zeros, from which no layer before is seen, hides no difference."""
    model = Sequences(middle, zeros).eval()
    gm = fx_oto.prepare(model, torch.randn(*example, 6))
    size = fx_oto.Context.of(gm).capture.sizes[0]
    assert size.fixed if example[0] == 1 else size.decided
    assert size.size == example[0]
    assert same(gm, model, (example[0], 5))
    with pytest.raises(AssertionError, match="the graph was captured where"):
        same(gm, model, (3 - example[0], 5))


def test_on_the_meta_device_the_check_stays():
    """Nothing can be compared there."""
    model = Sequences(expanded).to("meta").eval()
    gm = fx_oto.prepare(model, torch.randn(2, 5, 6, device="meta"))
    assert fx_oto.Context.of(gm).capture.sizes[0].decided


class Pooled(nn.Module):
    """A batch norm over pooled images, which fails in training over one, and another head in training."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.other = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(24, 4, 1), nn.Conv2d(16, 4, 1)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x):
        h = self.body(x).relu()
        y = self.head(torch.cat([h, self.pool(h).expand(-1, -1, *h.shape[-2:])], 1))
        return (y, self.other(h)) if self.training else y


def test_training_that_takes_no_batch_of_one_is_captured_with_more():
    model = Pooled().eval()
    gm = fx_oto.prepare(model, torch.randn(1, 3, 8, 8))
    assert _told(gm) == "x[0]: any"
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(gm.eval()(images[:1]), model(images[:1]))
    found, expected = copy.deepcopy(gm).train()(images), copy.deepcopy(model).train()(images)
    torch.testing.assert_close(found, expected)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm).eval()
    torch.testing.assert_close(small(images[:1]), model(images[:1]))
    torch.testing.assert_close(small.train()(images)[1], model.train()(images)[1])


@pytest.mark.parametrize("least", [2, 3, 5])
def test_sizes_below_which_code_goes_another_way_are_refused(least):
    """It asks plain numbers, of which the graph sees nothing; the least is found."""

    def middle(net, h, batch, length):
        return 2 * h if len(h) < least else h

    model = Sequences(middle).eval()
    gm = fx_oto.prepare(model, torch.randn(6, 4, 6))
    assert re.fullmatch(r"x\[0\]: those like 6 for size \(.*test_small_sizes\.py:\d+\)", _told(gm))
    assert all(same(gm, model, (batch, 4)) for batch in range(least, 9))
    for batch in range(1, least):
        with pytest.raises(AssertionError, match=f"takes no less than {least}, for code goes another way there"):
            gm(torch.randn(batch, 4, 6))


class Windows(nn.Module):
    """Layers over (batch, length, 6) that take no length of 1, and decide by a number that leaves no trace."""

    def __init__(self, taking, number, bound):
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)
        self.taking, self.number, self.bound = taking, number, bound

    def forward(self, x):
        h = self.last(torch.relu(self.first(x)))
        y = self.taking(h.transpose(1, 2))
        return 2 * y if self.number(x[0]) < self.bound else y


TAKING = {
    2: lambda h: nn.functional.pad(h, (1, 1), mode="reflect"),
    3: lambda h: nn.functional.max_pool1d(h, 3, 1),
    4: lambda h: h.unfold(2, 4, 1),
}
NUMBERS = {
    "len": len,
    "parts": lambda x: len(x.unbind()),
    "a list": lambda x: len([0] * len(x)),
    "iterated": lambda x: sum(1 for _ in x),
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("smallest", TAKING)
def test_where_1_is_not_taken_the_smallest_that_is_decides(smallest, number):
    model = Windows(TAKING[smallest], NUMBERS[number], smallest + 1).eval()
    gm = fx_oto.prepare(model, torch.randn(2, 8, 6))
    for length in (smallest + 1, 8, 11):
        x = torch.randn(2, length, 6)
        torch.testing.assert_close(gm(x), model(x))
    with pytest.raises(AssertionError, match="the graph was captured where"):
        gm(torch.randn(2, smallest, 6))


def _told(gm):
    return str(fx_oto.Context.of(gm).capture.sizes[0])


class Guarded(nn.Module):
    """Leaves its batch norm in evaluation where one row is trained on."""

    def __init__(self, is_one):
        super().__init__()
        self.is_one = is_one
        self.first, self.norm, self.last = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x):
        if self.training and self.is_one(x):
            self.norm.eval()
        try:
            return self.last(self.norm(self.first(x)).relu())
        finally:
            self.norm.train(self.training)


@pytest.mark.parametrize("is_one", [lambda x: len(x) == 1, lambda x: x.shape[0] == 1], ids=["len", "shape"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.filterwarnings("ignore:The TorchScript type system")
def test_what_one_mode_asks_is_checked_in_it_alone(batch, is_one):
    model = Guarded(is_one).eval()
    gm = fx_oto.prepare(model, torch.randn(batch, 6))
    assert fx_oto.Context.of(gm).capture.sizes[0].decided
    assert all(same(gm.eval(), model, size) for size in [(2,), (3,)])
    x = torch.randn(1, 6)
    torch.testing.assert_close(gm.eval()(x), model(x))
    with pytest.raises(AssertionError, match="the graph was captured where"):
        copy.deepcopy(gm).train()(x)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm)
    assert small.first.out_features == 8
    torch.testing.assert_close(small.eval()(x), model(x))
    torch.testing.assert_close(torch.jit.script(small)(x), model(x))
