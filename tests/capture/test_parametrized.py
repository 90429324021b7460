"""Weights that are computed from others: in training, torch's spectral norm writes into buffers when one is read."""

from __future__ import annotations

import copy

import pytest
import torch
from support.exactness import randomise
from torch import nn
from torch.nn.utils import parametrizations

import fx_oto

VECTOR, IMAGE = torch.randn(4, 8, dtype=torch.float64), torch.randn(4, 8, 6, 6, dtype=torch.float64)
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
