"""What rewriting asks of a graph that it edits, and does to it."""

import operator

import pytest
import torch
from support.written import labelled, written

from fx_oto.core.errors import SlicingError
from fx_oto.ops.editor import Editor

SHAPE = (2, 8, 3)


def editor(body, gone=(1, 8), shape=SHAPE, **tensors):
    gm = written(body, shape, **tensors)
    return Editor(gm, labelled(gm, gone))


def test_kept_indices_by_dimension():
    edit = editor(lambda m, x: x.transpose(1, 2))
    assert {dim: index.tolist() for dim, index in edit.cut(edit.nodes["x"]).items()} == {1: [1, 2, 3, 4, 5, 6]}
    assert {dim: index.tolist() for dim, index in edit.cut(edit.nodes["transpose"]).items()} == {2: [1, 2, 3, 4, 5, 6]}
    assert edit.cut(8) == {}
    assert [edit.channels(edit.nodes["x"], dim) for dim in range(4)] == [2, 6, 3, 0]


def test_what_is_no_rectangle_has_dimensions_of_another_size():
    edit = editor(lambda m, x: x.view(2, 2, 4, 3))
    node = edit.nodes["view"]
    assert edit.is_lost(node)
    assert not edit.is_lost(edit.nodes["x"])
    assert edit.cut(node) == {}
    assert edit.cut_dims(node) == {1, 2}
    assert edit.cut_dims(edit.nodes["x"]) == {1}
    assert edit.cut_dims(4) == set()


def test_what_replaces_a_node_stands_for_it():
    edit = editor(lambda m, x: x.roll(1, 1).relu())
    old = edit.nodes["roll"]
    new = edit.replace(old, torch.mul, edit.nodes["x"], 2)
    assert edit.nodes["roll"] is new
    assert edit.analysed(new) == "roll"
    assert edit.cut(new)[1].tolist() == [2, 3, 4, 5, 6, 7]
    assert edit.shape(new) == torch.Size(SHAPE)
    assert edit.nodes["relu"].args == (new,)
    assert old not in list(edit.graph.nodes)
    again = edit.replace(new, torch.neg, edit.nodes["x"])
    assert edit.analysed(again) == "roll"
    assert edit.analysed(new) is None


def test_what_is_appended_is_read_in_the_place_of_a_node():
    edit = editor(lambda m, x: (x.relu(), x.relu() + 1))
    relu = edit.nodes["relu"]
    index = edit.constant("kept", torch.tensor([0, 1]), relu.next, relu)
    new = edit.append(relu, torch.index_select, 1, index)
    assert new.args == (relu, 1, index)
    assert list(relu.users) == [new]
    assert edit.analysed(new) is None
    edit.graph.lint()


def test_constants_are_buffers_of_their_own():
    edit = editor(lambda m, x: x.relu() + x.neg())
    first, second = (
        edit.constant("kept", torch.tensor([n]), edit.nodes[name], edit.nodes[name])
        for n, name in ((1, "relu"), (2, "neg"))
    )
    assert first.target != second.target
    assert dict(edit.gm.named_buffers()) == {first.target: torch.tensor([1]), second.target: torch.tensor([2])}
    edit.graph.lint()


def test_a_value_in_the_place_of_a_node():
    edit = editor(lambda m, x: x.view(x.size(0), x.size(1), -1))
    edit.substitute(edit.nodes["size_1"], 8)
    assert edit.nodes["view"].args == (edit.nodes["x"], edit.nodes["size"], 8, -1)
    assert "size_1" not in edit.nodes
    edit.graph.lint()


def test_arguments_by_position_and_by_name():
    edit = editor(lambda m, x: (x.roll(1, 1), x.roll(1, dims=1), x.roll(1)))
    for name, expected in (("roll", 1), ("roll_1", 1), ("roll_2", None)):
        assert edit.argument(edit.nodes[name], 2, "dims") == expected
    for name in ("roll", "roll_1"):
        edit.set_argument(edit.nodes[name], 2, "dims", 2)
    assert edit.nodes["roll"].args == (edit.nodes["x"], 1, 2)
    assert edit.nodes["roll_1"].kwargs == {"dims": 2}


def test_plain_arguments_are_computed_from_buffers_and_traced_sizes():
    edit = editor(lambda m, x: x[:, m.order.flip(0) - x.size(2)], order=torch.tensor([5, 4, 3]))
    entry = edit.nodes["getitem"].args[1][1]
    assert edit.plain(entry).tolist() == [0, 1, 2]
    assert edit.plain((slice(entry, 3), 7))[1] == 7


def test_a_node_runs_on_another_tensor():
    edit = editor(lambda m, x: torch.roll(x.roll(m.order.size(0), 1)[:, 1:], shifts=1, dims=1), order=torch.arange(2))
    line = torch.arange(4)[None]
    assert edit.run(edit.nodes["roll"], line).tolist() == [[2, 3, 0, 1]]
    assert edit.run(edit.nodes["getitem"], line).tolist() == [[1, 2, 3]]
    assert edit.run(edit.nodes["roll_1"], line).tolist() == [[3, 0, 1, 2]]


def test_a_refusal_names_the_node_and_says_what_to_do():
    edit = editor(lambda m, x: operator.neg(x))
    error = edit.refuse(edit.nodes["neg"], "for a reason")
    assert isinstance(error, SlicingError)
    with pytest.raises(SlicingError, match=r"node 'neg' .* for a reason; keep what feeds it whole with unprunable="):
        raise error
