"""Numbers that code reads from tensors that it has written into: tables of its own, and the model's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fx_oto

X = torch.randn(3, 4)


def part(h):
    table = torch.zeros(8)
    table[4:] = 1
    return h * 2 if table.sum() > 1 else h


def filled_part(h):
    table = torch.zeros(8)
    table[4:].fill_(1.0)
    return h * table.sum().item()


def view_first(h):
    table = torch.zeros(8)
    view = table[4:]
    view += 1
    return h * int(table.sum())


def read_through_a_view(h):
    table = torch.zeros(8)
    view = table[4:]
    table += 1
    return h * int(view.sum())


def whole(h):
    table = torch.ones(8, 8)
    table.triu_(1)
    return h * int(table.sum())


def a_list(h):
    table = torch.arange(4)
    table[0] = 7
    return h * sum(table.tolist())


def part_of_a_part(h):
    table = torch.zeros(2, 4)
    table[0][1:] = 1
    return h * int(table.sum())


def one_by_one(h):
    table = torch.zeros(4)
    for place in range(4):
        table[place] = place
    return h * int(table.sum()) + (1 if table[3] == 3 else 0)


def copied(h):
    table, other = torch.zeros(4), torch.arange(4.0)
    table[1:].copy_(other[1:])
    return h * table.max().item()


TABLES = [part, filled_part, view_first, read_through_a_view, whole, a_list, part_of_a_part, one_by_one, copied]


class Net(nn.Module):
    def __init__(self, code):
        super().__init__()
        self.a, self.b, self.code = nn.Linear(4, 8), nn.Linear(8, 3), code

    def forward(self, x):
        return self.b(self.code(self.a(x)))


@pytest.mark.parametrize("code", TABLES)
def test_a_table_that_code_writes(code):
    net = Net(code)
    gm = fx_oto.prepare(net, X)
    assert fx_oto.partition(gm).num_zigs == 8
    torch.testing.assert_close(gm(torch.ones(5, 4)), net(torch.ones(5, 4)))


class Counting(nn.Module):
    """Counts its calls in a buffer, or a parameter, and asks how many there were."""

    def __init__(self, count, asked):
        super().__init__()
        self.a, self.b, self.count, self.asked = nn.Linear(4, 8), nn.Linear(8, 3), count, asked
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.weight = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        h = self.a(x).relu()
        if self.training:
            self.count(self)
        return self.b(h) * (0.5 if self.asked(self) == 0 else 1.0)


def in_place(net):
    net.steps += 1


def by_method(net):
    net.steps.add_(1)


def in_a_parameter(net):
    with torch.no_grad():
        net.weight.add_(1.0)


ASKED = {
    "item": lambda net: net.steps.item() + net.weight.sum().item(),
    "tensor": lambda net: net.steps + net.weight.sum(),
    "int": lambda net: int(net.steps) + int(net.weight.sum()),
}


@pytest.mark.filterwarnings("ignore:.*cannot be captured:fx_oto.FxOtoWarning")
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("count", [in_place, by_method, in_a_parameter])
def test_a_count_is_left_as_it_was(count, asked):
    net = Counting(count, ASKED[asked]).eval()
    before = copy.deepcopy(net.state_dict())
    gm = fx_oto.prepare(net, X)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(gm.eval()(X), net(X))


class Queue(nn.Module):
    """Writes what it computes into a queue, at a place that it counts on, as contrastive learning does."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("queue", torch.randn(9, 3))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        y = self.b(self.a(x).relu())
        scores = y @ self.queue.clone().T
        with torch.no_grad():
            place = int(self.place)
            self.queue[place : place + 3] = y
            self.place[0] = (place + 3) % 9
        return scores


def test_a_place_that_calls_write_is_told():
    net = Queue()
    with pytest.warns(fx_oto.FxOtoWarning, match=r"decides by 'place', which calls of the model write .*Train the mod"):
        gm = fx_oto.prepare(net, X)
    expected = copy.deepcopy(net)(X)
    torch.testing.assert_close(gm(X), expected)
    with pytest.raises(AssertionError, match="the graph was captured where this was 0"):
        gm(X)
    assert net(X).shape == (3, 9)
