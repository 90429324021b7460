"""Networks of many layers, or of modules deep in each other, as deep as Python lets the model itself go."""

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto


class Nested(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.inner = Nested(depth - 1) if depth else nn.Linear(8, 3)

    def forward(self, x):
        return self.inner(torch.relu(self.layer(x)))


class Chain(nn.Module):
    """Many layers in a row, side by side, or none of them used."""

    def __init__(self, count, kind):
        super().__init__()
        self.kind, self.layers = kind, nn.ModuleList(nn.Linear(8, 8) for _ in range(count))
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8 * count if kind == "beside" else 8, 3)

    def forward(self, x):
        x = self.stem(x)
        if self.kind == "beside":
            return self.head(torch.cat([torch.tanh(layer(x)) for layer in self.layers], -1))
        for layer in self.layers if self.kind == "row" else ():
            x = x + 0.1 * torch.tanh(layer(x))
        return self.head(x)


@pytest.mark.parametrize("depth", [20, 150])
def test_modules_deep_in_each_other(depth):
    assert compress_half(Nested(depth), torch.randn(2, 8), sensitive=False)  # little comes through so many layers


@pytest.mark.parametrize("kind", ["row", "beside", "unused"])
def test_many_layers(kind):
    assert compress_half(Chain(150, kind), torch.randn(2, 8))


def test_each_tensor_is_looked_up_once_however_many_families_there_are(monkeypatch):
    from fx_oto.zigs import partition

    listed, names = [], partition.tensor_names
    gm = fx_oto.prepare(Chain(60, "beside"), torch.randn(2, 8))
    monkeypatch.setattr(partition, "tensor_names", lambda module: listed.append(0) or names(module))
    fx_oto.partition(gm).zero_(0.5)
    fx_oto.partition(gm).mask_(0, torch.tensor([1])).zero_masked_()
    assert len(fx_oto.partition(gm).families) > 20
    assert len(listed) == 2
