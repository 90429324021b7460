"""Attention that torch computes in another way in evaluation without gradients."""

import pytest
import torch
from support.exactness import compress_half, never_drop, randomise
from torch import nn

import fx_oto

LENGTHS = torch.tensor([12, 7, 3])
PADDED = torch.arange(12) >= LENGTHS[:, None]  # at the end: what nested tensors can hold
MASKS = {"at the end": PADDED, "in front": PADDED.flip(1)}
NOTE = "in evaluation without gradients, nn.TransformerEncoder returns zeros where an example is padded"

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{NOTE}"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]


class Encoder(nn.Module):
    """A text classifier in torch's own layers."""

    def __init__(self, pooled=False, nhead=4, norm_first=False, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, nhead, 32, batch_first=True, norm_first=norm_first, **options)
        self.pooled, self.embed, self.head = pooled, nn.Linear(10, 16), nn.Linear(16, 3)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=not norm_first)

    def forward(self, x, padded):
        x = self.encoder(self.embed(x), src_key_padding_mask=padded)
        if self.pooled:
            kept = (~padded)[..., None].to(x)
            x = (x * kept).sum(1) / kept.sum(1)
        return self.head(x)


@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}, {"norm_first": True}, {"nhead": 2}], ids=str)
@pytest.mark.parametrize("where", MASKS)
def test_a_padded_encoder_is_exact(where, options):
    found = compress_half(Encoder(**options), (torch.randn(3, 12, 10), MASKS[where]))
    assert found.params_left < 0.4


def pruned(model, *inputs):
    gm = fx_oto.prepare(never_drop(randomise(model)), inputs)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    return gm


@pytest.mark.parametrize("padded", [PADDED, torch.zeros(3, 12).masked_fill(PADDED, -1e9)], ids=["bool", "numbers"])
def test_what_differs_without_gradients_is_said(padded):
    x = torch.randn(3, 12, 10)
    with pytest.warns(fx_oto.FxOtoWarning, match=NOTE):
        gm = pruned(model := Encoder(), x, padded)
    small = fx_oto.compress(gm).eval()
    torch.testing.assert_close(small(x, padded), model.eval()(x, padded), rtol=1e-4, atol=1e-5)
    back = fx_oto.compress(gm, into=model).eval()
    with torch.no_grad():
        fast, mine, own = (net(x, padded) for net in (model, small, back))
    torch.testing.assert_close(mine[~PADDED], fast[~PADDED], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own, mine, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mine[PADDED], fast[PADDED], atol=1e-3)


def test_nothing_is_said_where_padded_outputs_are_not_used():
    x = torch.randn(3, 12, 10)
    gm = pruned(model := Encoder(pooled=True), x, PADDED)
    with torch.no_grad():
        small, whole = fx_oto.compress(gm).eval()(x, PADDED), model.eval()(x, PADDED)
    torch.testing.assert_close(small, whole, rtol=1e-4, atol=1e-5)
