"""Pickle hands over the graph itself: nothing is traced when it is loaded, and parametrized modules come along."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from support.saved import assert_same, compact
from torch import nn
from torch.nn.utils import parametrizations

import fx_oto

ROWS, TOKENS = torch.randn(2, 8), torch.randn(2, 5, 8)


class Buffer(nn.Module):
    """A buffer that is cut by the length of the input, which a trace of generated code does not know."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("places", torch.arange(32)[None], persistent=False)

    def forward(self, x):
        places = self.places[:, : x.shape[1]].expand(x.shape[0], -1)[..., None].float()
        return self.last(torch.relu(self.first(x))) + places


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Operators(nn.Module):
    def forward(self, x):
        return torch.ops.aten.mul.Tensor(torch.ops.aten.relu(x), 2.0)


class Doubled(nn.Module):
    def forward(self, x):
        return Twice.apply(x)


def network(first, *more):
    return nn.Sequential(first, nn.ReLU(), nn.Linear(16, 4), *more)


shared = parametrizations.weight_norm(nn.Linear(16, 16))
NETWORKS = {
    "buffer": (Buffer(), TOKENS),
    "weight_norm": (network(parametrizations.weight_norm(nn.Linear(8, 16))), ROWS),
    "spectral_norm": (network(parametrizations.spectral_norm(nn.Linear(8, 16))), ROWS),
    "one parametrized module at two places": (
        network(nn.Linear(8, 16)).extend([nn.Linear(4, 16), shared, shared]),
        ROWS,
    ),
    "a function with its own backward": (network(nn.Linear(8, 16), Doubled()), ROWS),
    "operators of ATen": (network(nn.Linear(8, 16), Operators()), ROWS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_pickled_is_the_same(name):
    model, inputs = NETWORKS[name]
    gm = fx_oto.prepare(model, inputs)
    for graph in (gm, compact(model, inputs)):
        file = io.BytesIO()
        torch.save(graph, file)
        file.seek(0)
        for other in (
            torch.load(file, weights_only=False),
            pickle.loads(pickle.dumps(graph)),
            copy.deepcopy(graph),
        ):
            assert_same(graph, other, inputs)
            assert [(one.op, one.target, one.name) for one in other.graph.nodes] == [
                (one.op, one.target, one.name) for one in graph.graph.nodes
            ]
            other(inputs).sum().backward()


def test_a_long_graph_needs_no_deep_stack():
    gm = fx_oto.trace(nn.Sequential(*(nn.Tanh() for _ in range(3000))), ROWS)
    assert torch.equal(pickle.loads(pickle.dumps(gm))(ROWS), gm(ROWS))


def test_it_can_be_prepared_again_and_keeps_its_class_and_lines():
    small = compact(Buffer(), TOKENS)
    other = pickle.loads(pickle.dumps(small))
    assert type(other).__name__ == "Buffer"
    assert [one.stack_trace for one in other.graph.nodes] == [one.stack_trace for one in small.graph.nodes]
    again = fx_oto.prepare(other, TOKENS)
    fx_oto.partition(again).zero_(0.5)
    fx_oto.compress(again)
