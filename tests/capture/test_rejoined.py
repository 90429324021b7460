"""Rows that code takes apart and joins again: the graph does not count them, so that it takes any batch."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto


class Net(nn.Module):
    """What ``code`` makes of the rows of a hidden layer of shape ``(batch, 5, 8)``."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b, self.code = nn.Linear(4, 8), nn.Linear(8, 3), code

    def forward(self, x):
        return self.b(self.code(self.a(x).relu()))


JOINED = {
    "list": lambda x: torch.cat(list(x)),
    "unbind": lambda x: torch.cat(x.unbind(), dim=0),
    "unbind by name": lambda x: torch.concat(tensors=torch.unbind(x, dim=0)),
    "in a loop": lambda x: torch.concatenate([one for one in x], 0),  # noqa: C416
    "unpacked": lambda x: torch.cat([*x]),
    "stack": lambda x: torch.stack(list(x)),
    "stack, and written": lambda x: torch.stack(x.unbind()).add_(x),
    "cat, and written": lambda x: torch.cat(list(x)).mul_(2) + torch.cat(list(x)),
}


@pytest.mark.parametrize("name", JOINED)
def test_rows_that_are_joined_again_are_not_counted(name):
    x = torch.randn(2, 5, 4)
    found = compress_half(Net(JOINED[name]), x, others=[torch.randn(3, 7, 4)], any_size=True)
    assert found.zigs == 8


def _without_gradient(x):
    with torch.no_grad():
        rows = list(x)
    return torch.cat(rows) + x.mean()


OTHER = {
    "backwards": lambda x: torch.cat(list(x)[::-1]),
    "not all": lambda x: torch.cat(list(x)[:-1]),
    "one twice": lambda x: torch.cat([x[0], x[0], *list(x)[1:]]),
    "side by side": lambda x: torch.cat(list(x), -2),
    "along another": lambda x: torch.stack(x.unbind(1)),
    "stacked along another": lambda x: torch.stack(list(x), 1),
    "without a gradient": _without_gradient,
}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.filterwarnings("ignore:the graph takes batches of 2 only")
def test_what_else_is_made_of_rows_stays_what_it_is(name):
    model, x = Net(OTHER[name]).double(), torch.randn(2, 5, 4).double()
    gm = fx_oto.trace(model, x)
    torch.testing.assert_close(gm(x), model(x))
    torch.testing.assert_close(_gradients(gm, model, x), _gradients(model, model, x))


def _gradients(called, model, x):
    model.zero_grad()
    called(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]
