"""Layers that ``forward`` casts, or lends other tensors: they stay themselves, in both modes, and learn.

Nothing here asks which mode it is in but torch's own layers.
"""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import nn
from torch.func import functional_call

import fx_oto


class Net(nn.Module):
    """Something, spelled by ``code``, with two layers and a norm in between."""

    def __init__(self, code):
        super().__init__()
        self.a, self.norm, self.b, self.code = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3), code
        self.scale = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x):
        return self.b(self.code(self, x).relu())


def _cast(change):
    def code(m, x):
        change(m, x)
        return m.norm(m.a(x))

    return code


def _assigned(m, x):
    m.a = m.a.to(x.dtype)


CASTS = {
    "to a type": lambda m, x: m.a.to(x.dtype),
    "to a tensor": lambda m, x: m.a.to(x),
    "to a device": lambda m, x: m.norm.to(device=x.device),
    "assigned": _assigned,
    "by name": lambda m, x: m.a.type(x.dtype),
    "all of it": lambda m, x: m.to(x.dtype),
    "to learn": lambda m, x: m.a.requires_grad_(True),
}


@pytest.mark.parametrize("name", CASTS)
def test_layers_that_are_cast_to_what_they_are_learn(name):
    """Their parameters got no gradient, and a norm stayed in evaluation."""
    torch.manual_seed(0)
    found = compress_half(Net(_cast(CASTS[name])), torch.randn(6, 4))
    assert found.zigs == 8
    gm = found.gm.train()
    gm(torch.randn(6, 4).double()).sum().backward()
    assert gm.get_parameter("a.weight").grad is not None


def test_a_layer_that_is_cast_to_another_type_learns():
    """It is of that type from the first call on, which is the user's."""
    torch.manual_seed(0)
    model, x = Net(lambda m, x: m.norm(m.a.double()(x.double()).float())), torch.randn(6, 4)
    with pytest.raises(
        fx_oto.TraceError, match=r"casts a\.weight from torch\.float32 to torch\.float64.*before prepare"
    ):
        fx_oto.prepare(model, x)
    assert model.a.weight.dtype == torch.float32
    model(x)
    gm = fx_oto.prepare(model, x)
    torch.testing.assert_close(gm(x), model(x))
    gm(x).sum().backward()
    assert model.a.weight.grad.dtype == torch.float64


def test_a_new_parameter_is_refused():
    def halved(m, x):
        m.a.weight = nn.Parameter(m.a.weight.detach() * 0.5)
        return m.a(x)

    with pytest.raises(fx_oto.TraceError, match="parameter 'weight'"):
        fx_oto.prepare(Net(halved), torch.randn(6, 4))


LENT = {
    "a scale": lambda m, x: functional_call(m.norm, {"weight": m.scale}, (m.a(x),)),
    "statistics": lambda m, x: functional_call(m.norm, {"running_mean": m.norm.running_mean * 2}, (m.a(x),)),
}


@pytest.mark.parametrize("name", LENT)
def test_a_norm_over_lent_tensors_follows_the_mode(name):
    """Its statistics were those of evaluation in training, too."""
    torch.manual_seed(0)
    model, x = Net(LENT[name]), torch.randn(6, 4)
    nn.init.normal_(model.norm.running_mean)
    gm = fx_oto.prepare(model, x)
    for mode in (True, False):
        torch.testing.assert_close(gm.train(mode)(x), model.train(mode)(x))
