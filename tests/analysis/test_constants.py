"""Which values are the same in every call, and what they hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fx_oto
from fx_oto.analysis.player import Player
from fx_oto.analysis.recording import record_tape
from fx_oto.core.context import ExampleInputs
from fx_oto.ops.table import rule_for

BUFFER = torch.tensor([3.0, 1.0, 2.0])


class Computing(nn.Module):
    """Adds what ``compute`` makes of the model and its input."""

    def __init__(self, compute):
        super().__init__()
        self.a, self.compute = nn.Linear(4, 3), compute
        self.register_buffer("buffer", BUFFER.clone())
        self.register_buffer("unread", torch.zeros(3))

    def forward(self, x):
        return self.a(x) + self.compute(self, x)


def played(compute):
    """The engine after a network was played, and what ``compute`` has returned."""
    x = torch.randn(2, 4)
    gm = fx_oto.trace(Computing(compute), x)
    player = Player(gm, record_tape(gm, ExampleInputs.of(x)), rule_for)
    found = player.run()
    added = gm.graph.output_node().args[0].args[1]
    return player, found, added.meta["val"]


def twice(net, x):
    return torch.cat([net.a(x), net.a(x)], -1)


CONSTANT = {
    "a buffer": (lambda net, x: net.buffer, BUFFER),
    "what is computed from a buffer": (lambda net, x: (net.buffer * 2).flip(0), torch.tensor([4.0, 2.0, 6.0])),
    "one of several results": (lambda net, x: net.buffer.sort().values, torch.tensor([1.0, 2.0, 3.0])),
    "a literal": (lambda net, x: torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 4.0])),
    "a size of a parameter": (lambda net, x: torch.arange(net.a.weight.size(0)), torch.arange(3)),
    "one of several sizes": (lambda net, x: torch.full(net.a.weight.shape[:1], 5), torch.full((3,), 5)),
    "the features of what a layer returns": (lambda net, x: torch.arange(net.a(x).size(-1)), torch.arange(3)),
    "features that lie twice": (lambda net, x: torch.arange(twice(net, x).size(1))[3:], torch.tensor([3, 4, 5])),
    "as in tables of angles": (
        lambda net, x: torch.arange((2 * twice(net, x).cos().unsqueeze(1)).double().size(-1))[3:],
        torch.tensor([3, 4, 5]),
    ),
}


@pytest.mark.parametrize(("compute", "expected"), CONSTANT.values(), ids=CONSTANT)
def test_the_content_of_a_constant_is_known(compute, expected):
    player, _, value = played(compute)
    assert torch.equal(player.constant(value), expected)


OTHERS = {
    "a parameter": lambda net, x: net.a.bias,
    "what is computed from an input": lambda net, x: x.sum() * net.buffer,
    "a size of an input": lambda net, x: torch.full((3,), x.size(0)),
    "sizes of an input in a row": lambda net, x: torch.full((3,), x.shape[:1][0]),
    "features that lie once for each example": lambda net, x: torch.arange(net.a(x).flatten().size(0))[3:],
    "random numbers": lambda net, x: torch.rand(3),
    "memory that nobody has written": lambda net, x: torch.empty(3, dtype=torch.int64) * 0,  # the same in every run
    "a buffer that a call writes into": lambda net, x: net.buffer.add_(1),
}


@pytest.mark.parametrize("compute", OTHERS.values(), ids=OTHERS)
def test_of_what_may_be_another_in_the_next_call_nothing_is_known(compute):
    player, _, value = played(compute)
    assert player.constant(value) is None


def test_a_view_of_a_buffer_that_is_written_later_is_not_known():
    def write(net, x):
        seen = net.buffer[:] * 1
        net.buffer.view(3).mul_(2)
        return seen

    player, _, value = played(write)
    assert player.constant(value) is None


def test_what_is_no_tensor_has_no_content():
    player, _, _ = played(lambda net, x: net.buffer)
    assert player.constant(3) is None


def test_copies_are_kept_of_the_buffers_that_an_answer_was_read_from():
    """A bound in a buffer decides whether zero stays zero."""
    read = lambda net, x: torch.minimum(net.a(x), net.buffer[:1])  # noqa: E731
    player, found, _ = played(read)
    assert {name: content.tolist() for name, content in found.contents.items()} == {"buffer": BUFFER.tolist()}
    buffer = player._gm.get_buffer("buffer")
    assert found.contents["buffer"].data_ptr() != buffer.data_ptr()
    assert played(lambda net, x: 0 * x.sum())[1].contents == {}
