"""Checkpointing that users have written themselves, as in guided diffusion and latent diffusion."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto


class Guided(torch.autograd.Function):
    """A function, how many of what follows it is given, those, and its parameters."""

    @staticmethod
    def forward(ctx, function, length, *args):
        ctx.function = function
        ctx.inputs, ctx.learning = list(args[:length]), list(args[length:])
        with torch.no_grad():
            return ctx.function(*ctx.inputs)

    @staticmethod
    def backward(ctx, *gradients):
        ctx.inputs = [one.detach().requires_grad_(True) for one in ctx.inputs]
        with torch.enable_grad():
            outputs = ctx.function(*[one.view_as(one) for one in ctx.inputs])
        found = torch.autograd.grad(outputs, ctx.inputs + ctx.learning, gradients, allow_unused=True)
        return (None, None, *found)


class Halved(Guided):
    """Its gradient is not that of the function."""

    @staticmethod
    def backward(ctx, *gradients):
        return tuple(one if one is None else one / 2 for one in Guided.backward(ctx, *gradients))


class Doubled(Guided):
    """What it returns is not what the function does."""

    @staticmethod
    def forward(ctx, function, length, *args):
        return 2 * Guided.forward(ctx, function, length, *args)


class Saved(torch.autograd.Function):
    """The function last, and tensors saved as torch wants it."""

    @staticmethod
    def forward(ctx, *args):
        *tensors, ctx.function = args
        ctx.save_for_backward(*tensors)
        with torch.no_grad():
            return ctx.function(tensors[0], tensors[1])

    @staticmethod
    def backward(ctx, gradient):
        x, scale, *learning = ctx.saved_tensors
        x, scale = x.detach().requires_grad_(True), scale.detach().requires_grad_(True)
        with torch.enable_grad():
            output = ctx.function(x, scale)
        return (*torch.autograd.grad(output, (x, scale, *learning), gradient), None)


class Block(nn.Module):
    """Layers behind a checkpoint."""

    def __init__(self, checkpoint):
        super().__init__()
        self.norm, self.first, self.second = nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.checkpoint = checkpoint

    def forward(self, x, scale):
        return self.checkpoint(self._forward, x, scale, list(self.parameters()))

    def _forward(self, x, scale):
        return x + self.second(torch.relu(self.first(self.norm(x)) * (1 + scale[:, :, None, None])))


class Net(nn.Module):
    """Two of these blocks, conditioned."""

    def __init__(self, checkpoint):
        super().__init__()
        self.stem, self.time, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(4, 16), nn.Conv2d(16, 3, 1)
        self.blocks = nn.ModuleList(Block(checkpoint) for _ in range(2))

    def forward(self, x, time):
        x, time = self.stem(x), self.time(time)
        for block in self.blocks:
            x = block(x, time)
        return self.last(x)


EXAMPLE = torch.randn(2, 3, 8, 8), torch.randn(2, 4)
SEEN = {
    "guided diffusion": lambda function, x, scale, learning: Guided.apply(function, 2, x, scale, *learning),
    "the function last": lambda function, x, scale, learning: Saved.apply(x, scale, *learning, function),
    "one input alone": lambda function, x, scale, learning: Guided.apply(
        lambda one: function(one, one.mean((2, 3))), 1, x, *learning
    ),
}
NOT_SEEN = {
    "another gradient": lambda function, x, scale, learning: Halved.apply(function, 2, x, scale, *learning),
    "another output": lambda function, x, scale, learning: Doubled.apply(function, 2, x, scale, *learning),
    "no parameters": lambda function, x, scale, learning: Guided.apply(function, 2, x, scale),
}


@pytest.mark.filterwarnings("ignore:.*checkpoint is left out of the graph")
@pytest.mark.parametrize("name", SEEN)
def test_what_is_checkpointed_is_part_of_the_graph(name):
    found = compress_half(Net(SEEN[name]), EXAMPLE, any_size=True)
    assert not fx_oto.Context.of(found.gm).capture.opaque
    assert found.params_left < 0.35


@pytest.mark.filterwarnings("ignore::fx_oto.FxOtoWarning")
@pytest.mark.parametrize("name", NOT_SEEN)
def test_what_does_something_else_is_called_as_it_is(name):
    model = Net(NOT_SEEN[name]).double()
    inputs = [one.double() for one in EXAMPLE]
    gm = fx_oto.prepare(model, tuple(inputs))
    assert fx_oto.Context.of(gm).capture.opaque
    learnt = []
    for module in (model, gm):
        output = module(*inputs)
        learnt.append((output, *torch.autograd.grad(output.sum(), list(model.parameters()), allow_unused=True)))
    for expected, found in zip(*learnt, strict=True):
        assert (expected is None) == (found is None)
        if found is not None:
            torch.testing.assert_close(found, expected)


def test_checkpoints_that_are_left_out_are_told_once():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", fx_oto.FxOtoWarning)
        fx_oto.prepare(Net(SEEN["guided diffusion"]), EXAMPLE)
    assert sum("checkpoint is left out" in str(one.message) for one in told) == 1
