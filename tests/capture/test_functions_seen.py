"""Functions with a backward of their own that is the derivative of their forward: what is inside can be rewritten."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn
from torch.utils.checkpoint import checkpoint

import fx_oto
from fx_oto.analysis.disguises import is_fake

IMAGES = torch.randn(2, 3, 6, 7)


def normalised(x, eps):
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt(), variance


class Layer(torch.autograd.Function):
    """Layer norm over the channels of images, as restoration networks have it."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        ctx.eps = eps
        _, channels, _, _ = x.size()
        y, variance = normalised(x, eps)
        ctx.save_for_backward(y, variance, weight)
        return weight.view(1, channels, 1, 1) * y + bias.view(1, channels, 1, 1)

    @staticmethod
    def backward(ctx, grad):
        y, variance, weight = ctx.saved_tensors
        g = grad * weight.view(1, -1, 1, 1)
        inner = g - y * (g * y).mean(1, keepdim=True) - g.mean(1, keepdim=True)
        return inner / (variance + ctx.eps).sqrt(), (grad * y).sum((0, 2, 3)), grad.sum((0, 2, 3)), None


class SetUp(torch.autograd.Function):
    """The same with ``setup_context``, computed anew in its backward."""

    @staticmethod
    def forward(x, weight, bias, eps):
        return weight[:, None, None] * normalised(x, eps)[0] + bias[:, None, None]

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, ctx.eps = inputs
        ctx.save_for_backward(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        given = [one.detach().requires_grad_() for one in ctx.saved_tensors]
        with torch.enable_grad():
            return *torch.autograd.grad(SetUp.forward(*given, ctx.eps), given, grad), None


class Moved(torch.autograd.Function):
    """Torch's own norm, once channels are last."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        n, c, h, w = x.shape
        y = F.layer_norm(x.permute(0, 2, 3, 1).reshape(n, h * w, c), (c,), weight, bias, eps)
        return y.transpose(1, 2).view(n, c, h, w)

    @staticmethod
    def backward(ctx, grad):
        given = [one.detach().requires_grad_() for one in ctx.saved_tensors]
        with torch.enable_grad():
            y = given[1].view(-1, 1, 1) * normalised(given[0], ctx.eps)[0] + given[2].view(-1, 1, 1)
            return *torch.autograd.grad(y, given, grad), None


class RootMeanSquare(torch.autograd.Function):
    """In float32, whatever it is given."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(1, keepdim=True) + eps)
        ctx.save_for_backward(wide, inverse, weight)
        return (wide * inverse).to(x.dtype) * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)

    @staticmethod
    def backward(ctx, grad):
        wide, inverse, weight = ctx.saved_tensors
        g, y = grad * weight.view(-1, 1, 1), wide * inverse
        inner = inverse * (g - y * (g * y).mean(1, keepdim=True))
        return inner.to(grad.dtype), (grad * y).sum((0, 2, 3)).to(grad.dtype), grad.sum((0, 2, 3)), None


class Around(torch.autograd.Function):
    """Applies another."""

    @staticmethod
    def forward(ctx, *given):
        ctx.given = given
        return 2 * Layer.apply(*given)

    @staticmethod
    def backward(ctx, grad):
        given = [one.detach().requires_grad_() for one in ctx.given[:3]]
        with torch.enable_grad():
            return *torch.autograd.grad(2 * Layer.apply(*given, ctx.given[3]), given, grad), None


class Halved(Layer):
    """Its gradient is not the derivative."""

    @staticmethod
    def backward(ctx, grad):
        first, *others = Layer.backward(ctx, grad)
        return 0.5 * first, *others


class Clipped(Layer):
    """Its gradient is the derivative where that is small."""

    @staticmethod
    def backward(ctx, grad):
        first, *others = Layer.backward(ctx, grad)
        return first.clamp(-100, 100), *others


