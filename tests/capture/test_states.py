"""What a model keeps from one call to the next, and what it computes with that is not its own, is told."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import fx_oto


class Keeping(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.rnn, self.first, self.last = nn.GRU(5, 8, batch_first=True), nn.Linear(5, 8), nn.Linear(8, 2)
        self.h, self.memory, self.seen, self.mean = None, {}, [], torch.zeros(1, 8)
        self.register_buffer("running", torch.zeros(1, 8))
        self.keep = keep

    def forward(self, x):
        return self.last(self.keep(self, x).tanh())


def recurrent(model, x):
    y, h = model.rnn(x, model.h)
    model.h = h.detach()
    return y


def tuple_or_none(model, x):
    y = model.first(x)
    y = y if model.h is None else y + model.h[0]
    model.h = (y.detach().mean((0, 1)), 3)
    return y


def dictionary(model, x):
    y = model.first(x) + model.memory.get("h", 0)
    model.memory["h"] = y.detach().mean((0, 1))
    return y


def growing(model, x):
    y = model.first(x)
    model.seen.append(y.detach().mean((0, 1)))
    return y + sum(model.seen)


def replaced(model, x):
    y = model.first(x) + model.mean
    model.mean = y.detach().mean((0, 1))[None]
    return y


def only_in_training(model, x):
    y = model.first(x)
    if model.training:
        y = y if model.h is None else y + model.h
        model.h = y.detach().mean((0, 1))
    return y


def shown(model, x):
    model.h = model.first(x)
    model.memory["features"] = [model.h, x]
    model.seen = [model.h.detach()]
    return model.h


def read_after(model, x):
    model.mean = x.mean(1, keepdim=True)
    return model.first(x - model.mean)


def buffer(model, x):
    y = model.first(x) + model.running
    model.running = 0.9 * model.running + 0.1 * y.detach().mean((0, 1))[None]
    return y


def in_place(model, x):
    y = model.first(x) + model.mean
    model.mean.mul_(0.9).add_(y.detach().mean((0, 1))[None], alpha=0.1)
    return y


def told(model, x):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        gm = fx_oto.prepare(model, x)
    return gm, [str(one.message) for one in found if "begins each call as the first" in str(one.message)]


@pytest.mark.parametrize("keep", [recurrent, tuple_or_none, dictionary, growing, replaced, only_in_training])
def test_what_is_computed_with_in_the_next_call_is_told(keep):
    model, x = Keeping(keep), torch.randn(2, 6, 5)
    gm, notes = told(model, x)
    assert len(notes) == 1
    assert model.h is None
    assert (model.memory, model.seen) == ({}, [])
    first = copy.deepcopy(model)(x)
    for _ in range(2):
        torch.testing.assert_close(gm(x), first)


@pytest.mark.parametrize("keep", [shown, read_after, buffer, in_place])
def test_what_is_only_looked_at_is_not_told(keep):
    model, x = Keeping(keep), torch.randn(2, 6, 5)
    gm, notes = told(model, x)
    assert notes == []
    other = copy.deepcopy(model)
    for _ in range(3):
        torch.testing.assert_close(gm(x), other(x))


class Unregistered(nn.Module):
    def __init__(self, held, frozen):
        super().__init__()
        layers = [nn.Linear(8, 8) for _ in range(2)]
        for layer in layers:
            layer.requires_grad_(not frozen)
        self.held = [dict(enumerate(layers)) if held == "dict" else tuple(layers) if held == "tuple" else layers]
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.first(x)
        (held,) = self.held
        for layer in held.values() if isinstance(held, dict) else held:
            h = layer(h).relu()
        return self.last(self.first(x) * h)


@pytest.mark.parametrize("held", ["list", "tuple", "dict"])
@pytest.mark.parametrize("frozen", [False, True])
def test_layers_that_are_not_registered_are_constants(held, frozen):
    model, x = Unregistered(held, frozen), torch.randn(3, 5)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        gm = fx_oto.prepare(model, x)
    assert sum("a constant, which nobody trains" in str(one.message) for one in found) == (not frozen)
    assert sum(one.requires_grad for one in gm.parameters()) == 4
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    small(x).sum().backward()


class Merging(nn.Linear):
    """As in loralib: in evaluation the weights are merged."""

    def __init__(self, starts_at_zero, replaces):
        super().__init__(5, 12)
        self.down, self.up = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(12, 2) * (not starts_at_zero))
        self.merged, self.replaces = False, replaces
        self.weight.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        if mode is self.merged:
            change = self.up @ self.down * (-1 if mode else 1)
            if self.replaces:
                self.weight.data = self.weight.data + change
            else:
                self.weight.data += change
            self.merged = not mode
        return self

    def forward(self, x):
        y = super().forward(x)
        return y if self.merged else y + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("starts_at_zero", [False, True])
@pytest.mark.parametrize("replaces", [False, True])
def test_modes_that_write_into_parameters_are_refused(training, starts_at_zero, replaces):
    model = nn.Sequential(Merging(starts_at_zero, replaces), nn.ReLU(), nn.Linear(12, 2)).train(training)
    x, before = torch.randn(3, 5), copy.deepcopy(model.state_dict())
    expected = model(x)
    with pytest.raises(fx_oto.InputError, match=r"train\(\) and eval\(\) of the module '0' write into its parameters"):
        fx_oto.prepare(model, x)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[0].merged is not training
    assert torch.equal(model(x), expected)


class Moving(nn.Module):
    """Assigns to an attribute what it has made of it."""

    def __init__(self, move):
        super().__init__()
        self.a, self.b, self.mask, self.move = nn.Linear(4, 8), nn.Linear(8, 3), torch.rand(8), move

    def forward(self, x):
        self.mask = self.move(self.mask, x)
        return self.b(self.a(x) * self.mask)


MOVES = {
    "to its device": lambda mask, x: mask.to(x.device),
    "to, as in CLIP": lambda mask, x: mask.to(dtype=x.dtype, device=x.device),
    "type_as": lambda mask, x: mask.type_as(x),
    "to a tensor, cloned": lambda mask, x: mask.to(x).clone().contiguous(),
    "less precise on the way": lambda mask, x: mask.half().float(),
    "other numbers": lambda mask, x: mask.to(x) * 2,
}


@pytest.mark.parametrize("name", MOVES)
def test_what_is_only_moved_to_where_the_input_is_is_not_told(name):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", fx_oto.FxOtoWarning)
        gm = fx_oto.prepare(Moving(MOVES[name]), torch.randn(2, 4))
    told = [str(one.message) for one in found if "sets mask from one tensor to another" in str(one.message)]
    assert bool(told) == (name in ("less precise on the way", "other numbers"))
    assert fx_oto.partition(gm).num_zigs == 8


class Counting(nn.Module):
    """Keeps a count, or a mean, in parameters that are not trained, as they were before there were buffers."""

    def __init__(self, step):
        super().__init__()
        self.a, self.b, self.step = nn.Linear(4, 8), nn.Linear(8, 3), step
        self.steps = nn.Parameter(torch.zeros(1, dtype=torch.long), requires_grad=False)
        self.mean = nn.Parameter(torch.zeros(8), requires_grad=False)

    def forward(self, x):
        h = self.a(x).relu()
        self.step(self, h.detach().mean(0))
        return self.b(h - self.mean)


def _counted(model, h):
    model.steps += 1


def _added_up(model, h):
    model.steps = model.steps.add_(1)
    model.mean *= 0.9
    model.mean += 0.1 * h


def _without_gradient(model, h):
    with torch.no_grad():
        model.mean *= 0.5
        model.mean += h


@pytest.mark.parametrize("step", [_counted, _added_up, _without_gradient], ids=lambda step: step.__name__)
def test_what_is_added_to_a_parameter_stays_in_it(step):
    torch.manual_seed(0)
    model, x = Counting(step), torch.randn(5, 4)
    gm = fx_oto.prepare(model, x)
    other = copy.deepcopy(model)
    torch.testing.assert_close([gm(x), gm(x)], [other(x), other(x)])
    for name, mine in model.named_parameters():
        torch.testing.assert_close(mine, other.get_parameter(name))
    assert type(model.steps) is nn.Parameter
    fx_oto.partition(gm).zero_(0.5)
    with torch.no_grad():
        model.mean *= (model.a.weight != 0).any(1)  # what is gone has no mean
    small, other = fx_oto.compress(gm), copy.deepcopy(model)
    torch.testing.assert_close(small(x), other(x))
