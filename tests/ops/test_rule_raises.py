"""An exception inside a rule of the library: what the call touches stays whole, with a reason, and the rest goes."""

import copy

import pytest
import torch
from support.exactness import randomise
from torch import nn

import fx_oto
from fx_oto.ops import table


class Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 8), nn.Linear(8, 10), nn.Linear(10, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.d(self.c(torch.erf(self.b(self.a(x).relu()))).relu())


@pytest.mark.parametrize(
    "error", [IndexError("tuple index out of range"), RuntimeError("two\nlines"), AssertionError()]
)
def test_what_the_call_touches_stays_and_the_rest_goes(monkeypatch, error):
    found = table.rule_for

    def failing(op):
        def rule(call, p):
            raise error

        return rule if "erf" in str(op) else found(op)

    monkeypatch.setattr("fx_oto.passes.dependency_analysis.rule_for", failing)
    model = randomise(Three().double()).eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    gm = fx_oto.prepare(model, x)
    partition = fx_oto.partition(gm)
    assert [len(family) for family in partition.families] == [8, 6]
    kept = [axis.reason for axis in partition.frozen if axis.tensor == "b.weight"]
    said = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    assert [reason.why for reason in kept] == [f"the rule of the op erf failed on it ({said})"]
    assert kept[0].op == "erf"
    assert "test_rule_raises.py" in kept[0].source
    partition.zero_(0.5, generator=torch.Generator().manual_seed(0))
    sparse = copy.deepcopy(model)
    sparse.load_state_dict({name: value for name, value in gm.state_dict().items() if name in model.state_dict()})
    torch.testing.assert_close(fx_oto.compress(gm)(x), sparse(x), rtol=1e-10, atol=1e-10)


class Emptied(torch.autograd.Function):
    """Frees its halves, as reversible blocks do."""

    @staticmethod
    def forward(ctx, x, f):
        with torch.no_grad():
            a, b = (half.contiguous() for half in torch.chunk(x, 2, 1))
            y = torch.cat((a + f(b), b), 1)
            a.set_()
            b.set_()
        return y

    @staticmethod
    def backward(ctx, g):
        return g, None


class Reversible(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return Emptied.apply(x, self.f)


@pytest.mark.filterwarnings("ignore:no rule is known for the op set_")
def test_a_function_that_empties_tensors():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Reversible(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    partition = fx_oto.partition(fx_oto.prepare(model, torch.randn(2, 3, 12, 12)))
    assert partition.num_zigs == 8
