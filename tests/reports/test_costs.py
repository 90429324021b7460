"""Parameters and MACs are exact integers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.networks import resnet18
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fx_oto


def test_resnet18_agrees_with_torchs_flop_counter_on_a_real_run():
    model, image = resnet18().eval(), torch.randn(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    assert fx_oto.cost(model, image).macs == counter.get_total_flops() // 2
    assert fx_oto.cost(model, image).params == sum(p.numel() for p in model.parameters())


def test_attention_counts_its_matrix_products():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(1, 5, 8)
    projections, products = 4 * 5 * 8 * 8, 2 * 5 * 5 * 8
    assert fx_oto.cost(layer, {"query": x, "key": x, "value": x}).macs == projections + products


def test_the_model_is_left_as_it_was():
    model = resnet18()
    fx_oto.cost(model, torch.randn(1, 3, 32, 32))
    assert all(module.training for module in model.modules())
    assert int(model.stem[1].num_batches_tracked) == 0


def test_inputs_that_do_not_fit():
    with pytest.raises(fx_oto.InputError, match=r"does not run on the example inputs: .* found \(1, 5\)"):
        fx_oto.cost(nn.Linear(4, 2), torch.randn(1, 5))


@pytest.mark.parametrize("length", [7, 64])
def test_fused_attention_is_counted_like_its_products(length):
    class Attend(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    q, k, v = (torch.randn(2, 3, length, width) for width in (8, 8, 8))
    gm = fx_oto.prepare(Attend(), (q, k, v))
    assert fx_oto.cost(Attend(), (q, k, v)).macs == 2 * (2 * 3 * length * length * 8)
    assert fx_oto.partition(gm).macs.total == 2 * (2 * 3 * length * length * 8)
