"""``check_pass`` finds each broken promise, and nothing in a pass that keeps them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fx_oto
from fx_oto.testing import check_pass, randomise

IMAGE = torch.randn(2, 3, 8, 8)


def make_net():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Identity(), nn.Conv2d(8, 4, 3)
    )
    return randomise(net)


def drop(gm, kind):
    modules = dict(gm.named_modules())
    found = [node for node in gm.graph.nodes if isinstance(modules.get(node.target), kind)]
    for node in found:
        node.replace_all_uses_with(node.args[0])
        gm.graph.erase_node(node)
    return gm if found else None


@fx_oto.transformation_pass
def drop_identity(gm):
    return drop(gm, nn.Identity)


@fx_oto.transformation_pass
def drop_relu(gm):
    return drop(gm, nn.ReLU)


@fx_oto.transformation_pass
def drop_dropout(gm):
    return drop(gm, nn.Dropout)


@fx_oto.transformation_pass
def scale_shared_weights(gm):
    gm.get_submodule("0").weight.data.mul_(1.5)  # behind the back of the count of writes
    return gm


@fx_oto.transformation_pass
def change_shared_module(gm):
    gm.get_submodule("0").padding = (1, 1)


@fx_oto.transformation_pass
def never_done(gm):
    out = gm.graph.output_node()
    with gm.graph.inserting_before(out):
        out.replace_input_with(out.args[0], gm.graph.call_function(torch.clone, (out.args[0],)))
    return gm


@fx_oto.transformation_pass
def by_chance(gm):
    out = gm.graph.output_node()
    with gm.graph.inserting_before(out):
        noise = torch.rand(()).item() * 1e-30
        out.replace_input_with(out.args[0], gm.graph.call_function(torch.add, (out.args[0], noise)))
    return gm


def test_a_pass_that_keeps_its_promises():
    made = check_pass(drop_identity, make_net(), IMAGE)
    assert "4" not in {node.target for node in made.graph.nodes}
    assert made(IMAGE.double()).dtype == torch.float64
    assert check_pass(drop_relu, make_net(), IMAGE, same_outputs=False) is not None
    assert check_pass(drop_dropout, make_net(), IMAGE, modes=["eval"]) is not None


DIFFER = r"Greatest absolute difference: \d[\d.e-]+ at index .* \(up to 1e-12 allowed\)"


@pytest.mark.parametrize(
    ("stage", "promise", "remedy"),
    [
        (drop_relu, f"keeps the outputs in eval mode; found: .*{DIFFER}", "same_outputs=False"),
        (drop_dropout, f"keeps the outputs in train mode; found: .*{DIFFER}", "or other modes"),
        (
            scale_shared_weights,
            r"leaves the tensors that it is given as they were; found: .* for item \['0.weight'\]",
            "change nothing but the graph",
        ),
        (never_done, "changes nothing when it is run again on its own result", "None if there was nothing to change"),
        (by_chance, "does the same each time", "let nothing depend on random numbers"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_broken_promises_are_named_with_number_and_remedy(stage, promise, remedy):
    with pytest.raises(
        AssertionError, match=f"the pass {stage.name!r} breaks a promise: a pass {promise}.*; .*{remedy}"
    ):
        check_pass(stage, make_net(), IMAGE)


def test_a_pass_that_changes_a_shared_module_is_refused():
    with pytest.raises(fx_oto.PassError, match=r"'change-shared-module' set '0.padding'.* it is put back"):
        check_pass(change_shared_module, make_net(), IMAGE)


def test_the_users_model_is_left_alone():
    net = make_net()
    gm = fx_oto.prepare(net, IMAGE)
    text, records = str(gm), fx_oto.report(gm).records
    check_pass(drop_identity, gm)
    assert str(gm) == text
    assert fx_oto.report(gm).records == records
    assert gm.get_submodule("0").weight.dtype == torch.float32


def test_inputs_are_asked_for():
    with pytest.raises(fx_oto.InputError, match=r"check_pass needs example inputs, such as torch.randn"):
        check_pass(drop_identity, make_net())


def test_a_model_that_writes_into_its_input_is_compared_on_the_same_numbers():
    class Doubling(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(x.mul_(2))

    x = torch.randn(3, 4)
    before = x.clone()
    check_pass(fx_oto.DependencyAnalysis(), randomise(Doubling()), x)
    assert torch.equal(x, before)
