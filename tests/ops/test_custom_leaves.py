"""Modules of the user's that no trace sees into: called as a whole, sliced, their attributes following."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half, randomise
from torch import nn

import fx_oto
from fx_oto import kinds
from fx_oto.core.masks import is_mask

TOKENS = torch.randn(2, 5, 12)
IMAGE = torch.randn(2, 3, 8, 8)


class DoubledLinear(torch.autograd.Function):
    """A kernel with a gradient of its own."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return 2 * F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return 2 * grad @ weight, 2 * grad.flatten(0, -2).T @ x.flatten(0, -2), 2 * grad.flatten(0, -2).sum(0)


class Doubled(nn.Module):
    """Asks for values, so that it cannot be captured."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.inputs, self.outputs, self.shape = inputs, outputs, (outputs, inputs)
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        if x.size(-1) != self.inputs:
            raise ValueError(f"expected {self.inputs} channels")
        if x.detach().abs().max().item() > 1e6:
            return x.new_zeros(*x.shape[:-1], len(self.weight))
        return DoubledLinear.apply(x, self.weight, self.bias)


class ChannelNorm(nn.Module):
    """By running statistics, which training writes; branches on values."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.gain, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        if self.training and float(x.detach().var()) > 0:
            self.running_mean.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        scaled = (x - self.running_mean.view(-1, 1, 1)) * (self.running_var + 1e-5).rsqrt().view(-1, 1, 1)
        return scaled * self.gain.view(-1, 1, 1) + self.shift.view(-1, 1, 1)


class Clipped(nn.Module):
    """No parameters; a bound that depends on the data."""

    def forward(self, x):
        return x.clamp(-abs(float(x.detach().max())) - 9, 100.0)


def doubled_network():
    return nn.Sequential(nn.Linear(12, 16), Doubled(16, 10), nn.ReLU(), nn.Linear(10, 4))


def register_doubled():
    attributes = {"inputs": ("weight", 1), "outputs": ("weight", 0), "shape": lambda m: tuple(m.weight.shape)}
    fx_oto.register_leaf(Doubled, kinds.contraction("...i,oi,+o->...o"), attributes=attributes)


def test_a_linear_layer_that_cannot_be_traced_is_sliced_and_its_attributes_follow():
    register_doubled()
    result = compress_half(doubled_network(), TOKENS)
    leaf = result.small.get_submodule("1")
    assert type(leaf) is Doubled
    assert (leaf.inputs, leaf.outputs, leaf.shape) == (8, 5, (5, 8))
    assert leaf.weight.shape == (5, 8)
    assert fx_oto.partition(result.gm).num_zigs == 26
    original = result.gm.get_submodule("1")
    assert (original.inputs, original.weight.shape) == (16, (10, 16))
    assert sum(node.op == "call_module" and not is_mask(node) for node in result.gm.graph.nodes) == 4


def test_without_a_rule_it_is_kept_whole():
    gm = fx_oto.prepare(doubled_network(), TOKENS)
    assert fx_oto.partition(gm).num_zigs == 0
    assert "it enters code that could not be captured" in str(fx_oto.partition(gm))


def test_its_masks_act_on_its_output():
    register_doubled()
    gm = fx_oto.prepare(randomise(doubled_network().double()).eval(), TOKENS.double())
    before = gm(TOKENS.double())
    family = next(i for i, f in enumerate(fx_oto.partition(gm).families) if f.matches("1.weight"))
    zigs = torch.tensor([0, 3, 4])
    fx_oto.partition(gm).mask_(family, zigs)
    hidden = gm.get_submodule("1")(gm.get_submodule("0")(TOKENS.double()))
    hidden[..., zigs] = 0
    torch.testing.assert_close(gm(TOKENS.double()), gm.get_submodule("3")(hidden.relu()))
    assert not torch.allclose(before, gm(TOKENS.double()))


