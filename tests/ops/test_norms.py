"""Every way to write a normalisation: pruned and exact, or kept whole for a reason."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from support.exactness import calibrate, compress_half, randomise
from support.vision import torchvision_models
from torch import nn
from torch.nn.utils import parametrizations

import fx_oto
from fx_oto.core.differences import relative_error
from fx_oto.nn import norms


class Spelled(nn.Module):
    """A norm written by hand, with a weight and a bias."""

    def __init__(self, forward, *shape):
        super().__init__()
        self.w, self.b = (nn.Parameter(torch.randn(shape or 16)) for _ in range(2))
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


class ConvNet(nn.Module):
    def __init__(self, norm, conv=nn.Conv2d):
        super().__init__()
        self.a, self.norm, self.b = conv(3, 16, 3, padding=1), norm, conv(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(F.relu(self.b(F.gelu(self.norm(self.a(x))))).flatten(2).mean(2))


class TokenNet(nn.Module):
    def __init__(self, norm, last, linear=nn.Linear):
        super().__init__()
        self.a, self.norm, self.up, self.down = linear(6, 16), norm, linear(16, 24), linear(24, 16)
        self.last, self.head = last, nn.Linear(16, 5)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.last(x + self.down(F.gelu(self.up(self.norm(x))))).mean(1))


def by_hand(m, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.w


def by_norm(m, x):
    return x / (x.norm(2, dim=-1, keepdim=True) * 16**-0.5 + 1e-6) * m.w


def by_std(m, x):
    return m.w * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + m.b


def by_var(m, x):
    return m.w * (x - x.mean(-1, keepdim=True)) / torch.sqrt(torch.var(x, -1, False, True) + 1e-6) + m.b


def by_std_mean(m, x):
    std, mean = torch.std_mean(x, dim=-1, correction=0, keepdim=True)
    return m.w * (x - mean) / std + m.b


def by_var_mean(m, x):
    var, mean = torch.var_mean(x, 1, unbiased=False, keepdim=True)
    return (x - mean) * torch.rsqrt(var + 1e-6) * m.w[:, None, None] + m.b[:, None, None]


def by_var_over_image(m, x):
    var, mean = torch.var_mean(x, (1, 2, 3), keepdim=True)
    return (x - mean) * torch.rsqrt(var + 1e-6) * m.w[:, None, None] + m.b[:, None, None]


def by_centring(dim):
    def norm(m, x):
        mean = x.mean(dim, keepdim=True)
        var = (x - mean).pow(2).mean(dim, keepdim=True)
        shape = (-1,) + (1,) * (x.ndim - 1 - dim % x.ndim)
        return (x - mean) / torch.sqrt(var + 1e-6) * m.w.view(shape) + m.b.view(shape)

    return norm


def by_centring_twice(m, x):
    mean = x.mean((1, 2, 3), keepdim=True)
    var = torch.mean(input=(x - mean) * (x - mean), dim=(1, 2, 3), keepdim=True)
    return m.w[:, None, None] * ((x - mean) * torch.rsqrt(var + 1e-6)) + m.b[:, None, None]


def shifted(m, x):
    return x * (1 + (x + 3).abs().mean(1, keepdim=True))


def written_between(m, x):
    mean = x.mean(1, keepdim=True)
    centred = x - mean
    mean.mul_(2)
    return x * centred.square().mean(1, keepdim=True) + mean * x


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(16, affine=False)

    def forward(self, x):
        return x * self.norm(x).abs().mean(1, keepdim=True)


def by_squares(m, x):
    mean = x.mean(1, keepdim=True)
    var = ((x * x).mean(1, keepdim=True) - mean * mean).clamp(0)
    return (x - mean) * torch.rsqrt(var + 1e-6) * m.w.view(1, -1, 1, 1) + m.b.view(1, -1, 1, 1)


def response(m, x):
    x = x.permute(0, 2, 3, 1)
    norm = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
    return (m.w * (x * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + m.b + x).permute(0, 3, 1, 2)


TOKENS = {
    "layer norm": lambda: nn.LayerNorm(16),
    "layer norm without bias": lambda: nn.LayerNorm(16, bias=False),
    "layer norm by centring": lambda: Spelled(by_centring(-1)),
    "layer norm by std": lambda: Spelled(by_std),
    "layer norm by var": lambda: Spelled(by_var),
    "layer norm by std_mean": lambda: Spelled(by_std_mean),
    "RMS norm": lambda: nn.RMSNorm(16),
    "RMS norm with eps": lambda: nn.RMSNorm(16, eps=1e-2),
    "RMS norm without weight": lambda: nn.RMSNorm(16, elementwise_affine=False),
    "RMS norm over tokens, too": lambda: nn.RMSNorm((7, 16)),
    "F.rms_norm": lambda: Spelled(lambda m, x: F.rms_norm(x, (x.shape[-1],), m.w, 1e-5)),
    "F.rms_norm by keywords": lambda: Spelled(lambda m, x: F.rms_norm(x, normalized_shape=(16,), weight=m.w)),
    "RMS norm by hand": lambda: Spelled(by_hand),
    "RMS norm by the norm": lambda: Spelled(by_norm),
    "F.normalize": lambda: Spelled(lambda m, x: F.normalize(x, dim=-1) * m.w),
}
IMAGES = {
    "group norm, one group": lambda: nn.GroupNorm(1, 16),
    "group norm": lambda: nn.GroupNorm(4, 16),
    "group norm without affine": lambda: nn.GroupNorm(4, 16, affine=False),
    "batch norm": lambda: nn.BatchNorm2d(16),
    "batch norm without affine": lambda: nn.BatchNorm2d(16, affine=False),
    "batch norm of the batch": lambda: nn.BatchNorm2d(16, affine=False, track_running_stats=False),
    "synchronised batch norm": lambda: nn.SyncBatchNorm(16),
    "instance norm": lambda: nn.InstanceNorm2d(16),
    "instance norm with affine": lambda: nn.InstanceNorm2d(16, affine=True),
    "instance norm with statistics": lambda: nn.InstanceNorm2d(16, affine=True, track_running_stats=True),
    "F.instance_norm": lambda: Spelled(lambda m, x: F.instance_norm(x, weight=m.w, bias=m.b)),
    "F.normalize": lambda: Spelled(lambda m, x: F.normalize(x, dim=1)),
    "layer norm, permuted": lambda: torchvision_models().convnext.LayerNorm2d(16),
    "layer norm by var_mean": lambda: Spelled(by_var_mean),
    "layer norm over the image": lambda: Spelled(by_var_over_image),
    "layer norm by centring": lambda: Spelled(by_centring(1)),
    "layer norm over the image by centring": lambda: Spelled(by_centring_twice),
    "mean of what is shifted": lambda: Spelled(shifted),
    "mean of what was written into": lambda: Spelled(written_between),
    "layer norm by squares": lambda: Spelled(by_squares),
    "global response norm": lambda: Spelled(response),
    # What is zero would be divided by zero: channels are not zero before they go, only what reads them.
    "RMS norm over pixels": lambda: Spelled(lambda m, x: x / x.pow(2).mean((2, 3), keepdim=True).sqrt()),
    "RMS norm over pixels by rsqrt": lambda: Spelled(lambda m, x: x * x.pow(2).mean((2, 3), keepdim=True).rsqrt()),
}


class Standardised(nn.Conv2d):
    """A convolution whose weight has mean zero and variance one."""

    def forward(self, x):
        w = self.weight.reshape(1, self.out_channels, -1)
        w = F.batch_norm(w, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class StandardisedByHand(nn.Conv2d):
    def forward(self, x):
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(x, (self.weight - mean) / torch.sqrt(var + 1e-6), self.bias, self.stride, self.padding)


class Scaled(nn.Conv2d):
    def __init__(self, inputs, outputs, size, padding):
        super().__init__(inputs, outputs, size, padding=padding)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x):
        w, gain = self.weight.reshape(1, self.out_channels, -1), (self.gain * 0.1).view(-1)
        w = F.batch_norm(w, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, w.reshape_as(self.weight), self.bias, self.stride, self.padding)


class StandardisedLinear(nn.Linear):
    def forward(self, x):
        w = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(x, w / (self.weight.std(1, keepdim=True) + 1e-5), self.bias)


class Cosine(nn.Linear):
    def forward(self, x):
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1), self.bias)


def weight_normed(layer):
    return lambda *args, **kwargs: parametrizations.weight_norm(layer(*args, **kwargs))


def weight_normed_by_hook(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Conv2d(*args, **kwargs))


WEIGHTS = {
    "standardised": Standardised,
    "standardised by hand": StandardisedByHand,
    "standardised and scaled": Scaled,
    "weight norm": weight_normed(nn.Conv2d),
    "weight norm by a hook": weight_normed_by_hook,
    "spectral norm": lambda *a, **k: parametrizations.spectral_norm(nn.Conv2d(*a, **k)),
    "weight norm of the inputs": lambda *a, **k: parametrizations.weight_norm(nn.Conv2d(*a, **k), dim=1),
}
LINEAR = {"standardised": StandardisedLinear, "cosine": Cosine, "weight norm": weight_normed(nn.Linear)}
NETWORKS = {
    **{
        f"convolution: {name}": (lambda make=make: (ConvNet(nn.BatchNorm2d(16), make), (2, 3, 8, 8)))
        for name, make in WEIGHTS.items()
    },
    **{
        f"linear: {name}": (lambda make=make: (TokenNet(nn.LayerNorm(16), nn.LayerNorm(16), make), (2, 7, 6)))
        for name, make in LINEAR.items()
    },
    **{f"tokens: {name}": (lambda make=make: (TokenNet(make(), make()), (2, 7, 6))) for name, make in TOKENS.items()},
    **{f"images: {name}": (lambda make=make: (ConvNet(make()), (2, 3, 8, 8))) for name, make in IMAGES.items()},
    "1d": lambda: (ConvNet(nn.InstanceNorm1d(16), nn.Conv1d), (2, 3, 8)),
    "3d": lambda: (ConvNet(nn.InstanceNorm3d(16), nn.Conv3d), (2, 3, 5, 5, 5)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_and_exact(name):
    model, shape = NETWORKS[name]()
    assert compress_half(model, torch.randn(shape)).params_left < 0.36


@pytest.mark.parametrize("name", NETWORKS)
def test_a_second_round_finds_what_the_first_has_left(name):
    model, shape = NETWORKS[name]()
    first = compress_half(model, torch.randn(shape))
    second = compress_half(first.small, torch.randn(shape))
    before, after = (sorted(map(len, fx_oto.partition(result.gm).families)) for result in (first, second))
    assert after == [size - size // 2 for size in before]


@pytest.mark.parametrize("name", NETWORKS)
def test_exported_pruned_and_exact(name):
    model, shape = NETWORKS[name]()
    if "hook" in name:
        pytest.skip("torch.export warns of the hook")
    x = torch.randn(shape).double()
    calibrate(randomise(model.double()), (x,), {})
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    gm = fx_oto.prepare(exported, x)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    small = fx_oto.compress(gm)
    other = torch.randn(3, *shape[1:]).double()
    assert relative_error(model(other), small(other)) < 1e-10
    sizes = [sum(p.numel() for p in m.parameters()) for m in (small, model)]
    assert sizes[0] < 0.36 * sizes[1]


def conv_net(norm, conv=nn.Conv2d):
    return lambda: ConvNet(norm(16), conv)


KEPT = {
    "response to neighbouring channels": (conv_net(lambda n: nn.LocalResponseNorm(5)), "a window slides along it"),
    "mean of what was shifted by data": (
        conv_net(lambda n: Gate()),
        "its value is not zero once removed, and the sum over it would change",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_whole_with_the_reason(name):
    make, reason = KEPT[name]
    result = compress_half(make(), torch.randn(2, 3, 8, 8))
    assert result.params_left > 0.5
    assert reason in [kept.reason.why for kept in fx_oto.partition(result.gm).frozen]


def over(kept, count):
    """Each function that counts what is missing, beside torch's own on the channels with zeros for those."""
    w, b = torch.randn(kept).double(), torch.randn(kept).double()
    wide, tail = ((count,), F.pad(w, (0, count - kept)), F.pad(b, (0, count - kept))), (1e-3,)
    return {
        "layer_norm": (lambda x: norms.layer_norm_over(x, count, w, b, *tail), lambda x: F.layer_norm(x, *wide, *tail)),
        "layer_norm without a weight": (
            lambda x: norms.layer_norm_over(x, count, None, b, *tail),
            lambda x: F.layer_norm(x, (count,), None, wide[2], *tail),
        ),
        "rms_norm": (lambda x: norms.rms_norm_over(x, (count,), w), lambda x: F.rms_norm(x, (count,), wide[1])),
        "std": (
            lambda x: norms.variance_over("std", x, -1, share=kept / count, keepdim=True),
            lambda x: x.std(-1, keepdim=True),
        ),
        "var": (lambda x: norms.variance_over("var", x, False, share=kept / count), lambda x: x.var(False)),
    }


@pytest.mark.parametrize("name", over(1, 2))
@pytest.mark.parametrize("kept", [1, 5])
def test_functions_count_what_is_missing(name, kept):
    ours, torchs = over(kept, 8)[name]
    x = (torch.randn(4, 6, kept).double() + 1).requires_grad_()
    expected = torchs(F.pad(x, (0, 8 - kept)))
    expected = expected[..., :kept] if expected.ndim == 3 else expected
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((out * weights).sum(), x)[0] for out in (ours(x), expected)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        before = x.clone()
        torch.testing.assert_close(ours(x), expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_computed_as_torch_does(dtype):
    x = (1e-3 * torch.randn(4, 6, 5)).to(dtype)
    padded = F.pad(x, (0, 3))
    torch.testing.assert_close(norms.rms_norm_over(x, (8,)), F.rms_norm(padded, (8,))[..., :5])
    torch.testing.assert_close(norms.layer_norm_over(x, 8, None, None, 1e-5), F.layer_norm(padded, (8,))[..., :5])
