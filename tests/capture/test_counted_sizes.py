"""Sizes that depend on numbers: code goes on where other numbers would not change what it asks."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import Tensor, nn

import fx_oto
from fx_oto.core.context import Context

NODES = torch.randn(6, 5)
EDGES = torch.tensor([[0, 1, 2, 2, 3, 5, 5], [1, 1, 0, 2, 4, 5, 3]]).t()
LOOPS_ONLY = torch.arange(6)[:, None].repeat(1, 2)
NO_LOOPS = torch.tensor([[0, 1, 2], [1, 2, 0]]).t()


class Graph(nn.Module):
    """Two layers of messages along the edges and one loop at each node."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, pairs: Tensor) -> Tensor:
        x = self.passed(self.first(x), pairs.t()).relu()
        return self.passed(self.second(x), pairs.t())

    def passed(self, x, edges):
        edges = self.with_loops(edges, len(x))
        if edges.size(0) != 2:
            raise ValueError("two rows")
        return torch.zeros_like(x).index_add(0, edges[1], x.index_select(0, edges[0]))

    def with_loops(self, edges, count):
        return torch.cat([edges[:, edges[0] != edges[1]], torch.arange(count).expand(2, -1)], 1)


class OfMask(Graph):
    def with_loops(self, edges, count):
        kept = torch.masked_select(torch.arange(edges.size(1)), edges[0] != edges[1])
        return torch.cat([edges.index_select(1, kept), torch.arange(count).repeat(2, 1)], dim=1)


class OfPlaces(Graph):
    def with_loops(self, edges, count):
        (kept,) = (edges[0] - edges[1]).nonzero(as_tuple=True)
        return torch.cat([edges[:, kept], torch.arange(count).expand(2, -1)], 1)


class OfRows(Graph):
    def with_loops(self, edges, count):
        rows = edges.t()[edges[0].ne(edges[1])]
        return torch.cat([rows, torch.arange(count)[:, None].expand(-1, 2)]).t()


class Unpacked(Graph):
    def passed(self, x, edges):
        edges = self.with_loops(edges, x.size(0))
        source, target = edges
        if source.numel() == 0 or edges.shape != (len(edges), target.shape[0]):
            return x
        out = x.new_zeros(x.size(0), x.size(-1))
        return out.scatter_add_(0, target.view(-1, 1).expand(-1, x.size(1)), x[source])


@pytest.mark.parametrize("kind", [*Graph.__subclasses__(), Graph])
def test_what_is_asked_of_other_sizes_does_not_stand_in_the_way(kind):
    others = [(torch.randn(9, 5), EDGES), (NODES, LOOPS_ONLY), (NODES, NO_LOOPS), (torch.randn(4, 5), NO_LOOPS)]
    found = compress_half(kind(), (NODES, EDGES), others=others, any_size=True)
    assert found.params_left < 0.6
    assert not Context.of(found.gm).capture.opaque


class Counted(Graph):
    """What it asks does depend on how many edges are left."""

    def with_loops(self, edges, count):
        edges = edges[:, edges[0] != edges[1]]
        return edges if self.says(edges) else torch.zeros_like(edges)


class Empty(Counted):
    def says(self, edges):
        return edges.numel() > 0


class Few(Counted):
    def says(self, edges):
        return edges.size(1) < 6


class Some(Counted):
    def says(self, edges):
        return len(edges[0]) > 1


class AsMany(Counted):
    def says(self, edges):
        return edges.shape[0] * 2 <= edges.shape[1]


class InThrees(Counted):
    def says(self, edges):
        return edges.shape[1] % 3 == 0


class JustThree(Counted):
    def says(self, edges):
        return edges.size(1) == 3


@pytest.mark.parametrize("kind", Counted.__subclasses__())
def test_what_is_asked_of_counted_sizes_is_asked_anew(kind):
    model = kind().double().eval()
    gm = fx_oto.trace(model, (NODES.double(), EDGES))
    assert Context.of(gm).capture.opaque
    for edges in (EDGES, LOOPS_ONLY, NO_LOOPS, EDGES.repeat(3, 1)):
        torch.testing.assert_close(gm(NODES.double(), edges), model(NODES.double(), edges))


class Repeated(nn.Module):
    """Sizes, or numbers, that depend on tensors which no layer has made."""

    def __init__(self, code):
        super().__init__()
        self.register_buffer("counts", torch.tensor([2, 1, 3]))
        self.first, self.second, self.last = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 8, 1), nn.Conv1d(8, 3, 1)
        self.code = code

    def forward(self, x):
        return self.last(self.code(self.second(self.first(x).relu()), self.counts))


def through_a_view(h, counts):
    counts = counts.clone()
    counts[:2].add_(1)
    return h.repeat_interleave(counts, 2)


def in_place(h, counts):
    counts = counts * 1
    counts += 2
    return h[..., counts.repeat_interleave(counts) > 3]


OF_BUFFERS = {
    "filled": lambda h, counts: h + h.new_full((h.size(1), 1), counts[2]),
    "full": lambda h, counts: h + torch.full((h.size(1), 1), counts[0], dtype=h.dtype),
    "repeated": lambda h, counts: h.repeat_interleave(counts, 2),
    "written through a view": through_a_view,
    "a mask of what was written": in_place,
}


@pytest.mark.parametrize("name", OF_BUFFERS)
def test_layers_are_not_run_at_other_sizes_for_numbers_that_do_not_depend_on_them(name, monkeypatch):
    model, inputs = Repeated(OF_BUFFERS[name]), torch.randn(2, 3, 12 if name == "a mask of what was written" else 3)
    run, batches = nn.Conv1d.forward, set()

    def noting(self, x):
        batches.update({len(x)} if type(x) is Tensor else ())
        return run(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv1d, "forward", noting)
        fx_oto.trace(model, inputs)
    assert batches == {2} or name in ("written through a view", "a mask of what was written")
    compress_half(model, inputs)
