"""Gradients that code makes itself: functions with a backward of their own, hooks on tensors, checkpointing."""

from __future__ import annotations

import copy
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half, randomise
from support.kinds import holds, tokens_around
from support.seen import apart, see
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fx_oto
from fx_oto.core.context import ExampleInputs

EXAMPLE, OTHERS = torch.randn(2, 5, 4), [torch.randn(3, 9, 4)]


class Straight(torch.autograd.Function):
    """Straight-through rounding, whose gradient is doubled so that nothing else has it."""

    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class SetUp(torch.autograd.Function):
    """With ``setup_context``, a saved tensor and a number."""

    @staticmethod
    def forward(x, times):
        return x * times

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.times = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.sign() * (ctx.times + 1), None


class Reversed(torch.autograd.Function):
    """The gradient reversed, with arguments that are no tensors."""

    @staticmethod
    def forward(ctx, x, strength, options, name="reversed"):
        ctx.strength, ctx.options, ctx.name = strength, options, name
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return (-ctx.strength * grad if ctx.options["on"] else grad), None, None, None


class Two(torch.autograd.Function):
    """Two outputs, of which each has a gradient of its own."""

    @staticmethod
    def forward(ctx, x):
        return x * 2, x.abs()

    @staticmethod
    def backward(ctx, first, second):
        return 5 * first - second


class Counted(torch.autograd.Function):
    """A second output that has no gradient."""

    @staticmethod
    def forward(ctx, x):
        large = x > 0.5
        ctx.mark_non_differentiable(large)
        ctx.save_for_backward(large)
        return x.clone(), large

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        return torch.where(ctx.saved_tensors[0], 3 * grad, grad)


class Scaled(torch.autograd.Function):
    """A parameter goes in, and asks whether it needs a gradient."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        return 2 * grad * scale, (3 * grad * x).sum().view(1) if ctx.needs_input_grad[1] else None


class InPlace(torch.autograd.Function):
    """Writes into what it is given."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(3)

    @staticmethod
    def backward(ctx, grad):
        return grad


