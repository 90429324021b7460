"""What mixes the tokens of each channel: a channel that is gone is worth its biases afterwards, which norms count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto

TOKENS, HIDDEN = 9, 14


class Mixer(nn.Module):
    """Blocks that mix tokens by ``mix``, given ``(batch, tokens, channels)``, and channels by linear layers."""

    def __init__(self, mix, norm=nn.LayerNorm):
        super().__init__()
        self.embed, self.mix = nn.Linear(12, 16), mix
        self.norms = nn.ModuleList([norm(16) for _ in range(5)])
        self.convs = nn.ModuleList([nn.Conv1d(TOKENS, HIDDEN, 1), nn.Conv1d(HIDDEN, TOKENS, 1)])
        self.images = nn.ModuleList([nn.Conv2d(TOKENS, HIDDEN, 1), nn.Conv2d(HIDDEN, TOKENS, 1)])
        self.linears = nn.ModuleList([nn.Linear(TOKENS, HIDDEN), nn.Dropout(0.1), nn.Linear(HIDDEN, TOKENS)])
        self.channels = nn.ModuleList([nn.Linear(16, 24), nn.Linear(24, 16)])
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.embed(x)
        for first, second in zip(self.norms[:-1:2], self.norms[1:-1:2], strict=True):
            x = x + self.mix(self, first(x))
            x = x + self.channels[1](F.gelu(self.channels[0](second(x))))
        return self.head(self.norms[-1](x).mean(1))


def of_rows(m, x):
    for layer in m.linears:
        x = F.gelu(layer(x))
    return x


def by_product(m, x, product):
    first, _, second = m.linears
    x = F.gelu(product(first.weight, x) + first.bias[:, None])
    return product(second.weight, x) + second.bias[:, None]


MIXES = {
    "linear layers": lambda m, x: of_rows(m, x.transpose(1, 2)).transpose(1, 2),
    "their function": lambda m, x: (
        F.linear(
            F.gelu(F.linear(x.mT, m.linears[0].weight, m.linears[0].bias)), m.linears[2].weight, m.linears[2].bias
        ).mT
    ),
    "convolutions": lambda m, x: m.convs[1](F.gelu(m.convs[0](x))),
    "their function, too": lambda m, x: F.conv1d(
        torch.sigmoid(F.conv1d(x, m.convs[0].weight, m.convs[0].bias)), m.convs[1].weight, m.convs[1].bias
    ),
    "convolutions of images": lambda m, x: m.images[1](F.gelu(m.images[0](x[..., None, :])))[..., 0, :],
    "hardswish": lambda m, x: m.convs[1](F.hardswish(m.convs[0](x))),
    "products": lambda m, x: by_product(m, x, torch.matmul),
    "products by operator": lambda m, x: by_product(m, x, lambda weight, x: weight @ x),
    "einsum": lambda m, x: by_product(m, x, lambda weight, x: torch.einsum("mn,bnd->bmd", weight, x)),
    "einsum that moves channels": lambda m, x: by_product(
        m, x, lambda weight, x: torch.einsum("mn,bnd->dbm", weight, x).permute(1, 2, 0)
    ),
    "tensordot": lambda m, x: by_product(
        m, x, lambda weight, x: torch.tensordot(x, weight, dims=([1], [1])).transpose(1, 2)
    ),
    "rolled": lambda m, x: m.convs[1](F.gelu(m.convs[0](x))).roll(1, 1).flip(1),
    "what is gone of their own": lambda m, x: m.convs[1](torch.sigmoid(m.convs[0](x))),
    "in a sum of two": lambda m, x: m.convs[1](F.gelu(m.convs[0](x)) + F.silu(m.convs[0](2 * x))),
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_channels_go_though_biases_of_tokens_are_added_to_them(mix):
    inputs = torch.randn(2, TOKENS, 12)
    found = compress_half(Mixer(mix), inputs, others=[torch.randn(3, TOKENS, 12), torch.randn(1, TOKENS, 12)])
    assert found.params_left < 0.45


class Hand(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(size)), nn.Parameter(torch.rand(size))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight + self.bias


class OverTokens(nn.Module):
    """A norm that takes its channels from the middle."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.mT).mT


NORMS = {
    "RMSNorm": nn.RMSNorm,
    "by hand": Hand,
    "in one group": lambda size: OverTokens(nn.GroupNorm(1, size)),
    "in groups": lambda size: OverTokens(nn.GroupNorm(4, size)),
    "BatchNorm": lambda size: OverTokens(nn.BatchNorm1d(size)),
    "none": lambda size: nn.Identity(),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_every_norm_counts_what_they_are_worth(norm):
    inputs = torch.randn(2, TOKENS, 12)
    mix = MIXES["linear layers"]
    assert compress_half(Mixer(mix, norm), inputs, others=[torch.randn(3, TOKENS, 12)]).params_left < 0.3


def test_it_is_saved_exported_written_back_and_cut_again(tmp_path):
    model = Mixer(MIXES["convolutions"]).double().eval()
    del model.images, model.linears
    inputs, other = (torch.randn(size, TOKENS, 12, dtype=torch.float64) for size in (2, 5))
    gm = fx_oto.prepare(model, inputs)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    written = fx_oto.write_back(small, model)
    assert type(written) is Mixer
    torch.testing.assert_close(written(other), model(other))
    fx_oto.save(small, tmp_path / "small.safetensors")
    assert torch.equal(fx_oto.load(tmp_path / "small.safetensors")(other), small(other))
    program = torch.export.export(small, (other,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.testing.assert_close(program.module()(inputs), small(inputs))
    again = fx_oto.prepare(small, inputs)
    fx_oto.partition(again).zero_(0.5)
    torch.testing.assert_close(fx_oto.compress(again)(other), small(other))
