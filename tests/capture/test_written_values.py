"""Code that changes a tensor where it is: turns it, writes into it without a gradient, or replaces its data."""

import warnings

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH = 12


class Net(nn.Module):
    """Two layers, and what ``code`` does between them to the hidden units, or to the layers."""

    def __init__(self, code, of_layers=False):
        super().__init__()
        self.a, self.b, self.code, self.of_layers = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3), code, of_layers
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        if self.of_layers:
            self.code(self)
        h = torch.relu(self.a(x)) * 1.5
        return self.b(h if self.of_layers else self.code(h))


def in_place(name, *args, then=lambda h: h, first=lambda h: h):
    """A method that changes its tensor, called on another name of it."""

    def code(h):
        h = same = first(h)
        getattr(same, name)(*args)
        return then(h)

    return code


def turned_and_written(h):
    before = h.view(-1, WIDTH)
    h.unsqueeze_(1)
    h.mul_(2.0)
    return h.sum(1) + before


def turned_pieces(h):
    pieces = [piece.clone() for piece in h.chunk(2, 1)]
    for piece in pieces:
        piece.unsqueeze_(-1)
    return torch.cat(pieces, 1).squeeze(-1)


TURNED = {
    "squeeze_": in_place("squeeze_", 1, first=lambda h: h.unsqueeze(1)),
    "squeeze_ of all": in_place("squeeze_", first=lambda h: h.unsqueeze(1).unsqueeze(-1)),
    "unsqueeze_": in_place("unsqueeze_", 1, then=lambda h: h.mean(1)),
    "t_": in_place("t_", then=lambda h: h.t()),
    "transpose_": in_place("transpose_", 0, 1, then=lambda h: h.transpose(0, 1)),
    "swapaxes_": in_place("swapaxes_", 0, 1, then=lambda h: h.swapaxes(1, 0)),
    "swapdims_": in_place("swapdims_", -1, 0, then=lambda h: h.T),
    "several": in_place("t_", first=lambda h: h.unsqueeze_(0).squeeze_(0).t_()),
    "sizes are asked": in_place("unsqueeze_", 0, then=lambda h: h.reshape(h.size(1), h.shape[2])),
    "written later": turned_and_written,
    "pieces": turned_pieces,
}


@pytest.mark.parametrize("name", TURNED)
def test_what_is_turned_in_place(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compress_half(Net(TURNED[name]), torch.randn(5, 6))
    assert found.zigs == WIDTH


def test_inputs_are_turned():
    net = Net(lambda h: h)
    net.register_forward_pre_hook(lambda module, args: (args[0].unsqueeze_(0).squeeze_(0),))
    assert compress_half(net, torch.randn(5, 6)).zigs == WIDTH


def without_gradient(change):
    def code(h):
        with torch.no_grad():
            change(h)
        return h

    return code


def of_data(change):
    def code(h):
        h.data = change(h.data)
        return h

    return code


def zero_where_small(h):
    h[h < 0.3] = 0


WRITTEN = {
    "method": without_gradient(lambda h: h.mul_(2.0)),
    "operator": without_gradient(lambda h: h.__imul__(0.5)),
    "function": without_gradient(lambda h: nn.functional.relu(h, inplace=True)),
    "by a mask": without_gradient(zero_where_small),
    "view": without_gradient(lambda h: h[:, None].clamp_(max=0.7)),
    "data": lambda h: h.data.clamp_(max=0.7) * 0 + h,
    "data is replaced": of_data(lambda h: h.round()),
    "data is replaced by twice": of_data(lambda h: h * 2),
    "data of what is saved": of_data(lambda h: h / 2),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_keeps_its_gradient(name):
    first = torch.tanh if "saved" in name else lambda h: h
    assert compress_half(Net(lambda h: WRITTEN[name](first(h))), torch.randn(5, 6)).zigs == WIDTH


def limit(net):
    with torch.no_grad():
        net.a.weight.clamp_(-0.1, 0.1)


def limit_in_training(net):
    if net.training:
        limit(net)


def renormed(net):
    net.a.weight.data = torch.renorm(net.a.weight.data, 2, 0, 0.5)
    net.b.weight.data = torch.renorm(net.b.weight.data, 1, 0, 0.2)


def halved(net):
    net.a.weight.data.mul_(0.5)


def copied(net):
    with torch.no_grad():
        net.a.weight.copy_(torch.renorm(net.a.weight, 2, 0, 0.5))


LIMITS = [limit, limit_in_training, renormed, copied]


@pytest.mark.parametrize("change", LIMITS)
def test_weights_that_forward_limits(change):
    """As the constraints of EEGNet do."""
    assert compress_half(Net(change, of_layers=True), torch.randn(5, 6)).zigs == WIDTH


@pytest.mark.parametrize("change", [*LIMITS, halved])
def test_the_model_is_left_as_it_was(change):
    net, x = Net(change, of_layers=True).double(), torch.randn(5, 6, dtype=torch.float64)
    before = {name: (one.data_ptr(), one.tolist()) for name, one in net.state_dict().items()}

    def as_it_was(module):
        return {name: (one.data_ptr(), one.tolist()) for name, one in module.state_dict().items()} == before

    gm = fx_oto.prepare(net, x)
    assert as_it_was(net)
    fx_oto.partition(gm).zero_(0.5)
    before = {name: (one.data_ptr(), one.tolist()) for name, one in net.state_dict().items()}
    small = fx_oto.compress(gm, into=net)
    assert as_it_was(net)
    before = {name: (one.data_ptr(), one.tolist()) for name, one in small.state_dict().items()}
    fx_oto.cost(small, x)
    assert as_it_was(small)


def added_under_another_name(name_of):
    def code(h):
        other = name_of(h)
        other += h.mean()
        return h

    return code


def view_without_gradient(h):
    with torch.no_grad():
        return h.view(h.shape)


SAME = {
    "contiguous": lambda h: h.contiguous(),
    "to": lambda h: h.to(h.dtype),
    "float": lambda h: h.double(),
    "dropout": lambda h: nn.functional.dropout(h, training=False),
    "broadcast": lambda h: torch.broadcast_tensors(h, h)[0],
    "slice": lambda h: h[:],
    "detached": lambda h: h.detach(),
    "data": lambda h: h.data,
}


@pytest.mark.parametrize("name", SAME)
def test_what_is_changed_under_another_name_is_followed(name):
    """What is removed is not zero any more."""
    assert compress_half(Net(added_under_another_name(SAME[name])), torch.randn(5, 6)).zigs == WIDTH


def test_what_is_changed_through_a_view_without_gradient_is_followed():
    net, x = Net(added_under_another_name(view_without_gradient)).double().eval(), torch.randn(5, 6).double()
    with torch.no_grad():
        gm = fx_oto.prepare(net, x)
        assert fx_oto.partition(gm).zero_(0.5).num_zigs == WIDTH
        small = fx_oto.compress(gm)
        for other in (x, torch.randn(3, 6).double()):
            torch.testing.assert_close(small(other), net(other), rtol=1e-10, atol=1e-12)


def test_what_stays_zero_under_another_name_goes():
    def code(h):
        with torch.no_grad():
            h.contiguous().mul_(2.0)
        return h

    assert compress_half(Net(code), torch.randn(5, 6)).zigs == WIDTH
