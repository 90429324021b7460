"""Weights that are computed from others: in training, torch's spectral norm writes into buffers when one is read."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from support.exactness import randomise
from support.kinds import holds
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fx_oto

VECTOR, IMAGE = torch.randn(4, 8, dtype=torch.float64), torch.randn(4, 8, 6, 6, dtype=torch.float64)
TOKENS = torch.randn(2, 5, 4)
NETWORKS = {
    "linear": lambda norm: (nn.Sequential(norm(nn.Linear(8, 16)), nn.LeakyReLU(0.2), nn.Linear(16, 3)), VECTOR),
    "conv": lambda norm: (nn.Sequential(norm(nn.Conv2d(8, 16, 3)), nn.ReLU(), nn.Conv2d(16, 3, 3)), IMAGE),
}


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_power_iteration_goes_on_where_it_was(norm, name):
    network, inputs = NETWORKS[name](norm)
    network = randomise(network.double()).train()
    gm = fx_oto.prepare(network, inputs)
    zigs = fx_oto.partition(gm)
    zigs.zero_(0.5)
    before = {key: buffer.clone() for key, buffer in gm.named_buffers()}
    compact = fx_oto.compress(gm)
    assert all(torch.equal(buffer, before[key]) for key, buffer in gm.named_buffers())
    assert all(child.training for child in compact.modules())
    kept = [(~zeros).nonzero()[:, 0] for zeros in zigs.zeros()]
    for key, buffer in compact.named_buffers():
        left = before[key] if buffer.shape == before[key].shape else before[key][kept[0]]
        torch.testing.assert_close(buffer, left, rtol=0, atol=0)
    full = copy.deepcopy(network)
    for _ in range(3):
        expected, found = full(inputs), compact(inputs)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    full.eval(), compact.eval()
    torch.testing.assert_close(compact(inputs), full(inputs), rtol=1e-10, atol=1e-12)


class Unit(nn.Module):
    """Rows or columns of length 1."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, weight):
        return F.normalize(weight, dim=self.dim)


class Soft(nn.Module):
    def forward(self, weight):
        return F.softplus(weight) - math.log(2)


class Reading(nn.Module):
    """Reads the weight of a layer that it does not call."""

    def __init__(self, norm, read):
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)
        self.table, self.read = norm(nn.Linear(16, 8, bias=False)), read

    def forward(self, x):
        return self.last((self.first(x) + self.read(self.table.weight, x)).relu())


OWN = {
    "rows": lambda layer: parametrize.register_parametrization(layer, "weight", Unit(-1)),
    "columns": lambda layer: parametrize.register_parametrization(layer, "weight", Unit(0)),
    "elements": lambda layer: parametrize.register_parametrization(layer, "weight", Soft()),
    "one after the other": lambda layer: parametrize.register_parametrization(
        parametrize.register_parametrization(layer, "weight", Soft()), "weight", Unit(-1)
    ),
}
TORCHS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}
READ = {
    "places": lambda weight, x: weight[torch.arange(x.size(1))],
    "sliced": lambda weight, x: weight[: x.size(1)],
    "embedding": lambda weight, x: F.embedding(torch.arange(x.size(1)), weight),
    "as a layer": lambda weight, x: x @ weight[:4],
    "mean": lambda weight, x: weight.mean(0),
}


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("norm", OWN)
def test_a_users_parametrization_is_looked_into(norm, read):
    found = holds(Reading(OWN[norm], READ[read]), TOKENS, [torch.randn(3, 7, 4), torch.randn(1, 2, 4)])
    assert found.zigs >= 16  # the first layer's channels, and what else can go


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("norm", TORCHS)
def test_one_of_torchs_is_right_when_its_weight_is_read(norm, read):
    model, others = Reading(TORCHS[norm], READ[read]), [torch.randn(3, 7, 4), torch.randn(1, 2, 4)]
    holds(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), model), TOKENS, others)


class Short(nn.Module):
    def forward(self, weight):
        return weight.renorm(2, 0, 0.5)


class Standard(nn.Module):
    def forward(self, weight):
        variance, mean = torch.var_mean(weight, (1, 2, 3), keepdim=True)
        return (weight - mean) / (variance + 1e-5).sqrt()


class Positive(nn.Module):
    def forward(self, weight):
        return weight.sigmoid()


OF_KERNELS = {
    "short": lambda layer: parametrize.register_parametrization(layer, "weight", Short()),
    "soft": lambda layer: parametrize.register_parametrization(layer, "weight", Soft()),
    "standard": lambda layer: parametrize.register_parametrization(layer, "weight", Standard()),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
}


def grouped(norm, groups, kind=nn.Conv2d):
    layer = norm(kind(16, 16, 3, padding=1, groups=groups))
    return nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(16, 3, 1))


@pytest.mark.parametrize("groups", [16, 4])
@pytest.mark.parametrize("norm", OF_KERNELS)
def test_grouped_convolutions_are_cut(norm, groups):
    """Of four groups, whole ones go where a norm is over all channels of a group."""
    expected = {16: 16, 4: 4 if norm == "standard" else 8}
    assert holds(grouped(OF_KERNELS[norm], groups), IMAGE).zigs == expected[groups]


@pytest.mark.parametrize("norm", ["short", "soft", "weight_norm"])
def test_transposed_grouped_convolutions_are_cut(norm):
    assert holds(grouped(OF_KERNELS[norm], 16, nn.ConvTranspose2d), IMAGE).zigs == 16


def test_kernels_that_are_not_zero_where_their_parameter_is():
    layer = grouped(lambda layer: parametrize.register_parametrization(layer, "weight", Positive()), 16)
    assert fx_oto.partition(fx_oto.prepare(layer.double(), IMAGE)).num_zigs == 0
