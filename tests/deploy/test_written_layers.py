"""Torch's own layers keep their classes and hooks, with the sizes of what is left; what is written back can go on."""

from __future__ import annotations

import copy

import pytest
import torch
from support.exactness import randomise
from torch import nn

import fx_oto
from fx_oto.core.differences import relative_error

TOKENS = torch.randn(2, 6, 12, dtype=torch.float64)
IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def written(model, inputs=TOKENS):
    model = randomise(model.eval()).double()
    gm = fx_oto.prepare(model, inputs)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    small = fx_oto.compress(gm)
    result = fx_oto.write_back(small, model)
    assert not fx_oto.WriteBack.of(result).graphs
    for one in (result, copy.deepcopy(result)):
        assert relative_error(small(inputs), one(inputs)) <= 1e-10
    assert sum(p.numel() for p in result.parameters()) == sum(p.numel() for p in small.parameters())
    return result


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers = kind(12, 16, num_layers=2, batch_first=True)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.layers(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    result = written(Recurrent(kind))
    assert type(result.layers) is kind
    assert result.layers.hidden_size == result.last.in_features == 8
    weights = dict(result.layers.named_parameters())
    assert all(any(one is weight for weight in weights.values()) for one in result.layers._flat_weights)


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_transformer(norm_first):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    result = written(nn.Sequential(nn.Linear(12, 16), encoder, nn.Linear(16, 3)))
    assert type(result[1].layers[0]) is nn.TransformerEncoderLayer
    assert result[1].layers[0].linear1.out_features == 16
    with torch.no_grad():
        kept = result(TOKENS)
    assert relative_error(result(TOKENS), kept) <= 1e-10  # with gradients, torch takes another way


def test_images():
    body = (nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.PReLU(8), nn.ConvTranspose2d(8, 8, 3), nn.ReLU())
    result = written(nn.Sequential(*body, nn.Conv2d(8, 2, 1)), IMAGES)
    assert (result[1].num_groups, result[1].num_channels, result[2].num_parameters) == (2, 4, 4)
    assert (result[3].in_channels, result[3].out_channels, result[5].in_channels) == (4, 4, 4)


def test_what_is_written_back_trains_and_is_pruned_again():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            heads = self.up(x).view(x.size(0), x.size(1), 4, 4).transpose(1, 2)
            return self.down(((heads @ heads.mT).softmax(-1) @ heads).transpose(1, 2).flatten(2))

    model = randomise(nn.Sequential(nn.Linear(12, 16), Fixed(), nn.Linear(16, 3)).eval()).double()
    gm = fx_oto.prepare(model, TOKENS)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    once = fx_oto.compress(gm, into=model)
    assert [graph.module for graph in fx_oto.WriteBack.of(once).graphs] == ["1"]
    again = fx_oto.prepare(once, TOKENS)
    optimizer = fx_oto.DHSPG(again, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, total_steps=8)
    for _ in range(8):
        optimizer.zero_grad()
        once.train()(TOKENS).square().mean().backward()
        optimizer.step()
    once.eval()
    twice = fx_oto.compress(again, into=once)
    assert sum(p.numel() for p in twice.parameters()) < sum(p.numel() for p in once.parameters())
    assert relative_error(once(TOKENS), twice(TOKENS)) <= 1e-10
