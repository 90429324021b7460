"""Sums, means and maxima of rows of a table: its columns can go, its rows stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto

ROWS, WIDTH = 20, 12


class Net(nn.Module):
    """A bag of a table's rows, then two layers."""

    def __init__(self, call=lambda table, *given: table(*given), **options):
        super().__init__()
        self.table, self.b, self.c = nn.EmbeddingBag(ROWS, WIDTH, **options), nn.Linear(WIDTH, 5), nn.Linear(5, 3)
        self.call = call

    def forward(self, *given):
        return self.c(self.b(self.call(self.table, *given)).relu())


def rows(*shape):
    return torch.randint(0, ROWS, shape, generator=torch.Generator().manual_seed(sum(shape)))


CALLS = {
    "module": lambda table, i: table(i),
    "function": lambda table, i: F.embedding_bag(i, table.weight, mode=table.mode),
    "by name": lambda table, i: F.embedding_bag(weight=table.weight, input=i, mode=table.mode),
}


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("name", CALLS)
def test_rows_of_bags(name, padding, mode):
    torch.manual_seed(0)
    found = compress_half(Net(CALLS[name], mode=mode, padding_idx=padding), rows(4, 6), sensitive=False)
    assert found.zigs == WIDTH + 5
    if name == "module":
        assert found.small.table.embedding_dim == WIDTH // 2


OFFSETS = torch.tensor([0, 4, 9, 9, 20]), torch.tensor([0, 7, 16])


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("last", [False, True])
def test_offsets(last, mode):
    torch.manual_seed(0)
    model = Net(mode=mode, include_last_offset=last).double()
    gm = fx_oto.prepare(model, (rows(20), OFFSETS[0]))
    assert fx_oto.partition(gm).num_zigs == WIDTH + 5
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    for training in (False, True):
        for count, offsets in ((20, OFFSETS[0]), (16, OFFSETS[1]), (25, OFFSETS[1])):
            given = rows(count), offsets
            torch.testing.assert_close(small.train(training)(*given), model.train(training)(*given))


def test_weights_of_rows():
    torch.manual_seed(0)
    model = Net(lambda table, i, w: table(i, per_sample_weights=w), mode="sum")
    assert compress_half(model, (rows(4, 6), torch.rand(4, 6))).zigs == WIDTH + 5


@pytest.mark.parametrize("norm", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("bags", [False, True])
def test_rows_of_limited_length(bags, norm):
    torch.manual_seed(0)
    table = nn.EmbeddingBag if bags else nn.Embedding
    model = Net(lambda table, i: table(i) if bags else table(i).sum(1))
    model.table = table(ROWS, WIDTH, max_norm=0.5, norm_type=norm)
    assert compress_half(model, rows(4, 6), sensitive=False).zigs == WIDTH + 5


def test_what_is_learned_of_rows_is_kept_whole():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.a, self.b = nn.EmbeddingBag(ROWS, WIDTH, mode="sum"), nn.Linear(4, 6), nn.Linear(WIDTH, 3)

        def forward(self, i, x):
            return self.b(self.table(i, per_sample_weights=self.a(x)))

    found = compress_half(Weighted(), (rows(4, 6), torch.randn(4, 4)))
    assert found.zigs == WIDTH
    reasons = {axis.reason.why for axis in fx_oto.partition(found.gm).frozen if axis.tensor == "a.bias"}
    assert reasons == {"it tells how much of each row is taken"}
