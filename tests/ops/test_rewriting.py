"""Rewriting of single nodes, over labels that are written down: the same values, of what is left of the input."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.written import NEW, labelled, left_of, written

from fx_oto.core.errors import SlicingError
from fx_oto.core.fx_utils import op_name, tensor_leaves
from fx_oto.ops.rewriting import rewrite

SHAPE = (2, 8, 3)
ORDER = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
# Atoms of the 8 channels are 1 … 8: the first goes, the last goes, both stay, both go.
WAYS = [{1, 4}, {8, 5}, {2, 3, 7}, {1, 2, 3, 4, 5, 8}]


def unfolded(node, adjustment):
    raise AssertionError(f"nothing is folded into {node}")


def check(gm, gone, dim=1):
    """Rewrite a graph, and compare what it returns for what is left of an input with what is left of the result."""
    cuts, full, names = labelled(gm, gone, dim), copy.deepcopy(gm), [node.name for node in gm.graph.nodes]
    rewrite(gm, cuts, unfolded, {})
    gm.graph.lint()
    gm.recompile()
    source, output = names[0], next(node for node in full.graph.nodes if node.op == "output")
    x = torch.randn(next(iter(full.graph.nodes)).meta["val"].shape, dtype=torch.float64)
    results = tensor_leaves(gm(left_of(x, cuts.of_tensor(source))))
    expected = tensor_leaves(full(x))
    kept = cuts.of_value(output.name)
    assert len(results) == len(expected) == len(kept)
    for result, value, cut in zip(results, expected, kept, strict=True):
        torch.testing.assert_close(result, left_of(value, cut), rtol=0, atol=0)
    for node in gm.graph.nodes:
        if node.op == "output":
            noted = [tuple(one.shape) for one in tensor_leaves([read.meta["val"] for read in node.all_input_nodes])]
            assert noted == [tuple(one.shape) for one in tensor_leaves(results)][: len(noted)]
    return gm


def calls(gm):
    return [op_name(node) for node in gm.graph.nodes if node.op.startswith("call")]


MOVED = {
    "slice": lambda m, x: x[:, 2:7],
    "slice from the end": lambda m, x: x[:, -6:],
    "slice in steps": lambda m, x: x[:, ::2],
    "slice of everything": lambda m, x: x[:, :8],
    "slice behind an ellipsis": lambda m, x: x[..., 1:7, :],
    "slice and a new dimension": lambda m, x: x[:, None, 2:7, 0],
    "slice of another dimension": lambda m, x: x[:, :, 1:],
    "list": lambda m, x: x[:, [5, 0, 7, 5]],
    "index in a buffer": lambda m, x: x[:, m.order],
    "index of several dimensions": lambda m, x: x[:, [[0, 7, 5], [3, 4, 5]]],
    "narrow": lambda m, x: x.narrow(1, 2, 5),
    "narrow to everything": lambda m, x: x.narrow(1, 0, 8),
    "narrow of another dimension": lambda m, x: x.narrow(2, 1, 2),
    "narrow to nothing of another dimension": lambda m, x: torch.cat([x.narrow(0, 0, 0), x]),
    "roll": lambda m, x: x.roll(3, 1),
    "roll of another dimension": lambda m, x: x.roll(1, 2),
    "roll by nothing": lambda m, x: x.roll(0, 1),
    "index_select": lambda m, x: torch.index_select(x, 1, m.order),
    "index_select of everything": lambda m, x: x.index_select(1, m.same),
    "index_select of one that stays, many times": lambda m, x: x.index_select(1, m.order[6:7].repeat(8)),
    "index_select of one that stays, three times": lambda m, x: x.index_select(1, m.order[6:7].repeat(3)),
    "list of one that stays, many times": lambda m, x: x[:, [5, 5, 5]],
    "index_select of another dimension": lambda m, x: x.index_select(2, m.order[4:5] - 5),
    "channel_shuffle": lambda m, x: torch.channel_shuffle(x, 4),
    "channel_shuffle of one group": lambda m, x: torch.channel_shuffle(x, 1),
    "select of another dimension": lambda m, x: x.select(2, 1),
}


@pytest.mark.parametrize("gone", WAYS, ids=str)
@pytest.mark.parametrize("name", MOVED)
def test_moved_along_the_cut_dimension(name, gone):
    check(written(MOVED[name], SHAPE, order=ORDER, same=torch.arange(8)), gone)


# Of a dimension of 3; nothing moves, as long as it is no longer.
ALL_OF_ANOTHER = {
    "narrow": lambda m, x: x.narrow(2, 0, 3),
    "torch.narrow": lambda m, x: torch.narrow(x, -1, 0, 3),
    "narrow of the batch": lambda m, x: x.narrow(0, 0, 2),
    "roll": lambda m, x: x.roll(3, 2),
    "index_select": lambda m, x: x.index_select(2, m.same[:3]),
    "split": lambda m, x: x.split(3, 2)[0],
    "slice": lambda m, x: x[..., :3],
}


@pytest.mark.parametrize("gone", WAYS, ids=str)
@pytest.mark.parametrize("name", ALL_OF_ANOTHER)
def test_what_takes_all_of_another_dimension_may_take_less_of_a_longer_one(name, gone):
    gm = written(ALL_OF_ANOTHER[name], SHAPE, same=torch.arange(8))
    cuts, full = labelled(gm, gone), copy.deepcopy(gm)
    rewrite(gm, cuts, unfolded, {})
    gm.recompile()
    x, cut = torch.randn(4, 8, 5), cuts.of_tensor("x")
    torch.testing.assert_close(gm(left_of(x, cut)), left_of(full(x), cut), rtol=0, atol=0)


def test_what_counts_the_cut_dimension_and_another_is_refused():
    gm = written(lambda m, x: x.roll((8, 3), (1, 2)), SHAPE)
    with pytest.raises(SlicingError, match="counts what it moves along a cut dimension, and along another"):
        rewrite(gm, labelled(gm, {1, 4}), unfolded, {})


SPLIT = {
    "split": lambda m, x: x.split(4, 1),
    "split with a rest": lambda m, x: torch.split(x, 3, dim=1),
    "split of everything": lambda m, x: x.split([8], 1),
    "split into sizes": lambda m, x: x.split([2, 5, 1], 1),
    "chunk": lambda m, x: x.chunk(2, 1),
    "tensor_split": lambda m, x: x.tensor_split([3, 6], 1),
    "tensor_split into parts that overlap": lambda m, x: x.tensor_split([6, 2], 1),
    "hsplit": lambda m, x: torch.hsplit(x, 2),
    "split of another dimension": lambda m, x: x.split(2, 2),
}


@pytest.mark.parametrize("gone", WAYS[:-1], ids=str)
@pytest.mark.parametrize("name", SPLIT)
def test_split_along_the_cut_dimension(name, gone):
    def halves(m, x):
        parts = SPLIT[name](m, x)
        return parts[0], parts[0] if name == "split of everything" else parts[1]

    check(written(halves, SHAPE), gone)


@pytest.mark.parametrize("gone", [{1}, {8}, {4}, {4, 5}, {1, 8, NEW}, {NEW, NEW + 2}, {NEW + 1, NEW + 2, 8}], ids=str)
@pytest.mark.parametrize("amounts", [(1, 2), (2, 1), (0, 3), (3, 0)], ids=str)
def test_padding_of_the_cut_dimension(gone, amounts):
    """Of what is padded and of the padding the first or the last index goes, or stays."""
    check(written(lambda m, x: F.pad(x, (0, 0, *amounts)), SHAPE), gone)


def test_padding_of_another_dimension():
    gm = check(written(lambda m, x: F.pad(x, (1, 2)), SHAPE), {1, 8})
    assert calls(gm) == ["pad"]


@pytest.mark.parametrize("index", [0, 7, -1, 3])
@pytest.mark.parametrize("take", [lambda x, i: x[:, i], lambda x, i: x.select(1, i)], ids=["getitem", "select"])
def test_a_single_index_that_is_kept(take, index):
    check(written(lambda m, x: take(x, index), SHAPE), {2, 3, 6})


def test_a_view_stays_a_view_and_a_copy_a_copy():
    for take, shares in ((lambda m, x: x[:, 2:7], True), (lambda m, x: x[:, [2, 3, 4]], False)):
        gm = check(written(take, SHAPE), {1, 8})
        x = torch.randn(2, 6, 3)
        assert (gm(x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()) == shares


@pytest.mark.parametrize(
    "spelled", [lambda x: x.shape[1], lambda x: x.size(1), lambda x: x.size()[1], lambda x: x.size(dim=-2)]
)
def test_a_size_that_code_reads_is_the_original_one(spelled):
    gm = written(lambda m, x: (x, spelled(x)), SHAPE)
    rewrite(gm, labelled(gm, {1, 5}), unfolded, {})
    gm.recompile()
    assert gm(torch.randn(5, 6, 3))[1] == 8


def test_a_count_of_elements_is_the_original_one():
    gm = written(lambda m, x: (x, x.numel()), SHAPE)
    rewrite(gm, labelled(gm, {1, 5}), unfolded, {})
    gm.recompile()
    assert gm(torch.randn(5, 6, 3))[1] == 5 * 8 * 3


RESHAPED = {
    "view": lambda m, x: x.view(2, 8, 3, 1),
    "reshape with a size that torch finds": lambda m, x: x.reshape(-1, 8, 3, 1),
    "view_as": lambda m, x: x.view_as(x),
    "expand": lambda m, x: x[None].expand(4, 2, 8, 3),
    "unflatten of another dimension": lambda m, x: x.unflatten(2, (3, 1)),
}


@pytest.mark.parametrize("gone", WAYS, ids=str)
@pytest.mark.parametrize("name", RESHAPED)
def test_sizes_that_are_given(name, gone):
    check(written(RESHAPED[name], SHAPE), gone)


def test_a_created_dimension_is_cut_after_its_creation():
    gm = written(lambda m, x: x.new_ones(2, 8, 3), SHAPE)
    cuts = labelled(gm, {1, 5})
    cuts.found.values["new_ones"] = cuts.found.values["x"]
    rewrite(gm, cuts, unfolded, {})
    gm.recompile()
    assert gm(torch.randn(2, 6, 3)).shape == (2, 6, 3)


def test_what_nothing_cuts_stays_as_it_is():
    gm = written(lambda m, x: x[:, 2:5].roll(1, 1), SHAPE)
    before = str(gm.graph)
    rewrite(gm, labelled(gm, set()), unfolded, {})
    assert str(gm.graph) == before


def test_what_is_no_rectangle_and_is_read_is_refused():
    gm = written(lambda m, x: x.view(2, 2, 4, 3).relu(), SHAPE)
    with pytest.raises(SlicingError, match=r"'relu' .*what is left of it is no rectangle, but 'output' reads it"):
        rewrite(gm, labelled(gm, {1, 2}), unfolded, {})


def test_names_of_arguments():
    gm = check(written(lambda m, x: torch.narrow(input=x, dim=1, start=2, length=5), SHAPE), {1, 8})
    assert calls(gm) == ["getitem"]
    check(written(lambda m, x: torch.roll(input=x, shifts=1, dims=1), SHAPE), {1, 8})


def test_two_dimensions_that_are_cut():
    gm = written(lambda m, x: x[:, ::2, [2, 0]], SHAPE)
    cuts = labelled(gm, {1, 4})
    columns = labelled(gm, {1}, dim=2)
    values = cuts.found.values
    for name, layers in columns.found.values.items():
        values[name] = tuple(
            (*one, *(layer.map(lambda t: torch.where(t > 0, t + 20, t)) for layer in other))
            for one, other in zip(values[name], layers, strict=True)
        )
    cuts.keep[21] = False
    rewrite(gm, cuts, unfolded, {})
    gm.recompile()
    x = torch.randn(SHAPE)
    rows, left = torch.tensor([1, 2, 4, 5, 6, 7]), torch.tensor([1, 2])
    expected = x[:, [2, 4, 6]][:, :, [2]]
    torch.testing.assert_close(gm(x.index_select(1, rows).index_select(2, left)), expected, rtol=0, atol=0)
