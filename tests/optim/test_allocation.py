"""How many ZIGs of each family go: the same share, by scores over all families, or by the measured loss."""

from __future__ import annotations

import math

import pytest
import torch
from support.training import IMAGE, batches, make_net, prepared, train
from torch import nn

import fx_oto
from fx_oto.optim.allocation import _marginal

WINDOW = {"lr": 0.05, "start_step": 2, "end_step": 5}


def reach(gm, **settings):
    optimizer = fx_oto.DHSPG(gm, **WINDOW, **settings)
    train(gm, optimizer, 6)
    return optimizer, fx_oto.partition(gm).removed().tolist()


class Wide(nn.Module):
    """Two hidden layers beside each other; the output hardly depends on the second, which costs ten times as much."""

    def __init__(self, weak=1e-3):
        super().__init__()
        self.first, self.second, self.weak = nn.Linear(6, 16), nn.Linear(60, 16), weak
        self.a, self.b = nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x):
        return self.a(self.first(x[:, :6]).relu()) + self.weak * self.b(self.second(x).relu())


@pytest.mark.parametrize("target", [{"target_group_sparsity": 0.5}, {"target_macs": 0.3}, {"target_params": 0.2}])
@pytest.mark.parametrize("saliency", ["magnitude", "otov2", "taylor1"])
def test_by_default_every_family_loses_the_same_share(target, saliency):
    _, removed = reach(prepared(), saliency=saliency, **target)
    shares = [count / size for count, size in zip(removed, (12, 20), strict=True)]
    assert abs(shares[0] - shares[1]) <= 1 / 12


def test_no_floor_decides_what_scores_over_all_families_take():
    """The first layer's weights are a hundredth of the second's, and nothing is kept of it but one channel."""
    model = make_net()
    with torch.no_grad():
        for p in model[:2].parameters():
            p.mul_(0.01)
    gm = fx_oto.prepare(model, IMAGE)
    _, removed = reach(gm, allocation="global", saliency="magnitude", target_group_sparsity=0.5)
    assert removed == [11, 5]


@pytest.mark.parametrize("kind", [fx_oto.DHSPG, fx_oto.HESSO])
@pytest.mark.parametrize("weak", [True, False])
def test_the_measured_loss_decides(kind, weak):
    """What the loss does not need goes first, and of two alike what costs more."""
    torch.manual_seed(0)
    model = Wide(1e-3 if weak else 1.0)
    x = torch.randn(64, 60)
    y = model(x).detach() + 0.1 * torch.randn(64, 3)
    gm = fx_oto.prepare(model, x[:2])
    names = [family.name for family in fx_oto.partition(gm).families]

    def loss(gm):
        return (gm(x) - y).square().mean()

    optimizer = kind(gm, **WINDOW, target_params=0.5, allocation=loss, periods=1)
    for _ in range(6):
        optimizer.zero_grad()
        loss(gm).backward()
        optimizer.step()
    removed = dict(zip(names, fx_oto.partition(gm).removed().tolist(), strict=True))
    assert removed["second.weight"] > removed["first.weight"]
    assert (removed["first.weight"] == 0) >= weak
    assert optimizer.reached()["params"] <= 0.5


def test_measuring_changes_nothing():
    """Weights, buffers, gradients, modes and random numbers are those of a training with the same counts."""
    results = []
    for measured in (True, False):
        gm = prepared()
        x, _ = next(batches(1, seed=9))
        calls = []

        def loss(gm, calls=calls, x=x):
            calls.append(gm.training)
            torch.rand(3)
            return gm(x).square().mean()

        if measured:
            _, removed = reach(gm, allocation=loss, target_group_sparsity=0.5)
            assert len(calls) > 5
            assert not any(calls)  # but for batch normalizations, whose statistics are the batch's
        else:
            counts = {"0.weight": 12 - removed[0], "3.weight": 20 - removed[1]}
            _, again = reach(gm, min_kept=counts, target_group_sparsity=sum(removed) / 32)
            assert again == removed
        results.append((gm.state_dict(), torch.get_rng_state()))
        torch.manual_seed(0)
    for key, value in results[0][0].items():
        torch.testing.assert_close(value, results[1][0][key], rtol=0, atol=0)


@pytest.mark.parametrize("kind", [fx_oto.DHSPG, fx_oto.HESSO])
def test_the_loss_is_measured_beside_sparse_gradients(kind):
    torch.manual_seed(0)
    table = nn.Embedding(30, 16, sparse=True)
    model = nn.Sequential(table, nn.Flatten(), nn.Linear(96, 12), nn.ReLU(), nn.Linear(12, 3))
    words = torch.randint(30, (8, 6))
    gm = fx_oto.prepare(model, words)
    optimizer = kind(gm, **WINDOW, target_params=0.6, allocation=lambda gm: gm(words).square().mean(), periods=1)
    for step in range(6):
        optimizer.zero_grad()
        gm(words).square().mean().backward()
        before = table.weight.grad.to_dense().clone()
        optimizer.step()
        assert table.weight.grad.is_sparse, step
        assert torch.equal(table.weight.grad.to_dense(), before), step
    assert optimizer.reached()["params"] <= 0.6


def test_a_loss_is_made_convex():
    """Of a family whose loss falls, jumps and is flat, each part is charged what it costs to come so far."""
    slopes = _marginal([(0, 0.0), (2, 4.0), (4, 4.0), (8, 16.0)], 10)
    torch.testing.assert_close(slopes, torch.tensor([1.0] * 4 + [3.0] * 6, dtype=torch.float64))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(value):
    gm = prepared()
    with pytest.raises(fx_oto.SettingsError, match=r"allocation must return a finite loss; found"):
        reach(gm, allocation=lambda gm: value, target_group_sparsity=0.5)


@pytest.mark.parametrize("value", [None, "small", torch.ones(2)])
def test_a_loss_that_is_no_number_is_refused(value):
    gm = prepared()
    with pytest.raises(fx_oto.SettingsError, match=r"allocation must return the loss .*, a number or .*; found"):
        reach(gm, allocation=lambda gm: value, target_group_sparsity=0.5)


@pytest.mark.parametrize("allocation", ["loss", 3, "Uniform"])
def test_an_allocation_that_is_unknown(allocation):
    with pytest.raises(fx_oto.SettingsError, match=r"allocation must be 'uniform' or 'global', or a callable .*found"):
        fx_oto.DHSPG(prepared(), allocation=allocation, target_macs=0.5, **WINDOW)


def test_limits_hold_for_every_allocation():
    x, _ = next(batches(1, seed=9))
    for allocation in ("uniform", "global", lambda gm: gm(x).square().mean()):
        gm = prepared()
        limits = {"min_kept": {"0": 8}, "round_to": 4, "target_group_sparsity": 0.5}
        _, (first, second) = reach(gm, allocation=allocation, **limits)
        assert first <= 4
        assert (first % 4, second % 4) == (0, 0)
        assert first + second >= 16
