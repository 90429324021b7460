"""What is only looked at stays as it was: example inputs and buffers that a model writes into."""

import pytest
import torch
from torch import nn

import fx_oto


class Asks(nn.Module):
    """Its code asks for a value, so it is called as a whole and run on the inputs themselves."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return self.inner(x) * int((x > 0).sum().item())


class Writes(nn.Module):
    """Writes into its input and into a buffer, in evaluation as well."""

    def __init__(self):
        super().__init__()
        self.first, self.asks, self.last = nn.Linear(4, 8), Asks(), nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        x.mul_(2)
        self.calls.add_(1)
        return self.last(self.asks(self.first(x)))


@pytest.mark.parametrize(
    "look",
    [fx_oto.prepare, fx_oto.cost, lambda model, x: fx_oto.latency(model, x, rounds=2)],
    ids=["prepare", "cost", "latency"],
)
def test_a_model_that_writes_is_left_as_it_was(look):
    model, x = Writes(), torch.randn(3, 4)
    before = x.clone()
    look(model, x)
    assert torch.equal(x, before)
    assert model.calls == 0


def test_example_inputs_may_come_from_inference_mode():
    model = Writes()
    with torch.inference_mode(), fx_oto.temporary_rules():
        fx_oto.register_leaf(Asks, fx_oto.kinds.contraction("...i,oi,+o->...o"))
        gm = fx_oto.prepare(model, torch.randn(3, 4))
    assert fx_oto.partition(gm).num_zigs == 16


class NotInstalled:
    """What packages put in the place of an optional one: whoever looks at it gets an error."""

    def __getattr__(self, name):
        raise ImportError("an optional package is not installed")


def test_what_the_code_does_not_look_at_nobody_does():
    """In the class, among the global names of its methods, and in a module."""
    names = {"nn": nn, "package": NotInstalled()}
    exec(
        "class Beside(nn.Linear):\n"
        "    held = package\n"
        "    def forward(self, x):\n"
        "        return super(Beside, self).forward(x) if package is self.held else x\n",
        names,
    )
    model, x = nn.Sequential(names["Beside"](4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    model[1].held = names["package"]
    gm = fx_oto.prepare(model, x)
    fx_oto.partition(gm).zero_(0.5)
    torch.testing.assert_close(fx_oto.compress(gm)(x), model(x))
