"""The union-find and the label algebra against plain, slow references."""

from __future__ import annotations

import itertools
import math

import networkx as nx
import torch
from hypothesis import given
from hypothesis import strategies as st

from fx_oto.analysis.atoms import Atoms
from fx_oto.analysis.labels import Layer, compress, reshape, varying

PAIRS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=60)


@given(PAIRS, PAIRS)
def test_classes_are_connected_components(first, second):
    atoms = Atoms()
    atoms.fresh(40)
    graph = nx.Graph()
    graph.add_nodes_from(range(1, 41))
    for pairs in (first, second):  # unions after a root was asked for must count as well
        graph.add_edges_from(pairs)
        if pairs:
            atoms.unite(*torch.tensor(pairs).T)
        roots = atoms.find(torch.arange(1, 41)).tolist()
        for component in nx.connected_components(graph):
            assert {roots[atom - 1] for atom in component} == {min(component)}


def test_a_long_chain_in_the_worst_order():
    atoms = Atoms()
    chain = atoms.fresh(5000)
    atoms.unite(chain.flip(0)[1:], chain.flip(0)[:-1])
    assert atoms.find(chain).unique().tolist() == [1]
    assert int(atoms.fresh(1)) == 5001
    assert atoms.roots()[5001] == 5001


def test_atom_zero_is_alone():
    atoms = Atoms()
    atoms.unite(atoms.fresh(3), torch.tensor([1, 1, 1]))
    assert atoms.roots().tolist() == [0, 1, 1, 1]


@st.composite
def reshapes(draw):
    factors = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))

    def grouped():
        cuts = sorted(draw(st.sets(st.integers(1, len(factors)), max_size=len(factors))) | {0, len(factors)})
        shape = [math.prod(factors[i:j]) for i, j in itertools.pairwise(cuts)]
        at = draw(st.integers(0, len(shape)))
        return shape[:at] + [1] * draw(st.integers(0, 2)) + shape[at:]

    old, new = grouped(), grouped()
    varies = [draw(st.booleans()) for _ in old]
    return old, new, varies


@given(reshapes())
def test_reshaped_labels_are_the_reshape_of_full_labels(case):
    old, new, varies = case
    small = [size if v else 1 for size, v in zip(old, varies, strict=True)]
    labels = torch.arange(math.prod(small)).view(small)
    found = reshape(labels, old, new)
    assert torch.equal(found.expand(new), labels.expand(old).reshape(new))
    assert found.shape == compress(labels.expand(old).reshape(new)).shape


def test_layers_know_where_they_vary():
    labels = torch.arange(6).view(1, 2, 3, 1)
    assert varying(labels) == (1, 2)
    moved = Layer(labels, torch.zeros(1, 1, 1, 1, dtype=torch.float64)).map(lambda t: t.permute(3, 2, 1, 0))
    assert moved.dims == (1, 2)
    assert moved.removed.shape == (1, 1, 1, 1)
