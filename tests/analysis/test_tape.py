"""The recorded calls: what each says of itself, what is left out, and what they cost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fx_oto
from fx_oto.analysis.recording import record_tape
from fx_oto.analysis.tape import OpCall, Tape
from fx_oto.core.context import ExampleInputs

ATEN = torch.ops.aten


@torch.library.custom_op("fx_oto_tests::on_tape", mutates_args=())
def on_tape(x: torch.Tensor) -> torch.Tensor:
    """An op of a user's."""
    return x.clone()


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.a, self.function = nn.Linear(4, 6), function

    def forward(self, x):
        return self.function(self.a(x))


def tape_of(function, x=None):
    x = torch.randn(2, 4) if x is None else x
    gm = fx_oto.trace(Function(function), x)
    return gm, record_tape(gm, ExampleInputs.of(x))


def names(tape):
    return [call.name for call in tape.calls]


def call(func, *args, outputs=(), **kwargs):
    return OpCall("n", func, args, kwargs, tuple(outputs))


def test_a_call_knows_its_arguments_by_the_names_of_the_schema():
    x, bound = torch.zeros(2, 3), torch.zeros(3)
    made = call(ATEN.clamp.Tensor, x, max=bound, outputs=[x])
    assert (made.name, made.out) == ("clamp", x)
    assert made.arg("self") is x
    assert made.arg("max") is bound
    assert made.arg("min") is None
    assert [id(one) for one in made.inputs] == [id(x), id(bound)]
    with pytest.raises(KeyError, match="has no argument 'minimum'"):
        made.arg("minimum")


def test_an_ops_own_namespace_is_part_of_its_name_but_for_atens():
    assert call(ATEN.neg.default).name == "neg"
    assert call(torch.ops.fx_oto_tests.on_tape.default).name == "fx_oto_tests::on_tape"


def test_the_numbers_of_a_call_are_those_that_do_not_say_which_dimension_is_meant():
    x = torch.zeros(4, 6)
    assert call(ATEN.slice.Tensor, x, 1, 2, 5).numbers[1:] == [2, 5]
    assert call(ATEN.sum.dim_IntList, x, [0, 1], True).numbers[1:] == [True]
    assert call(ATEN.view.default, x, [3, 8]).numbers[1:] == [3, 8]


def test_only_what_the_schema_marks_is_written():
    x, y, out = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    assert not call(ATEN.add.Tensor, x, y).mutates
    assert call(ATEN.add.Tensor, x, y).written == []
    for made, target in ((call(ATEN.add_.Tensor, x, y), x), (call(ATEN.cos.out, x, out=out), out)):
        assert made.mutates
        assert len(made.written) == 1
        assert made.written[0] is target


def test_calls_are_kept_by_the_nodes_that_made_them():
    gm, tape = tape_of(lambda x: F.relu(x).view(3, 4))
    assert names(tape) == ["t", "addmm", "relu", "view"]
    assert [(name, [call.name for call in calls]) for name, calls, _ in tape.steps if calls] == [
        (node.name, made)
        for node, made in zip(
            [node for node in gm.graph.nodes if node.op.startswith("call_")],
            [["t", "addmm"], ["relu"], ["view"]],
            strict=True,
        )
    ]
    last = tape.steps[-2][0]
    assert tape.made_at(last) == tape.calls[-1:]
    assert all(node.meta["val"].shape == (3, 4) for node in gm.graph.nodes if node.name == last)


def test_calls_that_contribute_to_nothing_are_left_out_but_not_what_writes():
    """``tensor_split`` takes three slices, of which one is read; what nobody reads at all is called all the same."""
    assert names(tape_of(lambda x: torch.tensor_split(x, 3, 1)[0].relu())[1]).count("slice") == 1
    assert names(tape_of(lambda x: (torch.tensor_split(x, 3, 1), x)[1])[1]).count("slice") == 3
    _, tape = tape_of(lambda x: (x[:, :2].cos_(), x)[1])
    assert names(tape)[-2:] == ["slice", "cos_"]


def test_attention_is_recorded_as_products():
    _, tape = tape_of(lambda x: F.scaled_dot_product_attention(*(x.view(1, 1, 2, 6) for _ in range(3))))
    assert names(tape).count("bmm") == 2


def test_stand_ins_of_parameters_and_buffers_go_by_their_names():
    _, tape = tape_of(F.relu)
    assert set(tape.tensors) == {"a.weight", "a.bias"}
    addmm = next(one for one in tape.calls if one.name == "addmm")
    assert addmm.args[0] is tape.tensors["a.bias"]


def test_a_tape_is_of_the_graph_that_was_recorded():
    gm, tape = tape_of(F.relu)
    assert tape.is_of(gm)
    node = next(node for node in gm.graph.nodes if node.target is F.relu or "relu" in node.name)
    node.replace_all_uses_with(node.all_input_nodes[0])
    gm.graph.erase_node(node)
    assert not tape.is_of(gm)


def test_multiply_adds_are_counted_call_by_call():
    _, tape = tape_of(lambda x: x @ x.t())
    assert [one.macs for one in tape.calls if one.macs] == [2 * 4 * 6, 2 * 6 * 2]
    assert tape.macs == 48 + 24


def test_on_inputs_of_another_size_multiply_adds_are_those_of_the_example():
    """Recorded on 10 rows, told of the 2 of the example."""
    _, example = tape_of(lambda x: x @ x.t())
    gm, larger = tape_of(lambda x: x @ x.t(), torch.randn(10, 4))
    assert (larger.macs, example.macs) == (240 + 600, 72)
    told = larger.counted_as(example)
    assert told.macs == 72
    product = gm.graph.output_node().args[0].name
    assert told.on_example(product, 600) == 24
    assert told.on_example(product, 300) == 12
    assert larger.on_example(product, 600) == 600
    assert told.on_example(gm.graph.output_node().name, 0) == 0


def test_what_recurrences_cost_is_counted_too():
    x = torch.randn(2, 5, 4)
    tape = record_tape(fx_oto.trace(nn.LSTM(4, 6, batch_first=True), x), ExampleInputs.of(x))
    assert tape.macs == 2 * 5 * 4 * (4 * 6 + 6 * 6)


def test_a_tape_of_nothing_costs_nothing():
    assert Tape((), {}, {}).macs == 0
