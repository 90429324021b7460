"""What mixes the tokens of each channel: a channel that is gone is worth its biases afterwards, which norms count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

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
    "products": lambda m, x: by_product(m, x, torch.matmul),
    "products by operator": lambda m, x: by_product(m, x, lambda weight, x: weight @ x),
    "einsum": lambda m, x: by_product(m, x, lambda weight, x: torch.einsum("mn,bnd->bmd", weight, x)),
    "what is gone of their own": lambda m, x: m.convs[1](torch.sigmoid(m.convs[0](x))),
    "in a sum of two": lambda m, x: m.convs[1](F.gelu(m.convs[0](x)) + F.silu(m.convs[0](2 * x))),
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_channels_go_though_biases_of_tokens_are_added_to_them(mix):
    inputs = torch.randn(2, TOKENS, 12)
    found = compress_half(Mixer(mix), inputs, others=[torch.randn(3, TOKENS, 12), torch.randn(1, TOKENS, 12)])
    assert found.params_left < 0.45
