"""``torch.distributions`` in the code of a model: variational bottlenecks, policies, mixtures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.kinds import holds
from torch import distributions as dist
from torch import nn

import fx_oto

X = torch.randn(3, 4)
OTHERS = [torch.randn(7, 4)]


class Head(nn.Module):
    """Two parameters of a distribution for each of two numbers."""

    def __init__(self, code):
        super().__init__()
        self.a, self.first, self.second, self.code = nn.Linear(4, 16), nn.Linear(16, 2), nn.Linear(16, 2), code

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.code(self, self.first(h), self.second(h), x)


def _bottleneck(net, mean, spread, x):
    posterior = dist.Normal(mean, torch.exp(0.5 * spread))
    z = posterior.rsample() if net.training else posterior.loc
    return z, dist.kl_divergence(posterior, dist.Normal(torch.zeros_like(z), torch.ones_like(z)))


CODE = {
    "normal": lambda net, a, b, x: dist.Normal(a, F.softplus(b) + 1e-3).log_prob(x[:, :2]),
    "checked on request": lambda net, a, b, x: dist.Normal(a, b.exp(), validate_args=True).entropy() + a,
    "categorical": lambda net, a, b, x: dist.Categorical(logits=a).entropy() + dist.Categorical(logits=b).probs[:, 0],
    "independent": lambda net, a, b, x: dist.Independent(dist.Normal(a, b.exp()), 1).log_prob(x[:, 2:]),
    "beta": lambda net, a, b, x: dist.Beta(F.softplus(a) + 1, F.softplus(b) + 1).mean,
    "squashed": lambda net, a, b, x: dist.TransformedDistribution(
        dist.Normal(a, b.exp()), [dist.transforms.TanhTransform()]
    ).log_prob(x[:, :2].tanh() * 0.9),
}


@pytest.mark.parametrize("name", CODE)
def test_a_distribution(name):
    assert holds(Head(CODE[name]), X, OTHERS).zigs == 16


def test_a_sample_is_drawn_in_training_only():
    model = Head(_bottleneck)
    gm = fx_oto.prepare(model, X)
    for training in (True, False):
        torch.manual_seed(0)
        expected = model.train(training)(X)
        torch.manual_seed(0)
        torch.testing.assert_close(gm.train(training)(X), expected, rtol=0, atol=0)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    torch.testing.assert_close(small.eval()(OTHERS[0]), model.eval()(OTHERS[0]))


def test_a_distribution_is_returned():
    model = Head(lambda net, a, b, x: dist.Normal(a, b.exp())).eval()
    gm = fx_oto.prepare(model, X)
    fx_oto.partition(gm).zero_(0.5)
    found, expected = fx_oto.compress(gm)(OTHERS[0]), model(OTHERS[0])
    assert type(found) is dist.Normal
    torch.testing.assert_close((found.loc, found.scale), (expected.loc, expected.scale))


def test_distributions_check_their_numbers_as_before(monkeypatch):
    monkeypatch.setattr(dist.Distribution, "_validate_args", True)  # torch.compile sets it to False for the process
    fx_oto.prepare(Head(CODE["normal"]), X)
    assert dist.Distribution._validate_args is True
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        dist.Normal(0.0, torch.tensor(-1.0))
