"""Losses between features, which are elementwise and end in a mean, a sum or neither."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH = 8


class Net(nn.Module):
    """Two branches whose hidden units a loss compares, and what each of them returns."""

    def __init__(self, loss, **layers):
        super().__init__()
        self.a, self.b, self.first, self.second = (nn.Linear(*n) for n in ((5, 8), (5, 8), (8, 3), (8, 3)))
        self.loss = loss
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        a, b = self.a(x).relu(), self.b(x).relu()
        return self.first(a), self.second(b), self.loss(self, a, b)


LOSSES = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth l1": F.smooth_l1_loss,
    "smooth l1, beta": lambda a, b, **how: F.smooth_l1_loss(a, b, beta=0.3, **how),
    "huber": F.huber_loss,
    "huber, delta": lambda a, b, **how: F.huber_loss(a, b, delta=0.2, **how),
    "kl": lambda a, b, **how: F.kl_div(-a, b, **how),
    "mse, weighted": lambda a, b, **how: F.mse_loss(a, b, weight=(a + b).detach(), **how),
    "huber, weighted": lambda a, b, **how: F.huber_loss(a, b, weight=(a + b).detach(), **how),
    "poisson": lambda a, b, **how: F.poisson_nll_loss(a, b, log_input=False, **how),
    "gaussian of variance 1": lambda a, b, **how: F.gaussian_nll_loss(a, b, 1.0, **how),
    "aten": lambda a, b, **how: torch.ops.aten.mse_loss(a, b, {"none": 0, "mean": 1, "sum": 2}[how["reduction"]]),
    "broadcast": lambda a, b, **how: F.huber_loss(a, b[:1].expand_as(a), **how),
    "against what is detached": lambda a, b, **how: F.mse_loss(a, b.detach(), **how),
}


@pytest.mark.filterwarnings("ignore:reduction")  # of kl_div, whose mean is over all elements
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_functions(name, reduction):
    torch.manual_seed(0)

    def loss(m, a, b):
        found = LOSSES[name](a, b, reduction=reduction)
        return m.last(found) if reduction == "none" else found

    found = compress_half(Net(loss, last=nn.Linear(WIDTH, 2)), torch.randn(4, 6, 5))
    assert found.zigs == WIDTH


KINDS = [nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_modules(kind, reduction):
    torch.manual_seed(0)
    net = Net(lambda m, a, b: m.kind(a, b) + m.kind(b, m.goal.expand_as(b)), kind=kind(reduction=reduction))
    net.goal = nn.Parameter(torch.randn(WIDTH))
    assert compress_half(net, torch.randn(4, 5)).zigs == WIDTH


def test_examples_may_be_of_any_number():
    """Images, whose mean is over pixels as well."""
    torch.manual_seed(0)

    class Images(Net):
        def __init__(self):
            super().__init__(lambda m, a, b: F.smooth_l1_loss(a, b) + F.mse_loss(a.mean((2, 3)), b.mean((2, 3))))
            self.a, self.b, self.first, self.second = (nn.Conv2d(*n, 1) for n in ((3, 8), (3, 8), (8, 2), (8, 2)))

    assert compress_half(Images(), torch.randn(2, 3, 6, 6), any_size=True).zigs == WIDTH


def test_both_sides_of_a_matrix():
    """Of correlations of channels, rows and columns go: the mean counts both."""
    torch.manual_seed(0)
    net = Net(lambda m, a, b: F.mse_loss(a.mT @ a, a.mT @ b) + F.l1_loss(a.mT @ b, b.mT @ b))
    assert compress_half(net, torch.randn(2, 7, 5)).zigs == WIDTH


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_what_is_not_zero_once_removed_is_kept():
    for loss in (
        lambda m, a, b: F.mse_loss(a.sigmoid(), b),
        lambda m, a, b: F.soft_margin_loss(a, b),
        lambda m, a, b: F.binary_cross_entropy_with_logits(a, b.sigmoid()),
    ):
        gm = fx_oto.prepare(Net(loss), torch.randn(4, 5))
        assert fx_oto.partition(gm).num_zigs == 0
        assert "the sum over it would change" in str(fx_oto.partition(gm).explain())


ELSEWHERE = {
    "margins": lambda m, a, b: F.soft_margin_loss(a, b.detach().sign(), reduction="none"),
    "entropies of logits": lambda m, a, b: F.binary_cross_entropy_with_logits(a, b.sigmoid(), reduction="none"),
    "entropies": lambda m, a, b: F.binary_cross_entropy(a.sigmoid(), b.sigmoid(), reduction="none"),
    "weighted": lambda m, a, b: F.binary_cross_entropy_with_logits(a, b.sigmoid(), m.gain, reduction="none"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_each_channel_has_a_loss_of_its_own(name):
    torch.manual_seed(0)
    net = Net(lambda m, a, b: m.last(ELSEWHERE[name](m, a, b)), last=nn.Linear(WIDTH, 2))
    net.register_buffer("gain", torch.rand(WIDTH))
    assert compress_half(net, torch.randn(4, 5)).zigs == WIDTH


@pytest.mark.parametrize("loss", [F.mse_loss, nn.L1Loss()], ids=["function", "module"])
def test_cut_twice_exported_and_written_back(loss):
    torch.manual_seed(0)
    net = Net(lambda m, a, b: m.compare(a, b)).double()
    net.compare = loss
    x = torch.randn(4, 5).double()
    gm = fx_oto.prepare(torch.export.export(net, (x,)).module() if loss is F.mse_loss else net, x)
    for left in (4, 2):
        fx_oto.partition(gm).zero_(0.5)
        full, small = gm(x), fx_oto.compress(gm)
        torch.testing.assert_close(small(x), full, rtol=1e-10, atol=1e-12)
        assert small.a.weight.shape[0] == left
        gm = fx_oto.prepare(small, x)


def test_the_users_own_class():
    torch.manual_seed(0)
    net = Net(lambda m, a, b: F.mse_loss(a, b, reduction="sum")).double()
    x = torch.randn(4, 5).double()
    gm = fx_oto.prepare(net, x)
    fx_oto.partition(gm).zero_(0.5)
    back = fx_oto.write_back(fx_oto.compress(gm), net)
    torch.testing.assert_close(back(x), net(x))
    assert back.a.out_features == WIDTH // 2
