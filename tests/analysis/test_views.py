"""Writes in place through views, and objects that hide tensors."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto
from fx_oto.core.differences import relative_error
from fx_oto.nn.modes import IN_PLACE


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


def test_what_is_read_after_a_write_through_a_view_is_what_was_written():
    assert compress_half(Written(again=True), torch.randn(2, 6)).zigs == 16


class WrittenGrid(nn.Module):
    """Adds in place to a grid of units, and reads what it is a view of."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.a(x)
        x.view(-1, 4, 4)[:, 1].cos_()
        return self.b(x)


def test_what_is_read_after_a_write_into_a_grid_is_kept_whole():
    result = fx_oto.prepare(WrittenGrid(), torch.randn(2, 6))
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
    assert fx_oto.Context.of(gm).capture.front_end == "fx_oto"
    torch.testing.assert_close(gm(x), model(x))
    gm = fx_oto.prepare(model, x)
    assert fx_oto.partition(gm).zero_(0.5).num_zigs == 15  # one is written
    with torch.no_grad():
        small, other = fx_oto.compress(gm).train(training), torch.randn(5, 6)
        torch.testing.assert_close(small(other), model(other))


class WrittenInTraining(nn.Module):
    """Writes through an alias in training; evaluation reads what it is an alias of."""

    def __init__(self, alias, write):
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(6, 16), nn.Linear(16, 4), nn.AlphaDropout(0.5)
        self.alias, self.write, self.asks = alias, write, False

    def forward(self, x):
        assert not self.asks or "Proxy" not in type(x).__name__  # only torch.export answers this
        x = self.a(x)
        if self.training:
            alias = self.alias(self, x)
            self.write(alias)
            return self.b(F.relu(x)) + alias.sum()
        return self.b(x)


ALIASES = {
    "adjoint": lambda model, x: x.adjoint(),
    "hsplit": lambda model, x: torch.hsplit(x, 2)[0],
    "atleast_3d": lambda model, x: torch.atleast_3d(x),
    "cpu": lambda model, x: x.cpu(),
    "dropout of a function": lambda model, x: F.dropout(x, 0.5, False),
    "dropout of a module": lambda model, x: model.drop(x),
    "reshape that copies here": lambda model, x: x.mT.reshape(-1),
}


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("alias", ALIASES.values(), ids=ALIASES)
def test_what_training_writes_through_any_alias_does_not_reach_evaluation(alias, asks):
    model = WrittenInTraining(alias, lambda value: value.add_(1))
    model.asks = asks
    gm, x = fx_oto.trace(model, torch.randn(2, 6)), torch.randn(1, 6)
    assert fx_oto.Context.of(gm).capture.front_end == "fx_oto"
    torch.testing.assert_close(gm.eval()(x), model.eval()(x))
    torch.manual_seed(0)
    expected = model.train()(x)
    torch.manual_seed(0)
    torch.testing.assert_close(gm.train()(x), expected)


@pytest.mark.parametrize("write", [lambda x: torch.sin(x, out=x), lambda x: torch._foreach_add_([x], 1)])
def test_a_write_in_training_that_no_name_tells_is_refused(write):
    with pytest.raises(fx_oto.TraceError, match=r"test_views\.py:\d+: code that runs in one training mode only"):
        fx_oto.trace(WrittenInTraining(lambda model, x: x.detach(), write), torch.randn(2, 6))


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


class Writing(nn.Module):
    """Writes before it reads: ``write`` is given the model and what two layers return."""

    def __init__(self, write):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.scale, self.write = nn.Parameter(torch.randn(16)), write

    def forward(self, x):
        x = self.a(x)
        y = self.b(x)
        self.write(self, x, y)
        return self.c(F.relu(y) * self.scale + self.scale)


WRITES = {
    "a parameter": lambda model, x, y: model.scale.data.copy_(x.detach().mean(0).cos()),
    "a view of a parameter": lambda model, x, y: model.scale.data.view(-1).copy_(x.detach().mean(0).cos()),
    "a list of tensors": lambda model, x, y: torch._foreach_cos_([y]),
}


@pytest.mark.filterwarnings("ignore:no rule is known for the op _foreach_cos_:fx_oto.FxOtoWarning")
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_is_written_before_it_is_read_is_kept_whole(write):
    with torch.no_grad():
        zigs = fx_oto.partition(fx_oto.prepare(Writing(write).eval(), torch.randn(2, 6)))
    reasons = {(axis.tensor, axis.dim): axis.reason.why for axis in zigs.frozen}
    expected = (
        "it was written in place through a view before it is read here",
        "no rule is known for the op _foreach_cos_",
    )
    assert reasons["scale", 0] in expected
    assert reasons["b.weight", 0] in expected


@pytest.mark.parametrize("function", [torch.cos, torch.sin])
def test_what_an_out_argument_names_is_written(function):
    """Also if nobody reads what the function returns."""
    model, x = Writing(lambda model, x, y: function(x, out=y[:])).double().eval(), torch.randn(2, 6).double()
    with torch.no_grad():
        gm = fx_oto.prepare(model, x)
        assert fx_oto.partition(gm).zero_(0.5).num_zigs == 16
        small = fx_oto.compress(gm)
        for other in (x, torch.randn(5, 6).double()):
            torch.testing.assert_close(small(other), model(other), rtol=1e-10, atol=1e-12)
