"""Parameters by which a model divides: cut with their group, but not driven to zero with it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH = 12


class Net(nn.Module):
    """Hidden units that are divided by what is learned for each of them."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 4), nn.Linear(5, WIDTH)
        self.s, self.t, self.code = nn.Parameter(torch.rand(WIDTH) + 0.5), nn.Parameter(torch.rand(WIDTH)), code

    def forward(self, x):
        return self.b(self.code(self, self.a(x), x))


def written(m, h):
    scale = torch.ones_like(h)
    scale[:] = m.s
    return h / scale


# Where the layer before makes a channel zero, its rows are the variables; where nothing does, the columns behind are.
SCALES = {
    "divided": lambda m, h, x: h / m.s,
    "in place": lambda m, h, x: h.sin().div_(m.s),
    "by its absolute value": lambda m, h, x: (h / m.s.abs()).relu(),
    "by its square": lambda m, h, x: h / m.s**2,
    "its reciprocal": lambda m, h, x: h * (1 / m.s),
    "its reciprocal, written once": lambda m, h, x: m.s.reciprocal() * h,
    "its root": lambda m, h, x: h * m.s.rsqrt(),
    "its power": lambda m, h, x: h * m.s.pow(-1.5),
    "its logarithm": lambda m, h, x: h * m.s.log(),
    "shifted as well": lambda m, h, x: (h - m.t) / m.s,
    "snake": lambda m, h, x: h + torch.sin(m.s * h) ** 2 / m.s,
    "snake, by the reciprocal": lambda m, h, x: h + (1 / m.s) * torch.sin(m.s * h).square(),
    "addcdiv": lambda m, h, x: torch.addcdiv(h, h, m.s),
    "wavelet": lambda m, h, x: torch.exp(-(((h - m.t) / m.s) ** 2)),
    "two scales": lambda m, h, x: h / (m.s * (m.t + 1)),
    "two that are multiplied": lambda m, h, x: h / (m.s * m.t),
    "two that are added": lambda m, h, x: h / (m.s + m.t),
    "one after the other": lambda m, h, x: (h / m.s).relu() / m.t,
    "repeated": lambda m, h, x: h / m.s.view(2, -1).repeat(1, 1).flatten(),
    "a layer of the input": lambda m, h, x: h / m.c(x).exp().sub(1),
    "a layer": lambda m, h, x: h / m.c(x),
    "itself": lambda m, h, x: h / h.pow(2).mean(0).sqrt(),
    "the input": lambda m, h, x: h + x.sum(1, keepdim=True) / m.s,
    "written": lambda m, h, x: written(m, h),
}


@pytest.mark.parametrize("name", SCALES)
def test_channels_are_cut(name):
    torch.manual_seed(0)
    assert compress_half(Net(SCALES[name]), torch.randn(4, 5)).zigs == WIDTH


@pytest.mark.parametrize("name", SCALES)
def test_no_scale_is_driven_to_zero(name):
    torch.manual_seed(0)
    model, x = Net(SCALES[name]).double(), torch.randn(4, 5, dtype=torch.float64)
    gm = fx_oto.prepare(model, x)
    found = fx_oto.partition(gm)
    tried = found.mask_(0, torch.arange(len(found.families[0]) // 2))
    masked = gm.eval()(x)
    tried.unmask_()
    found.zero_zigs_(0, torch.arange(len(found.families[0]) // 2))
    assert model(x).isfinite().all()
    torch.testing.assert_close(masked, model(x))


@pytest.mark.parametrize("code", [SCALES["divided"], SCALES["two that are added"], SCALES["the input"]])
def test_a_training_stays_finite(code):
    torch.manual_seed(0)
    model, x = Net(code), torch.randn(64, 5)
    model.s.data.fill_(0.0 if code is SCALES["two that are added"] else 1.0)  # as code that adds what is learned
    gm = fx_oto.prepare(model, x)
    optimizer = fx_oto.DHSPG(
        gm, torch.optim.AdamW, lr=0.01, weight_decay=0.1, target_group_sparsity=0.5, total_steps=40
    )
    for _ in range(40):
        optimizer.zero_grad()
        F.mse_loss(model(x), x[:, :4]).backward()
        optimizer.step()
    assert model(x).isfinite().all()
    assert model.s.abs().add(model.t.abs()).min() > 0
    small = fx_oto.compress(gm)
    assert small.a.out_features == small.s.numel() == WIDTH // 2
    torch.testing.assert_close(small.eval()(x), model.eval()(x))
