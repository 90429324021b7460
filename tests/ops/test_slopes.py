"""Ops whose derivative at zero is not finite: what a training must not make zero is told, and trains without NaN."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fx_oto

X, LABELS = torch.randn(16, 8, 12, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4
POOLS = {
    "std": lambda x: x.std(2),
    "root of var": lambda x: x.var(2).sqrt(),
    "root mean square": lambda x: x.square().mean(2).sqrt(),
    "with eps": lambda x: (x.square().mean(2) + 1e-6).sqrt(),
    "clamped": lambda x: x.var(2).clamp(min=1e-5).sqrt(),
    "norm": lambda x: x.norm(dim=2),
    "lp_pool": lambda x: F.lp_pool1d(x, 2, 12).flatten(1),
    "sqrt": lambda x: x.abs().sqrt().mean(2),
    "in place": lambda x: x.abs().sqrt_().mean(2),
    "power": lambda x: (x.abs() ** 0.5).mean(2),
    "power above 1": lambda x: (x.abs() ** 1.5).mean(2),
    "hidden by where": lambda x: torch.where(x.abs() > 0, x.abs().sqrt(), torch.zeros_like(x)).mean(2),
    "hypot": lambda x: torch.hypot(x, x.flip(2)).mean(2),
    "atan2": lambda x: torch.atan2(x, x.flip(2)).mean(2),
    "entropy": lambda x: torch.special.entr(x.abs()).mean(2),
    "acos": lambda x: (math.pi / 2 - torch.acos(x.tanh())).mean(2),
    "magnitudes": lambda x: torch.fft.rfft(x, dim=2).abs().mean(2),
    "magnitudes by hand": lambda x: torch.view_as_real(torch.fft.rfft(x, dim=2)).square().sum(3).sqrt().mean(2),
    "detached": lambda x: x.mean(2) * x.detach().square().mean(2).sqrt(),
    "both": lambda x: torch.cat([x[:, :6].square().mean(2).sqrt(), x[:, 6:].mean(2)], 1),
    "behind others": lambda x: F.max_pool1d(x.transpose(1, 2).contiguous().transpose(1, 2), 3).square().sum(2).sqrt(),
}
BEFORE = {
    "nothing": nn.Identity,
    "norm": lambda: nn.BatchNorm1d(12),
    "relu": lambda: nn.Sequential(nn.BatchNorm1d(12), nn.ReLU()),
    "relu in place": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "clamp": lambda: nn.Hardtanh(0, 6),
}


class Net(nn.Module):
    def __init__(self, before, pool):
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(8, 16, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv1d(16, 12, 3, padding=1), BEFORE[before]())
        self.pool, self.head = POOLS[pool], nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.pool(self.second(self.first(x))))


def told(gm, family):
    found = fx_oto.Context.of(gm).get(fx_oto.Dependencies).steep
    return next((found[one] for one in family.classes.tolist() if one in found), None)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("before", BEFORE)
def test_what_gives_nan_once_it_is_zero_is_told(before, pool):
    torch.manual_seed(0)
    net = Net(before, pool)
    gm = fx_oto.prepare(net, X[:3])
    zigs = fx_oto.partition(gm)
    for i, family in enumerate(zigs.families):
        state = {name: one.clone() for name, one in net.state_dict().items()}
        zigs.zero_zigs_(i, torch.arange(2))
        net.zero_grad()
        F.cross_entropy(net(X), LABELS).backward()
        touched = {slot.tensor for slot in family.variables}
        reached = [
            name for name, one in net.named_parameters() if not one.grad.isfinite().all() and name not in touched
        ]
        assert bool(reached) == (told(gm, family) is not None)
        net.load_state_dict(state)


@pytest.mark.parametrize("kind", [fx_oto.DHSPG, fx_oto.HESSO])
def test_a_training_leaves_it_alone_and_pruning_at_once_does_not(kind):
    torch.manual_seed(0)
    net = Net("norm", "root of var")
    gm = fx_oto.prepare(net, X[:3])
    with pytest.warns(
        fx_oto.FxOtoWarning,
        match=r"1 family is left alone, such as 'second.0.weight': its derivative is not finite \(op sqrt at .*"
        r"test_slopes.py:\d+\) where its ZIGs are zero, .* as \(x \+ 1e-8\).sqrt\(\) does",
    ):
        optimizer = kind(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.3, total_steps=20)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(net(X), LABELS).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    assert all(one.isfinite().all() for one in net.parameters())
    inner, steep = fx_oto.partition(gm).zeros()
    assert inner.sum() >= 8
    assert not steep.any()
    fx_oto.compress(gm)
    fx_oto.prune(gm, target_group_sparsity=0.5)
    small = fx_oto.compress(gm).eval()
    torch.testing.assert_close(small(X), net.eval()(X), rtol=1e-4, atol=1e-5)


def test_a_target_that_needs_it_is_refused_with_the_reason():
    gm = fx_oto.prepare(Net("norm", "root of var"), X[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fx_oto.FxOtoWarning)
        with pytest.raises(fx_oto.SettingsError, match=r"left alone: 'second.0.weight', where a derivative is not"):
            fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.6, total_steps=20)


def test_what_is_named_needs_no_warning():
    gm = fx_oto.prepare(Net("norm", "root of var"), X[:3])
    fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.3, total_steps=20, unprunable="second")


NORMS = {
    "root, plus": lambda w: w.square().sum(1, keepdim=True).sqrt() + 1e-8,
    "root of var, plus": lambda w: w.var(1, keepdim=True).sqrt() + 1e-5,
    "root, clamped": lambda w: w.square().sum(1, keepdim=True).sqrt().clamp(min=1e-6),
    "root of more": lambda w: (w.square().sum(1, keepdim=True) + 1e-12).sqrt(),
    "norm": lambda w: w.norm(dim=1, keepdim=True) + 1e-8,
    "detached": lambda w: w.detach().square().sum(1, keepdim=True).sqrt() + 1e-8,
}


class Normalized(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.a, self.w, self.b = nn.Linear(6, 12), nn.Parameter(torch.randn(10, 12)), nn.Linear(10, 4)
        self.norm = NORMS[norm]

    def forward(self, x):
        return self.b(F.relu(F.linear(F.relu(self.a(x)), self.w / self.norm(self.w))))


@pytest.mark.parametrize("kind", [fx_oto.DHSPG, fx_oto.HESSO])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_weights_that_are_zero_do_no_harm_and_are_told(norm, kind):
    torch.manual_seed(0)
    net, x = Normalized(norm), torch.randn(16, 6)
    gm = fx_oto.prepare(net, x[:3])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", fx_oto.FxOtoWarning)
        optimizer = kind(gm, torch.optim.Adam, lr=0.01, target_group_sparsity=0.5, total_steps=60, periods=3)
    is_nan = False
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), LABELS).backward()
        is_nan |= not net.w.grad.isfinite().all()
        optimizer.step()
    told = [
        str(one.message) for one in warned if "'w', of which the gradients of what is zero are NaN" in str(one.message)
    ]
    assert len(told) == is_nan == (norm in ("root, plus", "root of var, plus", "root, clamped"))
    assert all("op sqrt at" in one and "GradScaler skips the steps" in one for one in told)
    assert optimizer.group_sparsity == 0.5
    torch.testing.assert_close(fx_oto.compress(gm)(x), net(x), rtol=1e-4, atol=1e-5)


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(10, 6), layer(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens))[0].square().mean(1).sqrt())


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_units_of_recurrent_layers_are_told(layer):
    net, tokens = Recurrent(layer), torch.arange(30).view(3, 10) % 10
    gm = fx_oto.prepare(net, tokens)
    assert {
        family.name.partition(".")[0]: told(gm, family) is not None for family in fx_oto.partition(gm).families
    } == {
        "embedding": False,
        "layer": True,
    }