class Nested(torch.autograd.Function):
    """Computes its gradient by autograd itself, inside of it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            (found,) = torch.autograd.grad(torch.sigmoid(x), x, grad)
        return found


class Inheriting(Straight):
    """Another backward for the forward of its base."""

    @staticmethod
    def backward(ctx, grad):
        return 7 * grad


class InheritingSetUp(SetUp):
    """The same with ``setup_context``."""

    @staticmethod
    def backward(ctx, grad):
        return 11 * grad, None


class Calling(Straight):
    """Calls the forward of its base."""

    @staticmethod
    def forward(ctx, x):
        return Straight.forward(ctx, 2 * x) + 1

    @staticmethod
    def backward(ctx, grad):
        return 13 * grad


class CallingSetUp(SetUp):
    """The same with ``setup_context``, as a mean, which becomes part of the graph: its backward is the derivative."""

    @staticmethod
    def forward(x, times):
        return SetUp.forward(x, times).mean(-1, keepdim=True)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return (grad * ctx.times / x.shape[-1]).expand_as(x), None


class Remembering(nn.Module):
    """Has the function as an attribute, and in a table."""

    apply_it = staticmethod(Straight.apply)

    def __init__(self, how):
        super().__init__()
        self.how, self.own = how, Straight.apply
        self.table = {"round": Straight.apply}

    def forward(self, x):
        if self.how == "class attribute":
            return self.apply_it(x)
        return self.own(x) if self.how == "attribute" else self.table["round"](x)


straight = Straight.apply
reverse = partial(lambda strength, x: Reversed.apply(x, strength, {"on": True}), 0.7)


def quantised(x, bits=2):
    """A helper, as libraries have them."""
    return straight(x * bits) / bits


FUNCTIONS = {
    "by the class": lambda h, x: Straight.apply(h),
    "by an alias": lambda h, x: straight(h),
    "by a local alias": lambda h, x: (getattr(Straight, "apply"))(h),  # noqa: B009
    "by a helper": lambda h, x: quantised(h),
    "by partial": lambda h, x: reverse(h),
    "by partial of apply": lambda h, x: partial(Straight.apply, h)(),
    "mapped": lambda h, x: torch.cat(list(map(Straight.apply, h.split(6, -1))), -1),
    "twice": lambda h, x: straight(straight(h) * 3),
    "of a part": lambda h, x: torch.cat([straight(h[..., :6]), h[..., 6:]], -1),
    "with setup_context": lambda h, x: SetUp.apply(h - 0.5, 3),
    "with numbers, texts and a dictionary": lambda h, x: Reversed.apply(h, 0.25, {"on": True}, "name"),
    "with a number made of sizes": lambda h, x: Reversed.apply(h, 1 / x.shape[1], {"on": True}),
    "with setup_context and a size": lambda h, x: SetUp.apply(h, x.shape[1]),
    "two outputs": lambda h, x: sum(Two.apply(h)),
    "one of two outputs": lambda h, x: Two.apply(h)[1],
    "an output without gradient": lambda h, x: Counted.apply(h)[0] * 2,
    "with a parameter": lambda h, x, m: Scaled.apply(h, m.scale),
    "in place": lambda h, x: InPlace.apply(h * 1.0) + 1,
    "by a class that inherits forward": lambda h, x: Inheriting.apply(h) + Straight.apply(h),
    "by one that inherits forward and setup_context": lambda h, x: InheritingSetUp.apply(h, 3) + SetUp.apply(h, 2),
    "by one that calls its base's forward": lambda h, x: Calling.apply(h) + Straight.apply(h),
    "by one that calls it with setup_context": lambda h, x: h * CallingSetUp.apply(h, 3),
    "autograd inside of backward": lambda h, x: Nested.apply(h),
    "on what has no gradient": lambda h, x: h * straight(x.mean(-1, keepdim=True)),
    "on weights": lambda h, x, m: h * F.linear(x, straight(m.first.weight).mean(0, True)),
    "on a parameter": lambda h, x, m: h * straight(m.scale),
    "after detach": lambda h, x: h + (straight(h) - h).detach(),
    "under no_grad": lambda h, x: h * _without_gradient(h),
    "inside of checkpoint": lambda h, x: checkpoint(straight, h, use_reentrant=False),
    "inside of a lambda in checkpoint": lambda h, x: checkpoint(lambda y: straight(y) * 2, h, use_reentrant=False),
    "in training only": lambda h, x, m: straight(h) if m.training else h,
    "in evaluation only": lambda h, x, m: h if m.training else straight(h),
    "another in training": lambda h, x, m: reverse(h) if m.training else straight(h),
    "by a size": lambda h, x: straight(h) if x.ndim == 3 else h,
}


def _without_gradient(h):
    with torch.no_grad():
        return straight(h)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_with_a_backward_of_its_own(name):
    holds(tokens_around(FUNCTIONS[name]), EXAMPLE, OTHERS)


class Turning(torch.autograd.Function):
    """Gradient reversal, as it is written for domain adaptation."""

    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.strength * grad, None


class Spelled(Turning):
    """The same, for one size only."""

    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view(*x.shape[:-1], 16)


@pytest.mark.parametrize(("function", "zigs"), [(Turning, 24), (Spelled, 8)])
def test_a_function_that_returns_a_view_of_the_same_form(function, zigs):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(torch.relu(self.second(function.apply(self.first(x), 0.5))))

    assert holds(Net(), EXAMPLE, OTHERS).zigs == zigs


@pytest.mark.parametrize("how", ["class attribute", "attribute", "table"])
def test_a_function_that_a_module_holds(how):
    layers = [nn.Linear(4, 16), Remembering(how), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)]
    holds(nn.Sequential(*layers), EXAMPLE, OTHERS)


def test_the_graph_before_it_is_cut_has_the_gradients_as_well():
    model = randomise(tokens_around(FUNCTIONS["by an alias"]).double())
    x = EXAMPLE.double()
    gm = fx_oto.prepare(model, x)
    for training in (True, False):
        model.zero_grad()
        model.train(training)(x).sum().backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        gm.train(training)(x).sum().backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# -- hooks on tensors --------------------------------------------------------------------------------------------


def hooked(tensor, hook):
    tensor.register_hook(hook)
    return tensor


STRENGTH = {"value": 0.3}
HOOKS = {
    "if it requires a gradient": lambda h, x, m: hooked(h, lambda g: -g) if h.requires_grad else h,
    "if gradients are enabled": lambda h, x, m: hooked(h, lambda g: -g) if torch.is_grad_enabled() else h,
    "in training, if it requires a gradient": lambda h, x, m: (
        hooked(h, lambda g: 3 * g) if m.training and h.requires_grad else h
    ),
    "if it has a grad_fn": lambda h, x, m: hooked(h, lambda g: -g) if h.grad_fn is not None else h,
    "if it is no leaf": lambda h, x, m: hooked(h, lambda g: -g) if not h.is_leaf else h,
    "torch.neg": lambda h, x, m: hooked(h, torch.neg) if h.requires_grad else h,
    "of a partial": lambda h, x, m: hooked(h, partial(torch.mul, 0.5)) if h.requires_grad else h,
    "of a global number": lambda h, x, m: hooked(h, lambda g: g * STRENGTH["value"]) if h.requires_grad else h,
    "of a size": lambda h, x, m: hooked(h, lambda g, n=x.shape[1]: g / n) if h.requires_grad else h,
    "of another tensor": lambda h, x, m: hooked(h, partial(torch.mul, x.sum())) if h.requires_grad else h,
    "of a parameter": lambda h, x, m: hooked(h, lambda g: g * m.scale.detach()) if h.requires_grad else h,
    "clamping": lambda h, x, m: hooked(h, lambda g: g.clamp(-0.01, 0.01)) if h.requires_grad else h,
    "two": lambda h, x, m: hooked(hooked(h, lambda g: -g), lambda g: g + 0.1 * g) if h.requires_grad else h,
    "returning nothing": lambda h, x, m: hooked(h, lambda g: None) if h.requires_grad else h,
    "on a part": lambda h, x, m: (
        torch.cat([hooked(h[..., :6] * 1, lambda g: -g), h[..., 6:]], -1) if h.requires_grad else h
    ),
    "on the grad_fn": lambda h, x, m: _on_node(h),
}


def _on_node(h):
    if h.grad_fn is not None:
        h.grad_fn.register_prehook(lambda grads: tuple(-g for g in grads))
    return h


def kept_or_refused(model, example, others):
    """The gradients of the eager model, or a clear refusal that speaks of the hook and its line."""
    try:
        holds(model, example, others)
    except fx_oto.TraceError as refusal:
        if not re.search(r"hook.*test_gradients\.py:\d+|test_gradients\.py:\d+.*hook", str(refusal), re.DOTALL):
            raise


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_on_a_tensor(name):
    code = HOOKS[name]
    kept_or_refused(tokens_around(lambda h, x, m: code(h * 1.0, x, m)), EXAMPLE, OTHERS)


class Adversarial(nn.Module):
    """A submodule reverses the gradient by a hook."""

    def forward(self, x):
        if x.requires_grad:
            x.register_hook(lambda grad: -0.5 * grad)
        return x


def test_a_hook_that_a_submodule_sets():
    layers = [nn.Linear(4, 16), nn.Tanh(), Adversarial(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)]
    kept_or_refused(nn.Sequential(*layers), EXAMPLE, OTHERS)


def test_a_backward_hook_of_a_submodule():
    layers = [nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)]
    model = nn.Sequential(*layers)
    model[1].register_full_backward_hook(lambda module, inputs, outputs: (-3 * inputs[0],))
    model[3].register_full_backward_pre_hook(lambda module, outputs: (2 * outputs[0],))
    kept_or_refused(model, EXAMPLE, OTHERS)


# -- checkpointing -----------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """A block is computed again in the backward pass, called in different ways."""

    def __init__(self, call):
        super().__init__()
        self.a, self.out, self.call = nn.Linear(4, 16), nn.Linear(16, 3), call
        self.block = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.norm = nn.LayerNorm(16)

    def both(self, x, scale=1.0):
        return self.norm(x + self.block(x) * scale)

    def forward(self, x):
        return self.out(self.call(self, self.a(x)))


CHECKPOINTS = {
    "a module": lambda again, m, x: again(m.block, x),
    "a method": lambda again, m, x: again(m.both, x),
    "a method with a number": lambda again, m, x: again(m.both, x, 0.5),
    "a lambda": lambda again, m, x: again(lambda y: m.block(y) + y, x),
    "a partial": lambda again, m, x: again(partial(m.both, scale=0.5), x),
    "in training only": lambda again, m, x: again(m.block, x) if m.training else m.block(x),
    "twice the same": lambda again, m, x: again(m.block, again(m.block, x)),
    "layer by layer": lambda again, m, x: m.block[2](again(m.block[1], again(m.block[0], x))),
    "a layer that takes no tensor": lambda again, m, x: again(lambda y, flag: m.block(y) if flag else y, x, True),
    "nested": lambda again, m, x: again(lambda y: again(m.block, y) + y, x),
    "two outputs": lambda again, m, x: sum(again(lambda y: (m.block(y), m.norm(y)), x)),
    "with a size": lambda again, m, x: again(lambda y: m.block(y) / y.shape[1], x),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpointing(name, reentrant):
    model = Checkpointed(partial(CHECKPOINTS[name], partial(checkpoint, use_reentrant=reentrant)))
    assert holds(model, EXAMPLE, OTHERS).zigs >= 16


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_sequential(reentrant):
    model = Checkpointed(lambda m, x: checkpoint_sequential(m.block, 2, x, use_reentrant=reentrant))
    assert holds(model, EXAMPLE, OTHERS).zigs >= 16


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint is left out:fx_oto.FxOtoWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_graph_trains_in_both_modes(reentrant):
    again = partial(checkpoint, use_reentrant=reentrant)
    model = randomise(Checkpointed(lambda m, x: again(m.block, x) if m.training else m.block(x)).double())
    x = EXAMPLE.double()
    gm = fx_oto.prepare(model, x)
    twin = copy.deepcopy(model)
    for training in (True, False):
        expected, found = twin.train(training)(x), gm.train(training)(x)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        twin.zero_grad(), gm.zero_grad()
        expected.square().sum().backward(), found.square().sum().backward()
        torch.testing.assert_close(model.block[0].weight.grad, twin.block[0].weight.grad, rtol=1e-10, atol=1e-12)


def test_what_has_no_gradient_in_the_model_has_none_in_the_compact_one():
    model = tokens_around(lambda h, x: h.detach() * x.mean())
    found = compress_half(model, EXAMPLE, sensitive=False)
    eager, compact = (see(one, ExampleInputs.of(EXAMPLE.double()), training=True) for one in (model, found.small))
    assert not eager.gradients.keys() & {"first.weight", "second.weight"}
    assert compact.gradients.keys() == eager.gradients.keys()
    assert not any("has none" in name for name in apart(model, found.small, eager, compact))


def _apart(function):
    """Parts that are computed without gradient, beside what has one."""

    def code(h, x):
        with torch.no_grad():
            one, two = function(h)
        return h * one.mean((-1, -2), keepdim=True) + two.mean((-1, -2), keepdim=True) * h

    return code


PARTS = {
    "chunk": _apart(lambda h: h.chunk(2, 1)),
    "split": _apart(lambda h: torch.split(h, [2, h.size(1) - 2], 1)),
    "tensor_split": _apart(lambda h: h.tensor_split([1], dim=1)),
    "unbind": _apart(lambda h: torch.stack([h, h * h]).unbind()),
    "max": _apart(lambda h: (h.max(1, keepdim=True)[0], h.sort(1)[0])),
    "aminmax": _apart(lambda h: torch.aminmax(h, dim=1, keepdim=True)),
    "var_mean": _apart(lambda h: torch.var_mean(h, 1, keepdim=True)),
    "part of a part": _apart(lambda h: torch.stack([h, h.tanh()]).chunk(2)[1].unbind()[0].chunk(2, 1)),
}


@pytest.mark.parametrize("name", PARTS)
def test_several_results_without_a_gradient_have_none(name):
    holds(tokens_around(PARTS[name]), EXAMPLE, OTHERS)


def test_what_a_layer_returns_without_a_gradient_has_none():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.teacher, self.b = nn.Linear(4, 8), nn.LSTM(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.a(x)
            with torch.no_grad():
                y, (state, _) = self.teacher(x)
            return self.b(x * y.tanh() + state[0])

    compress_half(Net(), EXAMPLE)
