"""Reports agree with reality: counted parameters and multiply-adds are those of the weights and of a real run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import randomise
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fx_oto
from fx_oto.core.fx_utils import unfused_attention

IMAGE, TOKENS = torch.randn(2, 3, 16, 16), torch.randn(2, 7, 8)


class Patches(nn.Module):
    """A vision transformer of two blocks."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.embed, self.position = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 16, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)) for _ in range(2)
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            y = self.norms[2 * i](x)
            x = x + attention(y, y, y, need_weights=False)[0]
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(x.mean(1))


class Scaled(nn.Module):
    """Attention written with torch's function, heads of a projection each."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 24) for _ in range(3))
        self.out = nn.Linear(24, 5)

    def forward(self, x):
        q, k, v = (
            part(x).view(x.size(0), x.size(1), 6, 4).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.recurrence = nn.LSTM(8, 12, 2, batch_first=True, **options)
        self.head = nn.Linear(24 if options else 12, 3)

    def forward(self, x):
        return self.head(self.recurrence(x)[0])


class Shared(nn.Module):
    """A layer that runs twice, and a weight under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(8, 12)
        self.last.weight = self.first.weight

    def forward(self, x):
        y = F.relu(self.twice(F.relu(self.twice(F.relu(self.first(x))))))
        return torch.cat([y @ self.first.weight, F.relu(self.last(x)) @ self.first.weight], -1)


def convolutions():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2)),
        *(nn.ReLU(), nn.ConvTranspose2d(12, 6, 2, stride=2), nn.Flatten(), nn.Linear(6 * 14 * 14, 5)),
    )


def grouped():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 24, 3, groups=4), nn.ReLU(), nn.Conv2d(24, 5, 1)),
    )


NETWORKS = {
    "convolutions": (convolutions, IMAGE),
    "grouped and depthwise": (grouped, IMAGE),
    "vision transformer": (Patches, IMAGE),
    "scaled dot product": (Scaled, TOKENS),
    "LSTM": (Recurrent, TOKENS),
    "LSTM in both directions": (lambda: Recurrent(bidirectional=True), TOKENS),
    "shared weights": (Shared, TOKENS),
}


def counted(model, inputs):
    """Parameters by the state dict, each tensor once; MACs by torch's own counter, of a run that fuses nothing."""
    names = dict(model.named_parameters(remove_duplicate=False))
    weights = {t.data_ptr(): t.numel() for name, t in model.state_dict().items() if name in names}
    with (
        unfused_attention(),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False, allow_tf32=None),
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        model(inputs)
    return sum(weights.values()), counter.get_total_flops() // 2


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_and_prices_are_those_of_a_real_run(name):
    make, inputs = NETWORKS[name]
    model = randomise(make()).eval()
    gm = fx_oto.prepare(model, inputs)
    zigs = fx_oto.partition(gm)
    before = counted(model, inputs)
    assert min(before) > 0
    assert (zigs.params.total, zigs.macs.total) == before
    for module in (model, gm):
        assert fx_oto.cost(module, inputs) == fx_oto.Cost(*before)
    zigs.zero_(0.5, torch.Generator().manual_seed(1))
    removed = zigs.removed()
    assert removed.min() > 0
    small = fx_oto.compress(gm)
    after = counted(small, inputs)
    assert (zigs.params.left(removed), zigs.macs.left(removed)) == after
    assert fx_oto.cost(small, inputs) == fx_oto.Cost(*after)
    assert counted(gm, inputs) == before
    assert after[0] < before[0]
    assert after[1] < before[1]


class AsksForValues(nn.Module):
    """No trace takes it."""

    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(self.lstm(x)[0]) * int((x > 0).sum().item())


class Recurrence(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


@pytest.mark.parametrize("leaf", [(), (AsksForValues,), (Recurrence,)], ids=["opaque", "opaque leaf", "leaf"])
def test_what_is_called_as_a_whole_is_counted(leaf):
    kind = leaf[0] if leaf else AsksForValues
    part = Recurrence(8, 8, batch_first=True) if kind is Recurrence else AsksForValues()
    model, inputs = randomise(nn.Sequential(nn.Linear(4, 8), part, nn.Linear(8, 2))).eval(), torch.randn(3, 5, 4)
    with fx_oto.temporary_rules():
        for one in leaf:
            fx_oto.register_leaf(one, fx_oto.kinds.keep_whole("it is called as a whole"))
        gm = fx_oto.prepare(model, inputs)
    expected = counted(model, inputs)[1]
    assert expected > 15 * 2 * 8 * 32
    assert fx_oto.report(gm).records[-1].macs == (expected, expected)
    assert fx_oto.partition(gm).macs.total == expected == fx_oto.cost(model, inputs).macs


@pytest.mark.parametrize("fraction", [0.29, 0.57, 0.58])
def test_a_fraction_that_floats_round_down_takes_whole_groups(fraction):
    """As 0.29 × 100 is 28.999999999999996."""
    gm = fx_oto.prepare(torch.nn.Sequential(torch.nn.Linear(3, 100), torch.nn.Linear(100, 2)), torch.randn(2, 3))
    assert fx_oto.partition(gm).zero_(fraction).removed().tolist() == [round(100 * fraction)]


@pytest.mark.parametrize("equation", ["bqd,bkd->bqk", "bqd,bkd->bkq", "aqd,akd->aqk"])
@pytest.mark.parametrize("width", [2, 4])
def test_einsum_over_a_single_index_that_is_left(equation, width):
    """Torch multiplies there, and contracts nothing."""

    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(6, width), nn.Linear(6, width)

        def forward(self, x):
            return torch.einsum(equation, self.q(x), self.k(x))

    x = torch.randn(2, 5, 6)
    gm = fx_oto.prepare(Products(), x)
    zigs = fx_oto.partition(gm)
    assert zigs.num_zigs == width
    zigs.zero_(0.5)
    small = fx_oto.compress(gm)
    left = fx_oto.cost(small, x).macs
    assert fx_oto.report(small).records[-1].macs[1] == zigs.macs.left(zigs.removed()) == left
    assert left < zigs.macs.total / 2 if width == 2 else left == zigs.macs.total / 2