def test_a_norm_with_parameters_for_each_channel():
    fx_oto.register_leaf(ChannelNorm, kinds.elementwise("bc...,c,c,c,c->bc..."), attributes={"channels": ("gain", 0)})
    model = nn.Sequential(nn.Conv2d(3, 8, 3), ChannelNorm(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gm = fx_oto.prepare(model, IMAGE)
    # the running mean of a removed channel is not known, so neither is what it is worth
    assert fx_oto.partition(gm).num_zigs == 0
    arguments = lambda x, gain, shift, running_mean, running_var: (  # noqa: E731
        x, gain, shift, running_mean, running_var, False, 0.1, 1e-5)  # fmt: skip
    rule = kinds.like(torch.ops.aten.native_batch_norm.default, arguments)
    fx_oto.register_leaf(ChannelNorm, rule, attributes={"channels": ("gain", 0)}, replace=True)
    result = compress_half(model, IMAGE)
    norm = result.small.get_submodule("1")
    assert (norm.channels, norm.running_mean.shape, norm.shift.shape) == (4, (4,), (4,))


def test_an_elementwise_module_without_parameters():
    fx_oto.register_leaf(Clipped, kinds.elementwise())
    model = nn.Sequential(nn.Linear(12, 8), Clipped(), nn.Linear(8, 4))
    assert fx_oto.partition(compress_half(model, TOKENS).gm).num_zigs == 8


def test_modules_that_move_elements_keep_what_they_cannot_lose():
    class Flipped(nn.Module):
        def forward(self, x):
            return x.flip(-1) if float(x.detach().sum()) < 1e9 else x

    class Halves(nn.Module):
        def forward(self, x):
            return torch.cat([x[..., 4:], x[..., :4]], -1) if float(x.detach().sum()) < 1e9 else x

    for kind, zigs in ((Flipped, 8), (Halves, 0)):
        fx_oto.register_leaf(kind, kinds.movement(lambda x, kind=kind: kind()(x)))
        model = nn.Sequential(nn.Linear(12, 8), kind(), nn.Linear(8, 4))
        assert fx_oto.partition(fx_oto.prepare(model, TOKENS)).num_zigs == zigs
        if zigs:
            compress_half(model, TOKENS)


def test_groups_inside_cannot_be_rewritten():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 2, 3, 3))

        def forward(self, x):
            return F.conv2d(x, self.weight, groups=4) if float(x.detach().sum()) < 1e9 else x

    arguments = lambda x, weight: (x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 4)  # noqa: E731
    fx_oto.register_leaf(Grouped, kinds.like(torch.ops.aten.convolution.default, arguments))
    gm = fx_oto.prepare(nn.Sequential(nn.Conv2d(3, 8, 3), Grouped(), nn.Conv2d(8, 4, 3)), IMAGE)
    assert fx_oto.partition(gm).num_zigs == 0
    assert "number of groups that slicing cannot rewrite" in str(fx_oto.partition(gm))


def test_one_that_is_shared_is_called_twice():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.shared = nn.Linear(12, 16), nn.Linear(10, 4), Doubled(16, 10)

        def forward(self, x):
            x = self.a(x)
            return self.b(self.shared(x).relu() + self.shared(-x))

    register_doubled()
    result = compress_half(Net(), TOKENS)
    assert result.small.shared.shape == (5, 8)


def test_a_second_round_a_copy_and_a_pickle():
    register_doubled()
    first = compress_half(doubled_network(), TOKENS).small
    again = fx_oto.prepare(first, TOKENS.double())
    fx_oto.partition(again).zero_(0.4, torch.Generator().manual_seed(0))
    second = fx_oto.compress(again)
    assert second.get_submodule("1").shape == (3, 5)
    expected = second(TOKENS.double())
    for other in (copy.deepcopy(second), pickle.loads(pickle.dumps(second))):
        torch.testing.assert_close(other(TOKENS.double()), expected)


