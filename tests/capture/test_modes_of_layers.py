"""Layers that ``forward`` puts into a mode of their own, such as a teacher's, or frozen norms, stay in it."""

from __future__ import annotations

import copy

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto


class Net(nn.Module):
    """Layers that tell modes apart, and a second network beside them."""

    def __init__(self, before, drop=0.3):
        super().__init__()
        self.before, self.drop = before, nn.Dropout(drop)
        self.first, self.norm, self.last = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)
        self.other = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(drop), nn.Linear(8, 4))

    def forward(self, x):
        self.before(self)
        h = self.drop(self.norm(self.first(x)).relu())
        return self.last(h) + self.other(x)


def frozen(net):
    net.norm.eval()


def teacher(net):
    net.other.eval()


def by_hand(net):
    for module in net.other:
        module.training = False


def both(net):
    frozen(net)
    net.other.train(False)


def as_it_is(net):
    net.norm.train(net.training)
    net.other.train(mode=net.training)


def in_training_alone(net):
    if net.training:
        teacher(net)


BEFORE = [frozen, teacher, by_hand, both, as_it_is, in_training_alone]


def outcome(module, names, x, training):
    """What it returns in a mode, with the same random numbers, and its buffers afterwards."""
    torch.manual_seed(0)
    module = copy.deepcopy(module).train(training)
    return module(x), [dict(module.named_buffers())[name] for name in names]


@pytest.mark.parametrize("before", BEFORE)
def test_a_mode_that_forward_sets(before):
    torch.manual_seed(0)
    model = Net(before)
    model(torch.randn(8, 6))  # so that statistics are none of a new norm
    model.eval()
    state = copy.deepcopy(model.state_dict())
    gm = fx_oto.prepare(model, torch.randn(4, 6))
    assert all(not module.training for module in model.modules())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    names = [name for name, _ in model.named_buffers() if "running" in name]
    for training in (False, True):
        x = torch.randn(5, 6)
        expected, found = (outcome(module, names, x, training) for module in (model, gm))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("before", BEFORE)
def test_compact_models_keep_it(before):
    torch.manual_seed(0)
    model = Net(before, drop=0.0)  # a compact model has fewer elements to draw for
    model(torch.randn(8, 6))
    gm = fx_oto.prepare(model.eval(), torch.randn(4, 6))
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm)
    assert (small.first.out_features, small.last.in_features) == (8, 8)
    written = fx_oto.write_back(small, model)
    for training in (False, True):
        x = torch.randn(5, 6)
        expected = copy.deepcopy(model).train(training)(x)
        torch.testing.assert_close(copy.deepcopy(small).train(training)(x), expected)
        torch.testing.assert_close(copy.deepcopy(written).train(training)(x), expected)


class FrozenNorms(Net):
    """Is never told by ``forward`` which mode a layer is in, but by ``train``, in one of several ways."""

    def __init__(self, how):
        super().__init__(lambda net: None, drop=0.0)
        self.how, self.calls = how, 0
        if how == "an attribute":
            self.other.eval()
            self.other.train = stays
        if how == "a part's own":
            self.norm = Frozen(16)

    def train(self, mode=True):
        super().train(mode)
        self.calls += 1
        if self.how in ("norms", "norms without gradients"):
            for module in self.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.eval()
                    for parameter in module.parameters():
                        parameter.requires_grad = self.how == "norms"
        if self.how == "a branch":
            self.other.eval()
        return self


def stays(self, mode=True):
    return self


class Frozen(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(False)


@pytest.mark.parametrize(
    "how", ["norms", "norms without gradients", "a branch", "an attribute", "a part's own", "none"]
)
def test_what_train_leaves_in_evaluation_is_in_it(how):
    model = FrozenNorms(how)
    flags, calls = [module.training for module in model.modules()], model.calls
    gm = fx_oto.prepare(model, torch.randn(4, 6))
    assert [module.training for module in model.modules()] == flags
    assert model.calls == calls
    assert all(parameter.requires_grad for parameter in gm.parameters())
    names = [name for name, _ in model.named_buffers() if "running" in name]
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm)
    written = fx_oto.write_back(small, model)
    assert (small.first.out_features, small.last.in_features) == (8, 8)
    for training in (False, True):
        x = torch.randn(5, 6)
        expected, found = (outcome(module, names, x, training) for module in (model, gm))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        for cut in (small, written):
            torch.testing.assert_close(copy.deepcopy(cut).train(training)(x), expected[0])


def test_compact_models_learn_what_those_with_frozen_norms_do():
    assert compress_half(FrozenNorms("norms"), torch.randn(4, 6)).zigs == 24
