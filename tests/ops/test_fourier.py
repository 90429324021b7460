"""Fourier transforms of sequences to a length that is asked for, as in long convolutions."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH = 12


class Net(nn.Module):
    """Two layers around some code, and a filter that is as long as the sequence."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 4)
        self.filter, self.code = nn.Sequential(nn.Linear(1, 7), nn.Tanh(), nn.Linear(7, WIDTH)), code

    def forward(self, x):
        return self.b(self.code(self, self.a(x)))


def long(length, dim):
    """The sequence, padded, and the filter are transformed and multiplied."""

    def convolve(m, h):
        steps = h.size(1)
        kernel, n = m.filter(torch.arange(steps, dtype=h.dtype)[:, None] / 8), length(steps)
        if dim == -1:
            h, kernel = h.transpose(1, 2), kernel.T
        y = torch.fft.irfft(torch.fft.rfft(h, n=n, dim=dim) * torch.fft.rfft(kernel, n=n, dim=max(dim - 1, -1)), n, dim)
        return y[..., :steps].transpose(1, 2) if dim == -1 else y[:, :steps]

    return convolve


# name: what is transformed, and how many groups there are
CODE = {
    "twice as long": (long(lambda n: 2 * n, -1), WIDTH + 7),
    "twice as long, along the steps": (long(lambda n: 2 * n, 1), WIDTH + 7),
    "a power of two": (long(lambda n: 1 << (2 * n - 1).bit_length(), -1), WIDTH + 7),
    "a little longer": (lambda m, h: torch.fft.ifft(torch.fft.fft(h, h.size(1) + 3, 1), dim=1).real, WIDTH),
    "as long": (lambda m, h: torch.fft.rfft(h, n=h.size(1), dim=1).abs(), WIDTH),
    "half as long": (lambda m, h: torch.fft.rfft(h, n=h.size(1) // 2 + 1, dim=1).abs(), WIDTH),
    "a fixed length": (lambda m, h: torch.fft.rfft(h, n=16, dim=1).abs(), WIDTH),
    "of real spectra": (lambda m, h: torch.fft.hfft(h, n=2 * h.size(1), dim=-2)[:, : h.size(1)], WIDTH),
    "in two dimensions": (lambda m, h: torch.fft.rfft2(h[:, None], (2 * h.size(1), 3), (2, 1)).abs().mean(1), WIDTH),
}


@pytest.mark.parametrize("name", CODE)
def test_channels_are_cut(name):
    code, zigs = CODE[name]
    torch.manual_seed(0)
    counted = name == "a power of two"  # which code finds in bits of a plain number
    assert compress_half(Net(code), torch.randn(2, 6, 5), any_size=not counted).zigs == zigs


def test_a_transform_of_the_channels_keeps_them():
    for code in (
        lambda m, h: torch.fft.rfft(h, n=2 * h.size(2)).abs()[..., :WIDTH],
        lambda m, h: torch.fft.rfft(h, n=2 * h.size(1) + 10).abs(),
    ):
        gm = fx_oto.prepare(Net(code), torch.randn(2, 6, 5))
        assert fx_oto.partition(gm).num_zigs == 0
