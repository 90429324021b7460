"""Functions that ``torch.jit.script`` has compiled."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import Tensor, nn

import fx_oto


@torch.jit.script
def normalised(weight: Tensor, log_scale: Tensor) -> Tensor:
    norm = torch.sqrt(torch.sum(weight * weight, dim=[1, 2, 3]))
    return torch.exp(log_scale) * weight / (norm.view(-1, 1, 1, 1) + 1e-5)


@torch.jit.script
def clamped(x: Tensor) -> Tensor:
    return x.div(5.0).tanh_().mul(5.0)


@torch.jit.script
def shifted(x: Tensor, times: int = 2) -> Tensor:
    y = x * 1.0
    for _ in range(times):
        y.add_(0.0).mul_(1.5)
    return clamped(y)


@torch.jit.script
def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    n = x.size(1) // 2
    return x[:, :n], x[:, n:].sigmoid_() if x.size(1) > 0 else x


class Net(nn.Module):
    """A convolution whose weight is computed by a compiled function, and another function on what it returns."""

    def __init__(self, code):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 5, 1)
        self.log_scale, self.code = nn.Parameter(torch.zeros(16, 1, 1, 1)), code

    def forward(self, x):
        x = nn.functional.conv2d(x, normalised(self.first.weight, self.log_scale), self.first.bias)
        return self.last(self.code(x))


def _in_halves(x):
    a, b = halves(x * 1.0)
    return torch.cat([a * b, b], 1)


@pytest.mark.parametrize("code", [clamped, shifted, lambda x: shifted(x, times=3), _in_halves])
def test_a_compiled_function_is_seen_like_its_own_code(code):
    gm = fx_oto.prepare(Net(code), torch.randn(2, 3, 8, 8))
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_function"}
    assert not any("aten." in name for name in called)  # modules and functions of torch, as if it was not compiled
    assert compress_half(Net(code), torch.randn(2, 3, 8, 8)).params_left < 0.6


def test_functions_are_compiled_as_before_after_a_capture():
    before = torch.jit.ScriptFunction.__call__
    fx_oto.trace(Net(clamped), torch.randn(2, 3, 8, 8))
    with pytest.raises(fx_oto.FxOtoError):
        fx_oto.trace(Net(lambda x: torch.ones(())[3] + x), torch.randn(2, 3, 8, 8))
    assert torch.jit.ScriptFunction.__call__ is before
    assert clamped(torch.ones(2)).tolist() == (torch.ones(2) / 5).tanh().mul(5).tolist()
