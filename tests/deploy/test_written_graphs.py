"""A module whose code does not fit gets the compact graph of itself, whatever it is given and returns."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.exactness import randomise
from torch import nn

import fx_oto
from fx_oto.core.differences import relative_error

TOKENS = torch.randn(2, 6, 12, dtype=torch.float64)
WIDTH = 16


class Fixed(nn.Module):
    """Spells out the grid of its heads."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("position", torch.randn(6, WIDTH))

    def mixed(self, x):
        heads = self.up(x * self.position).view(x.size(0), -1, 4, 4).transpose(1, 2)
        return self.down(((heads @ heads.mT).softmax(-1) @ heads).transpose(1, 2).flatten(2))

    def forward(self, x):
        return self.mixed(x)


class Outer(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.first, self.inside, self.last = nn.Linear(12, WIDTH), inside, nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.last(self.inside(self.first(x)))


def written(model, inputs=TOKENS):
    model = randomise(model.eval()).double()
    gm = fx_oto.prepare(model, inputs)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    small = fx_oto.compress(gm)
    result = fx_oto.write_back(small, model)
    for copied in (result, copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        for batch in (inputs, torch.randn(5, *inputs.shape[1:], dtype=inputs.dtype)):
            assert relative_error(small(batch), copied(batch)) <= 1e-10
    return result, {one.module for one in fx_oto.WriteBack.of(result).graphs}


def test_a_buffer_that_was_cut_stays_a_buffer():
    result, graphs = written(Outer(Fixed()))
    assert graphs == {"inside"}
    assert result.inside.position.shape == (6, 8)
    assert not [name for name in result.state_dict() if "fx_oto" in name]


class TwoOutputs(Fixed):
    def forward(self, x, scale=2.0, *, extra=None):
        mixed = self.mixed(x) * scale
        return {"mixed": mixed, "others": (mixed * 2, [None, x])}


class ReadsTwo(Outer):
    def forward(self, x):
        found = self.inside(self.first(x), extra=None)
        return self.last(found["mixed"] + found["others"][1][1]) + self.last(found["others"][0])


def test_containers_come_back_and_the_signature_stays():
    result, graphs = written(ReadsTwo(TwoOutputs()))
    assert graphs == {"inside"}
    assert list(inspect.signature(result.inside.forward).parameters) == ["x", "scale", "extra"]
    with pytest.raises(fx_oto.InputError, match=r"scale was 2\.0"):
        result.inside(torch.zeros(2, 6, 8, dtype=torch.float64), 3.0)


class OfParts(Fixed):
    def forward(self, parts, length, factor):
        left, right = parts["both"]
        return self.mixed(left + right) * factor / length


class GivesParts(Outer):
    def forward(self, x):
        h = self.first(x)
        return self.last(self.inside({"both": (h, F.relu(h))}, x.shape[1], factor=2))


def test_nested_arguments_and_numbers():
    result, graphs = written(GivesParts(OfParts()))
    assert graphs == {"inside"}
    assert type(result.inside) is OfParts


class Given(Fixed):
    """Is given a table, or a weight, and first to read it."""

    def forward(self, x, table, weight):
        return self.mixed(x * table.tanh()) * weight


class GivesTensors(Outer):
    """Gives what it holds, the first time or not."""

    def __init__(self, first):
        super().__init__(Given())
        self.again, self.read_first = Given(), first
        self.register_buffer("table", torch.randn(6, WIDTH))
        self.weight = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x):
        h = self.first(x)
        h = h + self.table * self.weight if self.read_first else h
        return self.last(self.again(self.inside(h, self.table, self.weight), table=self.table, weight=self.weight))


@pytest.mark.parametrize("first", [False, True])
def test_what_another_module_holds_is_an_argument(first):
    result, graphs = written(GivesTensors(first))
    assert graphs == {"inside", "again"}
    assert (result.table.shape, result.weight.shape) == ((6, 8), (8,))
    assert not [name for name, _ in result.named_buffers() if "fx_oto" in name]


class ReshapesLater(Outer):
    """Reshapes what was computed before, by sizes that the compact graph checks."""

    def forward(self, x):
        grid = (F.relu(self.inside(self.first(x))) + 1).reshape(x.size(0), x.size(1) // 3, 3, -1)
        return self.last(grid.mean(2))


def test_checks_of_what_is_computed_later_stay_outside():
    result, graphs = written(ReshapesLater(Fixed()))
    assert graphs == {"inside"}
    assert type(result).forward is ReshapesLater.forward


class ReadsOutside(Fixed):
    """Reads what its caller has left on it."""

    def forward(self, x):
        return self.mixed(x) + self.seen


class Leaves(Outer):
    def forward(self, x):
        h = self.first(x)
        self.inside.seen = h.sum(-1, keepdim=True)
        out = self.inside(h)
        del self.inside.seen
        return self.last(out)


def test_what_cannot_be_cut_out_alone_takes_the_module_around_it():
    result, graphs = written(nn.Sequential(nn.Linear(12, 12), Leaves(ReadsOutside())))
    assert graphs == {"1"}
    assert type(result[1]) is Leaves
    assert type(result[1].inside) is ReadsOutside


class Shared(Outer):
    def forward(self, x):
        h = self.first(x)
        return self.last(self.inside(h) + self.inside(F.relu(h)))


def test_one_graph_serves_all_calls_of_a_module():
    _, graphs = written(Shared(Fixed()))
    assert graphs == {"inside"}


class Doubles(Fixed):
    """Works on the statistics of a norm, in place, and in training otherwise."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x):
        h = self.mixed(x)
        if self.training:
            h = self.norm(h.mT).mT * 3
        h = h.clone()
        h[:, 0] = 0
        return F.dropout(h, 0.5, self.training)


def test_both_modes_and_writes_in_place():
    model = randomise(Outer(Doubles()).eval()).double()
    gm = fx_oto.prepare(model, TOKENS)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    small = fx_oto.compress(gm)
    result = fx_oto.write_back(small, model)
    assert {one.module for one in fx_oto.WriteBack.of(result).graphs} == {"inside"}
    for training in (False, True):
        both = []
        for one in (small, result):
            torch.manual_seed(2)
            both.append(one.train(training)(TOKENS))
        assert relative_error(*both) <= 1e-10
    norms = small.get_submodule("inside.norm"), result.inside.norm
    assert torch.equal(norms[0].running_mean, norms[1].running_mean)


def test_a_graph_moves_with_its_module():
    result, _ = written(Outer(Fixed()))
    half = copy.deepcopy(result).float()
    assert half(TOKENS.float()).dtype == torch.float32


class Gated(Fixed):
    """What channels that are gone contributed is in the graph, and must not be in a bias as well."""

    def __init__(self):
        super().__init__()
        self.gate, self.back = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        return self.mixed(x + self.back(torch.sigmoid(self.gate(x))))


def test_constants_are_added_once():
    result, graphs = written(Outer(Gated()))
    assert graphs == {"inside"}
    assert result.inside.back.bias is None


class OfLength(Fixed):
    """Spells out how long its tokens are."""

    def forward(self, x):
        heads = self.up(x).reshape(-1, 6 * 4, 4)
        return self.down(heads.relu().reshape(-1, 6, 16))


class OfBatch(Fixed):
    """Spells out the batch as well."""

    def forward(self, x):
        heads = self.up(x).view(2, 6, 4, 4).transpose(1, 2)
        return self.down(((heads @ heads.mT).softmax(-1) @ heads).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", [OfLength, OfBatch])
def test_other_sizes_are_as_in_the_compact_graph(kind):
    model = randomise(Outer(kind()).eval()).double()
    gm = fx_oto.prepare(model, TOKENS)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    small = fx_oto.compress(gm)
    result = fx_oto.write_back(small, model)
    assert [one.module for one in fx_oto.WriteBack.of(result).graphs] == ["inside"]
    for shape in ((2, 12, 12), (4, 6, 12), (1, 12, 12)):
        inputs = torch.randn(*shape, dtype=torch.float64)
        try:
            expected = model(inputs)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                result(inputs)
        else:
            assert relative_error(expected, result(inputs)) <= 1e-10


class Gathered(Fixed):
    """Goes another way where it is given few tokens."""

    def forward(self, x):
        return self.mixed(x) if x.shape[1] > 4 else self.down(x)


def test_what_the_code_decides_by_sizes_is_checked():
    result, graphs = written(Outer(Gathered()))
    assert graphs == {"inside"}
    with pytest.raises(AssertionError, match="the graph was captured where"):
        result.inside(torch.randn(2, 3, 8, dtype=torch.float64))
