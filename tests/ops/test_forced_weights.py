"""Weights that training writes anew in each step, as the forced weight norm of EDM2 does: rows and columns go."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn


def _by_rows(weight):
    return (F.normalize(weight.flatten(1), dim=1, eps=1e-4) * weight.shape[1:].numel() ** 0.5).view(weight.shape)


def _over_dimensions(weight):
    return weight / weight.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-4)


def _no_grad(weight, norm):
    with torch.no_grad():
        weight.copy_(norm(weight))


def _data(weight, norm):
    weight.data.copy_(norm(weight.data))


def _detached(weight, norm):
    weight.detach()[:] = norm(weight.detach())


def _scaled(weight, norm):
    with torch.no_grad():
        weight.div_(weight.flatten(1).norm(dim=1).clamp(min=1e-4).view(-1, 1, 1, 1))


class Forced(nn.Module):
    def __init__(self, ins, outs, norm, write, training_only):
        super().__init__()
        self.weight, self.norm, self.write = nn.Parameter(torch.randn(outs, ins, 3, 3)), norm, write
        self.training_only = training_only

    def forward(self, x):
        if self.training or not self.training_only:
            self.write(self.weight, self.norm)
        return F.conv2d(x, self.norm(self.weight) / self.weight.shape[1:].numel() ** 0.5, padding="same")


class Net(nn.Module):
    def __init__(self, *how):
        super().__init__()
        self.a, self.b, self.c = Forced(3, 16, *how), Forced(16, 16, *how), Forced(16, 12, *how)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = F.silu(self.a(x))
        x = x + F.silu(self.b(x))
        return self.head(F.silu(self.c(x)).mean((2, 3)))


@pytest.mark.parametrize("norm", [_by_rows, _over_dimensions])
@pytest.mark.parametrize("write", [_no_grad, _data, _detached, _scaled])
@pytest.mark.parametrize("training_only", [True, False])
def test_rows_and_columns_go_of_weights_that_are_normalized_in_place(norm, write, training_only):
    inputs = torch.randn(2, 3, 8, 8)
    found = compress_half(Net(norm, write, training_only), inputs, others=[torch.randn(3, 3, 9, 7)])
    assert found.params_left < 0.3
