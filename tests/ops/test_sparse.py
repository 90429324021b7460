"""Products with sparse tensors: channels are cut, whatever the layout of what is given, held, or made on the way."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto

NODES, WIDTH = 8, 12
LAYOUTS = {
    "coo": torch.Tensor.to_sparse,
    "coalesced": lambda a: a.to_sparse().coalesce(),
    "csr": torch.Tensor.to_sparse_csr,
    "csc": torch.Tensor.to_sparse_csc,
    "bsr": lambda a: a.to_sparse_bsr((2, 2)),
}
PRODUCTS = {
    "torch.sparse.mm": torch.sparse.mm,
    "@": lambda a, x: a @ x,
    "mm": torch.mm,
    "addmm": lambda a, x: torch.sparse.addmm(x, a, x),
    "dense": lambda a, x: a.to_dense() @ x,
}
OF_COO = {
    "mv": lambda a, x: torch.mv(a, x.mean(1))[:, None] + x,
    "elements": lambda a, x: torch.zeros_like(x).index_add(0, a._indices()[0], x[a._indices()[1]]),
    "coalesced": lambda a, x: a.coalesce() @ x,
    "transposed": lambda a, x: a.t() @ x,
    "scaled": lambda a, x: (a * 0.5) @ x,
}


class Graph(nn.Module):
    """Two layers, between which ``product`` lets nodes see each other; what is not given is held, or made."""

    def __init__(self, product, adjacency=None, layout=None):
        super().__init__()
        self.a, self.b, self.product, self.layout = nn.Linear(10, WIDTH), nn.Linear(WIDTH, 3), product, layout
        self.register_buffer("adjacency", adjacency)

    def forward(self, x, adjacency=None):
        adjacency = self.adjacency if adjacency is None else adjacency
        adjacency = adjacency if self.layout is None else self.layout((x @ x.T).relu())
        return self.product(adjacency, self.b(self.product(adjacency, self.a(x)).relu()))


def edges(nodes):
    return (torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(nodes)) > 0.6).double()


def _cut(model, *inputs):
    """The compact model, and how many groups there were."""
    gm = fx_oto.prepare(model.double(), inputs)
    zigs = fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    return fx_oto.compress(gm), zigs.num_zigs


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_given(layout, product):
    model, nodes = Graph(PRODUCTS[product]), torch.randn(NODES, 10).double()
    small, zigs = _cut(model, nodes, LAYOUTS[layout](edges(NODES)))
    assert zigs == WIDTH
    assert small.a.out_features == WIDTH // 2
    for training in (False, True):
        for count in (NODES, 20, 6):
            x, a = torch.randn(count, 10).double(), LAYOUTS[layout](edges(count))
            torch.testing.assert_close(small.train(training)(x, a), model.train(training)(x, a))


@pytest.mark.parametrize("product", OF_COO)
def test_of_coordinates(product):
    model, x = Graph(OF_COO[product]), torch.randn(NODES, 10).double()
    small, zigs = _cut(model, x, edges(NODES).to_sparse())
    assert zigs == WIDTH
    torch.testing.assert_close(small(x, edges(NODES).to_sparse()), model(x, edges(NODES).to_sparse()))


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.filterwarnings("ignore:the graph takes")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_held(layout):
    model, x = Graph(torch.sparse.mm, LAYOUTS[layout](edges(NODES))), torch.randn(NODES, 10).double()
    small, zigs = _cut(model, x)
    assert zigs == WIDTH
    torch.testing.assert_close(small(x), model(x))
    assert small.adjacency.layout == model.adjacency.layout


@pytest.mark.parametrize("product", ["torch.sparse.mm", "@", "addmm"])
def test_made_on_the_way(product):
    model = Graph(PRODUCTS[product], layout=torch.Tensor.to_sparse)
    assert compress_half(model, torch.randn(NODES, 10)).zigs == WIDTH


def test_what_is_made_of_channels_is_kept_whole():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(10, WIDTH), nn.Linear(WIDTH, 3)

        def forward(self, x):
            return self.b(self.a(x).relu().to_sparse().to_dense())

    gm = fx_oto.prepare(Masked(), torch.randn(NODES, 10))
    assert fx_oto.partition(gm).num_zigs == 0
    assert "it is combined with a sparse tensor" in str(fx_oto.partition(gm).explain())


def test_gradients_and_a_file(tmp_path):
    model, x = Graph(torch.sparse.mm), torch.randn(NODES, 10).double()
    small, _ = _cut(model, x, edges(NODES).to_sparse())
    kept = torch.isin(model.a.bias, small.a.bias)
    for one in (model, small):
        one(x, edges(NODES).to_sparse()).square().sum().backward()
    torch.testing.assert_close(small.a.weight.grad, model.a.weight.grad[kept])
    fx_oto.save(small, tmp_path / "small.safetensors")
    loaded = fx_oto.load(tmp_path / "small.safetensors")
    torch.testing.assert_close(loaded(x, edges(NODES).to_sparse()), small(x, edges(NODES).to_sparse()))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(layout):
    given = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(5, 4)], layout=layout)
    with pytest.raises(fx_oto.InputError, match=r"found a nested tensor.*give torch\.nested\.to_padded_tensor"):
        fx_oto.prepare(nn.Linear(4, 8), given)


class Sequence(nn.Module):
    """It holds a sparse mask, and attends another way to a single place."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, WIDTH), nn.Linear(WIDTH, 3)
        self.register_buffer("heads", torch.eye(4, dtype=torch.bool).to_sparse(), persistent=False)

    def forward(self, x):
        q = self.a(x)[:, None]
        return self.b(nn.functional.scaled_dot_product_attention(q, q, q, is_causal=x.size(1) > 1)[:, 0])


def test_a_sparse_buffer_beside_a_size_that_may_be_one():
    done = compress_half(Sequence(), torch.randn(2, 5, 10))
    assert done.zigs == WIDTH