class Safe(torch.autograd.Function):
    """Its gradient is the derivative but for zeros, where there is none."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        norm = x.pow(2).sum(1, keepdim=True).sqrt()
        ctx.save_for_backward(x, norm, weight)
        return x / (norm + eps) * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)

    @staticmethod
    def backward(ctx, grad):
        x, norm, weight = ctx.saved_tensors
        g, scale = grad * weight.view(-1, 1, 1), norm + 1e-2
        unit = torch.where(norm == 0, 0.0, x / norm)
        inner = g / scale - unit * (g * x).sum(1, keepdim=True) / scale**2
        return inner, (grad * x / scale).sum((0, 2, 3)), grad.sum((0, 2, 3)), None


class Deaf(Layer):
    """Its weight has no gradient."""

    @staticmethod
    def backward(ctx, grad):
        first, _, last, _ = Layer.backward(ctx, grad)
        return first, None, last, None


class Cast(Layer):
    """In float32 under autocast."""

    forward = staticmethod(torch.amp.custom_fwd(Layer.forward, device_type="cpu", cast_inputs=torch.float32))
    backward = staticmethod(torch.amp.custom_bwd(Layer.backward, device_type="cpu"))


class Ours(nn.Module):
    """A norm of images."""

    def __init__(self, custom, channels):
        super().__init__()
        self.custom, self.weight, self.bias = (
            custom,
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.ones(channels)),
        )

    def forward(self, x):
        return self.custom.apply(x, self.weight, self.bias, 1e-2)


class Net(nn.Module):
    """A residual block between norms."""

    def __init__(self, custom):
        super().__init__()
        self.stem, self.first, self.last = nn.Conv2d(3, 16, 1), Ours(custom, 16), Ours(custom, 16)
        self.up, self.down, self.head = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.down(F.gelu(self.up(self.first(x))))
        return self.head(self.last(x))


def applied(gm):
    return [node for node in gm.graph.nodes if hasattr(node.target, "applies")]


@pytest.mark.parametrize("custom", [Layer, SetUp, Moved, RootMeanSquare, Around])
def test_channels_go_across_a_norm_with_a_true_gradient(custom):
    dtype = torch.float32 if custom is RootMeanSquare else torch.float64
    found = compress_half(Net(custom), IMAGES, dtype, any_size=True)
    assert found.zigs == 16 + 24
    assert found.params_left < 0.4
    assert not applied(found.gm)


@pytest.mark.parametrize("custom", [Halved, Clipped, Safe, Deaf, Cast])
def test_any_other_gradient_is_kept(custom):
    found = compress_half(Net(custom), IMAGES, any_size=True)
    assert found.zigs == 24  # the stem's channels are normalised together
    assert len(applied(found.small)) == 2


def test_it_is_saved_exported_and_written_back(tmp_path):
    model, x = fx_oto.testing.randomise(Net(Layer)).double().eval(), IMAGES.double()
    gm = fx_oto.prepare(model, x)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    fx_oto.save(small, tmp_path / "small.safetensors")
    x = torch.randn(3, 3, 9, 8, dtype=torch.float64)
    written = fx_oto.write_back(small, model)
    assert type(written) is Net
    exported = torch.export.export(small, (x,)).module()
    for other in (fx_oto.load(tmp_path / "small.safetensors"), written, exported):
        torch.testing.assert_close(other(x), model(x), rtol=1e-10, atol=1e-12)


class Doubling(torch.autograd.Function):
    """A gradient that nothing else has."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Checkpointed(nn.Module):
    """A function behind reentrant checkpointing."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = checkpoint(torch.tanh, self.first(x), use_reentrant=True)
        return self.head(Doubling.apply(self.second(h)))


@pytest.mark.filterwarnings("ignore:None of the inputs", "ignore:.*checkpoint is left out of the graph")
def test_a_function_after_reentrant_checkpointing_has_its_gradient():
    assert compress_half(Checkpointed(), torch.randn(2, 4), any_size=True).zigs == 16 + 8


class Noting(torch.autograd.Function):
    """Notes for how many numbers it is really called."""

    numbers: ClassVar[list[int]] = []

    @staticmethod
    def forward(ctx, x, width):
        if not is_fake(x):
            Noting.numbers.append(x.numel())
        ctx.save_for_backward(x)
        return x.mean(1, keepdim=True).expand(-1, width, -1, -1)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad.sum(1, keepdim=True).expand_as(x) / x.size(1), None


class Averaging(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 1)

    def forward(self, x):
        h = self.stem(x)
        h = h + Noting.apply(h, h.size(1))
        return self.last(h + Noting.apply(h[:, :8], h.size(1)))


def test_gradients_are_compared_at_the_sizes_of_the_example_alone():
    Noting.numbers.clear()
    gm = fx_oto.trace(Averaging(), IMAGES)
    assert fx_oto.Context.of(gm).capture.sizes
    assert not applied(gm)
    assert Noting.numbers
    assert max(Noting.numbers) <= 2 * 16 * 6 * 7


def test_the_weight_of_a_loss_that_torch_hides_counts():
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)
            self.weight = nn.Parameter(torch.rand(3, 6))

        def forward(self, x):
            return torch.nn.functional.l1_loss(self.a(x), self.b(x), weight=self.weight)

    x = torch.randn(3, 4)
    with pytest.raises(fx_oto.TraceError, match="torch hides the weight of l1_loss: write "):
        fx_oto.prepare(Between(), x)
    model = nn.Sequential(Between())
    gm = fx_oto.prepare(model, x)
    torch.testing.assert_close(gm(x), model(x))
    assert not fx_oto.partition(gm).families
