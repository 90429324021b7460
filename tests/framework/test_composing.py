"""Pipelines are made of passes, of their names, of passes of torch.fx and of each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fx_oto

X = torch.randn(2, 4)


def _network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Identity(), nn.Linear(8, 2))


class DropIdentities(PassBase):
    """As torch.fx wants it."""

    def call(self, graph_module):
        modules = dict(graph_module.named_modules())
        found = [node for node in graph_module.graph.nodes if isinstance(modules.get(node.target), nn.Identity)]
        for node in found:
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
        return PassResult(graph_module, bool(found))


@fx_oto.transformation_pass
def relu_to_silu(gm):
    modules = dict(gm.named_modules())
    found = [node for node in gm.graph.nodes if isinstance(modules.get(node.target), nn.ReLU)]
    for node in found:
        gm.set_submodule(node.target, nn.SiLU())
    return gm if found else None


def test_a_pass_of_torch_fx():
    net = _network()
    pipeline = fx_oto.default_pipeline().insert_before("dependency-analysis", DropIdentities())
    assert next(iter(pipeline)).name == "drop-identities"
    gm = fx_oto.prepare(net, X, passes=pipeline)
    first = fx_oto.report(gm).records[0]
    assert (first.name, first.modified, first.nodes) == ("drop-identities", True, (6, 5))
    assert isinstance(net[2], nn.Identity)
    torch.testing.assert_close(gm(X), net(X))
    again = fx_oto.Pipeline((DropIdentities(),))(gm)
    assert not again.modified


def test_pipelines_nest_and_append():
    mine = fx_oto.Pipeline((DropIdentities(), relu_to_silu))
    whole = fx_oto.Pipeline((mine, fx_oto.default_pipeline()))
    names = ["drop-identities", "relu-to-silu", "dependency-analysis", "zig-partition", "mask-insertion"]
    assert [stage.name for stage in whole] == names
    assert whole == mine.append(fx_oto.default_pipeline())
    assert [stage.name for stage in mine.append(relu_to_silu)] == [*names[:2], "relu-to-silu"]
    assert [stage.name for stage in mine.replace("relu-to-silu", mine)] == ["drop-identities", *names[:2]]
    assert fx_oto.partition(fx_oto.prepare(_network(), X, passes=whole)).num_zigs == 8


def test_a_result_that_was_dropped_names_the_pass():
    gm = relu_to_silu(fx_oto.prepare(_network(), X)).graph_module
    text = r"the pass 'relu-to-silu' changed the graph and dropped it: run the pass 'zig-partition' again, or let"
    with pytest.raises(fx_oto.MissingResultError, match=rf"no Partition is known for this GraphModule, because {text}"):
        fx_oto.partition(gm)
    with pytest.raises(
        fx_oto.MissingResultError, match=r"'mask-insertion' needs Dependencies, .* 'relu-to-silu' changed"
    ):
        fx_oto.MaskInsertion()(gm)
    prepared = fx_oto.default_pipeline().run(gm)
    assert fx_oto.partition(prepared).num_zigs == 8


@fx_oto.transformation_pass
def fold_batch_norms(gm):
    modules = dict(gm.named_modules())
    found = [node for node in gm.graph.nodes if isinstance(modules.get(node.target), nn.BatchNorm2d)]
    for node in found:
        before = node.args[0]
        name = f"{before.target.replace('.', '_')}_folded"
        gm.add_submodule(name, fuse_conv_bn_eval(modules[before.target].eval(), modules[node.target].eval()))
        with gm.graph.inserting_after(node):
            node.replace_all_uses_with(gm.graph.call_module(name, before.args))
        gm.graph.erase_node(node)
        gm.graph.erase_node(before)
    return gm if found else None


def test_modules_that_no_node_calls_leave_at_once():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = torch.randn(2, 3, 8, 8)
    gm = fold_batch_norms(fx_oto.trace(net.eval(), x)).graph_module
    weights, norm = 8 * 3 * 9, 2 * 8
    assert fx_oto.report(gm).records[0].params == (weights + norm + 292, weights + 8 + 292)
    assert [name for name, _ in gm.named_parameters()] == ["2.weight", "2.bias", "0_0_folded.weight", "0_0_folded.bias"]
    assert len(net[0]) == 2
    torch.testing.assert_close(gm(x), net(x))
