"""Derivatives that forward computes, and layers that it casts: refused in words, or called as a whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fx_oto


class Field(nn.Module):
    """A network, and its derivative by what it is given."""

    def __init__(self, differentiate):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
        self.differentiate = differentiate

    def forward(self, x):
        return self.differentiate(self.net, x)


def by_grad(net, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]


def by_grad_in_any_mode(net, x):
    with torch.enable_grad():
        x = x.requires_grad_()
        energy = net(x)
        forces = -torch.autograd.grad(energy, x, torch.ones_like(energy), create_graph=True)[0]
    return torch.cat([energy, forces], -1)


def by_backward(net, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        net(x).sum().backward()
    return x.grad


def by_backward_of_torch(net, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        torch.autograd.backward(net(x).sum())
    return x.grad


def by_jacobian(net, x):
    with torch.enable_grad():
        return torch.autograd.functional.jacobian(lambda one: net(one).sum(), x, create_graph=True)


SLOPES = [by_grad, by_grad_in_any_mode, by_backward, by_backward_of_torch, by_jacobian]


@pytest.mark.parametrize("slope", SLOPES)
def test_derivatives_in_forward_are_refused_by_name_and_the_network_is_a_part(slope):
    model, x = Field(slope), torch.randn(5, 3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(fx_oto.TraceError, match=r"test_inner_derivatives\.py:\d+ .*code computes derivatives .*parts="):
        fx_oto.prepare(model, x)
    gm = fx_oto.prepare(model, x, parts=["net"])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    whole = model(x.clone())
    small = fx_oto.write_back(fx_oto.compress(gm), model)
    assert small.net[0].out_features == 8
    torch.testing.assert_close(small(x.clone()), whole)


def test_derivatives_by_what_the_caller_gives_a_gradient():
    def differentiate(net, x):
        return torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]

    x = torch.randn(5, 3, requires_grad=True)
    with pytest.raises(fx_oto.TraceError, match="code computes derivatives"):
        fx_oto.prepare(Field(differentiate), x)
    assert fx_oto.partition(fx_oto.prepare(Field(differentiate), x, parts=["net"])).num_zigs == 16


class Outside(nn.Module):
    def __init__(self, slope, width):
        super().__init__()
        self.first, self.up, self.field = nn.Linear(4, 16), nn.Linear(16, 3), Field(slope)
        self.last = nn.Linear(width, 2)

    def forward(self, x):
        return self.last(self.field(self.up(self.first(x).relu())).relu())


@pytest.mark.filterwarnings("ignore:no rule is known")  # of what autograd calls, in the field itself
@pytest.mark.parametrize("slope", SLOPES[1:])
def test_a_submodule_that_computes_derivatives_is_called_as_a_whole(slope):
    model, x = Outside(slope, 4 if slope is by_grad_in_any_mode else 3), torch.randn(5, 4)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    gm = fx_oto.prepare(model, x)
    assert fx_oto.Context.of(gm).capture.opaque == ("field",)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm)
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())
    assert small.first.out_features == 8
    for size in (3, 5):
        torch.testing.assert_close(*(one(x[:size]) for one in (small, model)))


# -- casts -----------------------------------------------------------------------------------------------------------

CASTS = {
    "called": lambda model, x: model.first.double()(x.double()).float(),
    "assigned": lambda model, x: setattr(model, "first", model.first.double()) or model.first(x.double()).float(),
    "to": lambda model, x: model.first.to(torch.float64)(x.double()).float(),
    "half": lambda model, x: model.first.to(torch.bfloat16)(x.bfloat16()).float(),
    "data": lambda model, x: (
        [setattr(p, "data", p.data.double()) for p in model.first.parameters()] and model.first(x.double()).float()
    ),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_layer_that_forward_casts_is_refused_until_it_is_cast(cast, training):
    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x):
            return self.last(cast(self, x).relu())

    model = Casting().train(training)
    text = r"code casts first\.weight from torch\.float32 to torch\.\w+: do that once, before prepare, such as by call"
    with pytest.raises(fx_oto.TraceError, match=text):
        fx_oto.prepare(model, torch.ones(3, 4))
    assert model.first.weight.dtype == torch.float32
    expected = model(torch.ones(3, 4))
    torch.testing.assert_close(fx_oto.prepare(model, torch.ones(3, 4))(torch.ones(3, 4)), expected)
