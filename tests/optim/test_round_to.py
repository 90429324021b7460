"""Multiples of round_to hold along every axis that is cut, also where a ZIG has several indices in one of them."""

import pytest
import torch
from torch import nn

import fx_oto


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(10, 96), nn.Linear(48, 16)

    def forward(self, x):
        a, b = self.up(x).chunk(2, -1)
        return self.down(a * b.sigmoid())


class Thirds(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(10, 96), nn.Linear(32, 16)

    def forward(self, x):
        a, b, c = self.up(x).chunk(3, -1)
        return self.down(a * b * c)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.out = kind(10, 48, batch_first=True), nn.Linear(48, 4)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


class Flattened(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 40, 3), nn.Linear(40 * 4, 4)

    def forward(self, x):
        return self.out(self.conv(x).relu().flatten(1))


MODELS = {
    "halves": (Halves, torch.randn(8, 10)),
    "thirds": (Thirds, torch.randn(8, 10)),
    "LSTM": (lambda: Recurrent(nn.LSTM), torch.randn(8, 5, 10)),
    "GRU": (lambda: Recurrent(nn.GRU), torch.randn(8, 5, 10)),
    "flattened": (Flattened, torch.randn(8, 3, 4, 4)),
}


@pytest.mark.parametrize("round_to", [4, 8])
@pytest.mark.parametrize("name", MODELS)
def test_every_axis_that_is_cut_keeps_a_multiple(name, round_to):
    make, x = MODELS[name]
    model = make()
    before = {key: value.shape for key, value in model.named_parameters()}
    gm = fx_oto.prepare(model, x)
    settings = {"target_group_sparsity": 0.45, "total_steps": 10, "round_to": round_to}
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.01, **settings)
    for _ in range(10):
        optimizer.zero_grad()
        gm(x).square().mean().backward()
        optimizer.step()
    after = {key: value.shape for key, value in fx_oto.compress(gm).named_parameters()}
    cut = [new for key in after for old, new in zip(before[key], after[key], strict=True) if new != old]
    assert cut
    assert all(size % round_to == 0 for size in cut)