def test_inputs_by_name_and_modules_inside():
    class Mixed(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.inner = nn.Linear(width, width, bias=False)

        def forward(self, x, *, shift=None, factor=1.0):
            scaled = self.inner(x) * (factor if float(x.detach().sum()) < 1e9 else 1.0)
            return scaled if shift is None else scaled + shift

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.mixed, self.b = nn.Linear(12, 8), Mixed(8), nn.Linear(8, 4)

        def forward(self, x):
            x = self.a(x)
            return self.b(self.mixed(x, shift=x, factor=0.5))

    rule = kinds.contraction("...i,oi,+...o->...o", of=("x", "inner.weight", "shift"))
    sizes = {"inner.in_features": ("inner.weight", 1), "inner.out_features": ("inner.weight", 0)}
    fx_oto.register_leaf(Mixed, rule, attributes=sizes)
    result = compress_half(Net(), TOKENS)
    assert fx_oto.partition(result.gm).num_zigs == 8
    assert (result.small.mixed.inner.in_features, result.small.mixed.inner.out_features) == (4, 4)


def test_multiply_adds_are_those_that_torch_counts_inside():
    register_doubled()
    result = compress_half(doubled_network(), TOKENS)
    price = fx_oto.partition(result.gm).macs
    assert price.total == 10 * (12 * 16 + 16 * 10 + 10 * 4)
    halves = torch.tensor([len(family) // 2 for family in fx_oto.partition(result.gm).families])
    assert price.left(halves) == 10 * (12 * 8 + 8 * 5 + 5 * 4)
    assert fx_oto.cost(result.gm, TOKENS.double()).macs == price.total
    assert fx_oto.cost(result.small, TOKENS.double()).macs == price.left(halves)


def test_what_writes_into_its_input_is_refused():
    class Writes(nn.Module):
        def forward(self, x):
            return x.mul_(2)

    class WritesIfLarge(Writes):
        def forward(self, x):
            return super().forward(x) if float(x.detach().abs().max()) > 0 else x

    fx_oto.register_leaf(Writes, kinds.elementwise())
    fx_oto.register_leaf(WritesIfLarge, kinds.elementwise())
    with pytest.raises(fx_oto.RuleError, match=r"WritesIfLarge is registered as a leaf, but .* it writes into"):
        fx_oto.prepare(nn.Sequential(nn.Linear(12, 8), WritesIfLarge(), nn.Linear(8, 4)), TOKENS)
    with pytest.raises(
        fx_oto.RuleError, match=r"Writes is registered as a leaf, but .* it writes into what it is given"
    ):
        fx_oto.prepare(nn.Sequential(nn.Linear(12, 8), Writes(), nn.Linear(8, 4)), TOKENS)


def test_tensors_in_a_list_that_a_rule_does_not_speak_of_are_kept_whole():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(8, 8) + 1)

        def forward(self, x, others):
            return x @ self.weight.T + others[0].sum(-1, keepdim=True) if float(x.abs().max()) >= 0 else x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.skips, self.c = nn.Linear(4, 8), nn.Linear(4, 6), Skips(), nn.Linear(8, 2)

        def forward(self, x):
            return self.c(self.skips(self.a(x), [self.b(x).exp()]))

    fx_oto.register_leaf(Skips, kinds.elementwise("...c,c->...c"))
    with pytest.raises(fx_oto.RuleError, match="Skips is given tensors in a container"):
        fx_oto.prepare(Net(), torch.randn(3, 4))
    fx_oto.register_leaf(Skips, kinds.contraction("...i,oi->...o", of=("x", "weight")), replace=True)
    zigs = fx_oto.partition(fx_oto.prepare(Net(), torch.randn(3, 4)))
    reasons = {axis.tensor: str(axis.reason) for axis in zigs.frozen if axis.dim == 0}
    assert "the rule of Skips does not say what one of its arguments is for" in reasons["b.weight"]
