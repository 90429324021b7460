"""Writes in place through views, and objects that hide tensors."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto
from fx_oto.modes import IN_PLACE
from passes.verification import relative_error


class Written(nn.Module):
    """Adds in place to a view; ``again`` also reads what it is a view of."""

    def __init__(self, again):
        super().__init__()
        self.a, self.b, self.c, self.again = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 4), again

    def forward(self, x):
        base = self.a(x)
        view = base.view(base.size(0), 16)
        view += self.b(x)
        if self.again:
            view.cos_()  # no longer zero where it was
        return self.c(view * base if self.again else F.relu(view))


def test_a_write_through_a_view_freezes_nothing_if_its_base_is_not_read_again():
    result = compress_half(Written(again=False), torch.randn(2, 6))
    assert result.zigs == 16
    assert result.params_left < 0.55


def test_what_is_read_after_a_write_through_a_view_is_kept_whole():
    result = fx_oto.prepare(Written(again=True), torch.randn(2, 6))
    reasons = {str(axis.reason.why) for axis in fx_oto.partition(result).frozen}
    assert "it was written in place through a view before it is read here" in reasons


class Hidden:
    def __init__(self, tensor):
        self.tensor = tensor


def hide(tensor):
    nn.init.uniform_(torch.zeros(1))  # draws numbers, and so is not traced through
    return Hidden(tensor)


torch.fx.wrap("hide")


class Hiding(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x):
        hidden = self.a(x)
        return self.b(F.relu(hidden)), hide(hidden)


def test_what_goes_into_an_object_is_kept_whole():
    gm = fx_oto.prepare(Hiding(), torch.randn(2, 6))
    assert fx_oto.partition(gm).num_zigs == 0
    reasons = [str(axis.reason) for axis in fx_oto.partition(gm).frozen if axis.tensor == "a.weight"]
    assert any("it goes into an object of class Hidden, which is opaque" in reason for reason in reasons)


def test_tensors_inside_objects_are_compared():
    x = torch.ones(3)
    assert relative_error((x, Hidden([x])), (x, Hidden([x]))) == 0
    assert relative_error((x, Hidden([x])), (x, Hidden([2 * x]))) == 1


class InPlace(nn.Module):
    """Python's operators write into tensors, which other names then see."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.a(x)
        other = x
        x += 1
        x *= other
        x[:, 2:4] = 3
        if self.training:
            x -= 2
            x[:, 0] = 5
        return self.b(other)


@pytest.mark.parametrize("training", [True, False])
def test_operators_that_write_in_place_do_so_in_the_graph(training):
    model, x = InPlace().train(training), torch.randn(2, 6)
    gm = fx_oto.trace(model, x)
    assert fx_oto.Context.of(gm).capture.front_end == "torch.fx"
    torch.testing.assert_close(gm(x), model(x))
    gm = fx_oto.prepare(model, x)
    assert fx_oto.partition(gm).num_zigs == 0


def test_every_operator_in_place_is_known():
    assert set(IN_PLACE) == {
        name for name in dir(operator) if name[0] == "i" and hasattr(torch.Tensor, f"__{name}__")
    } - {
        "ilshift",
        "irshift",
        "index",
        "invert",
        "inv",
    }
