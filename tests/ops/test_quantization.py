"""Rounding as quantized numbers would be; ranges that training observes keep their layers whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH = 8


class Net(nn.Module):
    """Three layers, the second of which has its weight rounded by ``code``."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b, self.c, self.code = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), code
        self.register_buffer("scale", torch.rand(WIDTH) / 100 + 0.002)
        self.register_buffer("zero", torch.zeros(WIDTH, dtype=torch.int32))
        self.step, self.offset = nn.Parameter(torch.rand(WIDTH) / 100 + 0.002), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        return self.c(F.linear(self.a(x), self.code(self, self.b.weight), self.b.bias).relu())


ROUNDED = {
    "of all": lambda m, w: torch.fake_quantize_per_tensor_affine(w, 0.01, 3, -128, 127),
    "of all, buffers": lambda m, w: torch.fake_quantize_per_tensor_affine(w, m.scale[:1], m.zero[:1], -128, 127),
    "of rows": lambda m, w: torch.fake_quantize_per_channel_affine(w, m.scale, m.zero, 0, -128, 127),
    "of columns": lambda m, w: torch.fake_quantize_per_channel_affine(w, m.scale, m.zero, 1, -128, 127),
    "learned": lambda m, w: torch._fake_quantize_learnable_per_channel_affine(w, m.step, m.offset, 0, -128, 127, 1.0),
    "straight through": lambda m, w: w + ((w / 0.01).clamp(-128, 127).round() * 0.01 - w).detach(),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_channels_are_cut(name):
    torch.manual_seed(0)
    found = compress_half(Net(ROUNDED[name]), torch.randn(4, 6), torch.float32)

    assert found.zigs == 2 * WIDTH


def test_learned_scales_are_not_driven_to_zero():
    gm = fx_oto.prepare(Net(ROUNDED["learned"]), torch.randn(4, 6))
    slots = [slot for family in fx_oto.partition(gm).families for slot in family.slots]
    assert {slot.variable for slot in slots if slot.tensor in ("step", "offset")} == {False}


@pytest.mark.filterwarnings("ignore")
def test_what_training_observes_is_kept_whole():
    from torch.ao import quantization

    model = nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3)).train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    model = quantization.prepare_qat(model)
    gm = fx_oto.prepare(model, torch.randn(4, 6))
    assert fx_oto.partition(gm).num_zigs == 0
    assert "compress first, then prepare for quantization" in str(fx_oto.partition(gm).explain())
