"""Code that asks for the exact class of a tensor gets that of a real one."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import fx_oto

EXAMPLE = torch.randn(3, 2, 4, 5)


class Way(nn.Module):
    """A layer, a way that code goes, and another layer."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.first, self.last = nn.Conv2d(2, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        h = self.first(x).relu()
        h = self.way(self, x, h)
        return self.last(h)


TYPES = {
    "is": lambda x: type(x) is torch.Tensor,
    "is not": lambda x: not type(x) is not torch.Tensor,
    "equals": lambda x: type(x) == torch.Tensor,  # noqa: E721 - as it is spelled
    "among": lambda x: type(x) in (torch.Tensor, nn.Parameter),
    "class": lambda x: x.__class__ is torch.Tensor,
    "name": lambda x: type(x).__name__ == "Tensor",
    "table": lambda x: {torch.Tensor: True}.get(type(x), False),
    "no other": lambda x: type(x) not in (list, tuple, dict) and "Fake" not in repr(type(x)),
}


@pytest.mark.parametrize("asked", TYPES.values(), ids=TYPES)
def test_a_tensor_is_of_the_class_that_it_is_of(asked):
    def way(model, x, h):
        first, second = h.split(8, 1)
        seen = [x, h, first, second.relu(), h.max(1).values, model.first.bias[None]]
        return h.clamp(-1, 1) * 2 if all(map(asked, seen)) else h

    assert compress_half(Way(way), EXAMPLE, any_size=True).zigs == 16


def test_a_class_that_is_given_is_seen_in_containers_and_by_functions():
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, more, given):
            parts = [one for one in (*given, *more.values()) if type(one) is torch.Tensor]
            return self.last(self.first(sum(parts)).relu())

    def inputs(size):
        return {"a": torch.randn(size, 4), "b": 2}, [torch.randn(size, 4), torch.randn(size, 4)]

    compress_half(Given(), inputs(3), others=[inputs(5)])


def test_what_stands_in_is_of_its_own_class_after_a_capture():
    gm = fx_oto.trace(Way(lambda model, x, h: h.sigmoid()), EXAMPLE)
    assert all(type(node.meta["val"]) in (FakeTensor, tuple) for node in gm.graph.nodes)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2 if type(x) is torch.Tensor else x

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad


def test_functions_with_a_backward_of_their_own_see_it_too():
    compress_half(Way(lambda model, x, h: Scaled.apply(h)), EXAMPLE)


def test_a_parameter_of_what_is_computed_is_made_all_the_same():
    """Which torch does in another way for tensors of another class."""
    compress_half(Way(lambda model, x, h: h * nn.Parameter(h.detach().mean((0, 2, 3), keepdim=True))), EXAMPLE)
