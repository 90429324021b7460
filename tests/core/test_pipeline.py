"""Passes run alone, in our pipeline and in torch.fx's; pipelines are values."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.fx.passes.infra.pass_manager import PassManager

import fx_oto
from fx_oto.api import default_pipeline
from fx_oto.pipeline import registered_passes

IMAGE = torch.randn(2, 3, 8, 8)


def make_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


@dataclass(frozen=True)
class NodeCount:
    count: int


class CountNodes(fx_oto.Analysis):
    name = "count-nodes"

    def analyse(self, gm, context):
        return NodeCount(len(gm.graph.nodes))


class SwapReLU(fx_oto.Pass):
    name = "swap-relu"

    def transform(self, gm, context):
        hits = [n for n in gm.graph.nodes if n.op == "call_module" and isinstance(gm.get_submodule(n.target), nn.ReLU)]
        for node in hits:
            with gm.graph.inserting_before(node):
                node.replace_all_uses_with(gm.graph.call_function(torch.tanh, node.args))
            gm.graph.erase_node(node)
        return gm if hits else None


class Broken(fx_oto.Pass):
    name = "broken"

    def transform(self, gm, context):
        raise IndexError("list index out of range")


def test_a_custom_analysis_is_found_by_its_type():
    gm = fx_oto.trace(make_net(), IMAGE)
    result = CountNodes()(gm)
    assert not result.modified
    assert fx_oto.Context.of(result.graph_module).get(NodeCount) == NodeCount(6)


def test_a_custom_transformation_leaves_its_input_alone_and_drops_results():
    gm = fx_oto.Pipeline((CountNodes(),)).run(fx_oto.trace(make_net(), IMAGE))
    code = gm.code
    result = SwapReLU()(gm)
    assert result.modified
    assert gm.code == code
    assert "tanh" in result.graph_module.code
    with pytest.raises(fx_oto.MissingResultError, match="no NodeCount is known"):
        fx_oto.Context.of(result.graph_module).get(NodeCount)
    assert not SwapReLU()(result.graph_module).modified


def test_a_custom_pass_runs_before_the_analysis_and_the_result_is_exact():
    pipeline = fx_oto.Pipeline((SwapReLU(), *default_pipeline()))
    model = make_net()
    gm = fx_oto.prepare(model, IMAGE, passes=pipeline)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    assert "tanh" in small.code
    assert small.get_submodule("0").out_channels == 4


def test_pipelines_are_values():
    pipeline = default_pipeline()
    longer = pipeline.insert_after("dependency-analysis", CountNodes())
    names = ["dependency-analysis", "zig-partition", "mask-insertion"]
    assert [stage.name for stage in pipeline] == names
    assert [stage.name for stage in longer] == [names[0], "count-nodes", *names[1:]]
    assert [stage.name for stage in longer.without("count-nodes")] == names
    with pytest.raises(
        fx_oto.PassError, match=r"no pass is called 'slicing'; this pipeline has dependency-analysis, zig"
    ):
        pipeline.without("slicing")


def test_without_masks_the_zero_variables_alone_say_what_goes():
    model = make_net()
    gm = fx_oto.prepare(model, IMAGE, passes=default_pipeline().without("mask-insertion"))
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    torch.testing.assert_close(small.eval()(IMAGE), model.eval()(IMAGE))


def test_the_default_passes_run_in_torch_fxs_pass_manager():
    gm = fx_oto.trace(make_net(), IMAGE)
    result = PassManager(passes=list(default_pipeline()))(gm)
    assert fx_oto.partition(result.graph_module).num_zigs == 8


def test_every_pass_is_recorded():
    seen = []
    pipeline = fx_oto.Pipeline(default_pipeline().stages, on_pass=seen.append)
    gm = fx_oto.prepare(make_net(), IMAGE, passes=pipeline)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    report = fx_oto.report(small)
    assert list(report.records[:3]) == seen
    assert [r.name for r in report.records[3:]] == ["physical-slicing", "verification"]
    sliced = report.records[3]
    assert sliced.params == tuple(sum(p.numel() for p in m.parameters()) for m in (gm, small))
    assert sliced.modified
    text = str(report)
    assert text.splitlines()[0].split() == ["pass", "seconds", "nodes", "parameters", "changed"]
    assert f"{sliced.params[0]} → {sliced.params[1]}" in text
    assert "<table>" in report._repr_html_()


def test_a_pass_that_fails_is_named():
    with pytest.raises(fx_oto.PassError, match=r"the pass 'broken' .* failed: IndexError: list index out of range"):
        fx_oto.prepare(make_net(), IMAGE, passes=fx_oto.Pipeline((Broken(),)))


def test_a_missing_prerequisite_is_named():
    with pytest.raises(fx_oto.MissingResultError, match="run the pass 'dependency-analysis' first"):
        fx_oto.prepare(make_net(), IMAGE, passes=default_pipeline().without("dependency-analysis"))


def test_registering():
    assert fx_oto.register_pass(CountNodes) is CountNodes
    assert registered_passes()["count-nodes"] is CountNodes
    with pytest.raises(fx_oto.PassError, match=r"'count-nodes' is registered already: CountNodes"):
        fx_oto.register_pass(type("Other", (CountNodes,), {}))
    with pytest.raises(fx_oto.PassError, match=r"Nameless needs a class attribute name"):
        fx_oto.register_pass(type("Nameless", (fx_oto.Analysis,), {}))


def test_a_partition_prints_itself():
    zigs = fx_oto.partition(fx_oto.prepare(make_net(), IMAGE))
    text = str(zigs)
    assert "8 zero-invariant groups in 1 families" in text
    assert "0.weight[0], 0.bias[0], 1.weight[0], 1.bias[0]" in text
    assert "it is part of the model's output" in text
    assert "<table>" in zigs._repr_html_()
    graph = zigs.to_networkx()
    assert graph.nodes["3.weight[0]"]["frozen"]
    assert graph.has_edge("0.weight[0]", "3.weight[1]")


def test_a_prepared_module_can_be_copied():
    gm = fx_oto.prepare(make_net(), IMAGE)
    twin = copy.deepcopy(gm)
    fx_oto.partition(twin).zero_(0.5)
    assert fx_oto.partition(gm).group_sparsity() == 0
    assert fx_oto.partition(twin).group_sparsity() == 0.5
    assert fx_oto.compress(twin).get_submodule("0").out_channels == 4


def test_a_second_round():
    model = make_net().double()
    small = model
    for width in (4, 2):
        gm = fx_oto.prepare(small, IMAGE.double())
        fx_oto.partition(gm).zero_(0.5)
        sparse = copy.deepcopy(gm).eval()
        small = fx_oto.compress(gm)
        assert small.get_submodule("0").out_channels == width
        torch.testing.assert_close(small.eval()(IMAGE.double()), sparse(IMAGE.double()), rtol=1e-10, atol=1e-12)


def test_unprunable_keeps_what_it_names_and_what_is_coupled_to_it():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.d = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.a(x)
            return self.d(x + self.c(torch.relu(self.b(x))))

    gm = fx_oto.prepare(Residual(), IMAGE, unprunable=["c"])
    zigs = fx_oto.partition(gm)
    assert [family.name for family in zigs.families] == ["b.weight"]
    reasons = {str(axis.reason) for axis in zigs.frozen if axis.tensor == "a.weight" and axis.dim == 0}
    assert reasons == {"unprunable: its name matches 'c'"}
