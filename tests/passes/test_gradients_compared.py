"""``compress`` compares gradients as well: a compact model must learn as the full one would."""

from __future__ import annotations

import pytest
import torch
from support.exactness import randomise
from torch import nn

import fx_oto
from fx_oto.core.gradients import perturbed
from fx_oto.core.preserve import Dice
from fx_oto.passes import PhysicalSlicing, Verification

IMAGE = torch.randn(2, 3, 9, 9)


class Net(nn.Module):
    """A residual branch, a norm over channels, and a gate whose removed channels are worth ½."""

    def __init__(self, *between):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.branch, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(1, 8)
        self.gate, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 4)
        self.between = nn.Sequential(*between)

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        x = self.norm(x + self.branch(x))
        x = self.between(self.gate(x).sigmoid()).mean((2, 3))
        return self.head(x), x.sum()


def pruned(net, dtype=torch.float32):
    """The model, its graph, half of whose ZIGs are zero, and the compact one, not verified yet."""
    net = randomise(net.to(dtype))
    gm = fx_oto.prepare(net, IMAGE.to(dtype))
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    return net, gm, PhysicalSlicing()(gm).graph_module


def compared(small):
    return fx_oto.Context.of(small).get(fx_oto.VerificationReport).gradients


def after(gm, name, function):
    """Put a call behind a node, whose value it returns in another way."""
    node = next(node for node in gm.graph.nodes if node.name == name)
    with gm.graph.inserting_after(node):
        call = gm.graph.call_function(function, (node,))
    node.replace_all_uses_with(call)
    call.args = (node,)
    gm.recompile()


class Doubled(torch.autograd.Function):
    """Returns what it is given, and doubles the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def doubled(x):
    return Doubled.apply(x)


# What the gate reads learns less as well, and the largest differences are named.
BEFORE = {f"{layer}.{part}" for layer in ("stem", "bn", "branch", "norm", "gate") for part in ("weight", "bias")}
BROKEN = {
    "a branch that is detached": ("branch", torch.detach, {"branch.weight", "branch.bias"}),
    "a gradient that is doubled": ("stem", doubled, {"stem.weight"}),
    "half of it detached": ("gate", lambda x: torch.cat([x[:, :1], x[:, 1:].detach()], 1), BEFORE),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BROKEN)
def test_what_outputs_do_not_show_is_found(name, dtype):
    place, function, wrong = BROKEN[name]
    net, gm, small = pruned(Net(), dtype)
    assert compared(Verification(gm)(small).graph_module) == len(list(net.parameters()))
    after(small, place, function)
    torch.testing.assert_close(small.eval()(IMAGE.to(dtype)), net.eval()(IMAGE.to(dtype)))
    with pytest.raises(fx_oto.VerificationError, match="would not learn what it does: in training mode") as found:
        Verification(gm)(small)
    assert any(repr(one) in str(found.value) for one in wrong)
    assert "'head." not in str(found.value)


def test_where_training_is_random_evaluation_is_compared():
    net, gm, small = pruned(Net(nn.Dropout(0.5)))
    assert compared(Verification(gm)(small).graph_module) == len(list(net.parameters()))
    after(small, "branch", torch.detach)
    with pytest.raises(fx_oto.VerificationError, match=r"in evaluation mode the gradients of .*'branch.weight'"):
        Verification(gm)(small)


class Fails(nn.Module):
    def forward(self, x):
        if self.training:
            raise RuntimeError("targets are missing")
        return x


def test_where_training_fails_evaluation_is_compared():
    net = randomise(Net(Fails()))
    with pytest.warns(fx_oto.FxOtoWarning, match="captured in evaluation mode"):
        gm = fx_oto.prepare(net, IMAGE)
    fx_oto.partition(gm).zero_(0.5)
    assert compared(fx_oto.compress(gm)) == len(list(net.parameters()))


@pytest.mark.parametrize("trained", [0, 2])
def test_what_is_not_trained_has_no_gradient_to_compare(trained):
    net, gm, _ = pruned(Net())
    for parameter in list(net.parameters())[trained:]:
        parameter.requires_grad_(False)
    assert compared(fx_oto.compress(gm)) == trained


def test_in_half_precision_outputs_alone_are_compared():
    _, gm, _ = pruned(Net(), torch.bfloat16)
    assert compared(fx_oto.compress(gm)) == 0


def test_rounding_that_training_amplifies_is_no_error():
    """Over two values a batch norm returns 1 and -1: gradients in front of it are 0, but for rounding."""
    layers = [part for width in (24, 24, 24, 24) for part in (nn.LazyLinear(width), nn.BatchNorm1d(width), nn.ReLU())]
    net = nn.Sequential(*layers, nn.LazyLinear(3))
    x = torch.randn(2, 6)
    net(x)
    gm = fx_oto.prepare(net, x)
    fx_oto.partition(gm).zero_(0.5)
    before = [parameter._version for parameter in net.parameters()]
    small = fx_oto.compress(gm)
    assert compared(small) == len(list(net.parameters()))
    assert [parameter._version for parameter in net.parameters()] == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_rounding_is_found_in_numbers_of_any_type(dtype):
    net = nn.ParameterDict({"turn": nn.Parameter(torch.randn(6, dtype=dtype))})
    apart = (perturbed(net)["turn"] - net["turn"]).abs() / net["turn"].abs()
    assert 0 < apart.max() < 1e-4


def test_the_model_is_left_bit_for_bit_with_its_gradients_and_hooks():
    net, gm, _ = pruned(Net())
    net.train()
    sum(output.sum() for output in net(IMAGE)).backward()
    called = []
    handles = [p.register_hook(lambda gradient: called.append(1)) for p in net.parameters()]
    handles += [p.register_post_accumulate_grad_hook(lambda p: called.append(2)) for p in net.parameters()]
    handles.append(net.branch.register_full_backward_hook(lambda *_: called.append(3)))
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    gradients = [(p.grad, p.grad.clone()) for p in net.parameters()]
    versions = [tensor._version for tensor in (*net.parameters(), *net.buffers())]
    dice = Dice()
    assert compared(fx_oto.compress(gm)) == len(gradients)
    assert not dice.rolled()
    assert not called
    assert net.training
    assert versions == [tensor._version for tensor in (*net.parameters(), *net.buffers())]
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    for parameter, (gradient, content) in zip(net.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, content)
    sum(output.sum() for output in net(IMAGE)).backward()
    assert sorted(set(called)) == [1, 2, 3]
    for handle in handles:
        handle.remove()
    called.clear()
    sum(output.sum() for output in net(IMAGE)).backward()
    assert not called


def test_a_sparse_gradient_and_one_of_a_shared_weight():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.out = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
            self.out.weight = self.embed.weight
            self.other = nn.Embedding(5, 8, sparse=True)

        def forward(self, tokens):
            return self.out(self.mix(self.embed(tokens) + self.other(tokens % 5)).relu())

    net = randomise(Tied())
    gm = fx_oto.prepare(net, torch.arange(10).view(2, 5))
    fx_oto.partition(gm).zero_(0.5)
    assert compared(fx_oto.compress(gm)) == 4


def narrower_with_gradients(x):
    return x[:, :1] if torch.is_grad_enabled() else x


def test_outputs_of_other_sizes_in_training_alone():
    _, gm, small = pruned(Net())
    after(small, "head", narrower_with_gradients)
    with pytest.raises(fx_oto.VerificationError, match=r"in training mode .* sizes \[\(2, 1\), \(\)\] in the place of"):
        Verification(gm)(small)
