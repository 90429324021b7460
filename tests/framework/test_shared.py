"""What a pass of the user's shares with the model stays as it was, whatever the pass does."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import fx_oto
from fx_oto.testing import check_pass


def _network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.5), nn.Conv2d(8, 4, 3))


IMAGE = torch.randn(2, 3, 8, 8)


def _drop(gm, node):
    node.replace_all_uses_with(node.args[0])
    gm.graph.erase_node(node)
    return gm


def _of(gm, kind):
    modules = dict(gm.named_modules())
    return next((node, modules[node.target]) for node in gm.graph.nodes if isinstance(modules.get(node.target), kind))


CHANGES = {
    "1.training": lambda module: module.eval(),
    "1.eps": lambda module: setattr(module, "eps", 1e-3),
    "1.seen": lambda module: setattr(module, "seen", True),
    "1._buffers": lambda module: module.register_buffer("more", torch.ones(1)),
    "1._forward_hooks": lambda module: module.register_forward_hook(lambda *_: None),
    "1._modules": lambda module: module.add_module("more", nn.ReLU()),
    "1.affine": lambda module: delattr(module, "affine"),
}


@pytest.mark.parametrize("place", CHANGES)
def test_what_is_set_on_a_shared_module_is_put_back_and_refused(place):
    @fx_oto.transformation_pass
    def drop_norm(gm):
        node, norm = _of(gm, nn.BatchNorm2d)
        CHANGES[place](norm)
        return _drop(gm, node)

    net = _network()
    before = {key: dict(value) if isinstance(value, dict) else value for key, value in vars(net[1]).items()}
    gm = fx_oto.trace(net, IMAGE)
    with pytest.raises(fx_oto.PassError, match=rf"'drop-norm' set '{place}' on a module .* it is put back"):
        drop_norm(gm)
    assert vars(net[1]) == before
    with pytest.raises(fx_oto.PassError, match=rf"set '{place}'"):
        check_pass(drop_norm, _network(), IMAGE, same_outputs=False)


def test_a_pass_that_fails_leaves_modules_as_they_were():
    @fx_oto.transformation_pass
    def stumble(gm):
        _of(gm, nn.Dropout)[1].eval()
        raise ValueError("no")

    net = _network()
    with pytest.raises(fx_oto.PassError, match=r"'stumble' .* failed: ValueError: no"):
        stumble(fx_oto.trace(net, IMAGE))
    assert net[3].training


def test_a_copy_may_be_changed():
    @fx_oto.transformation_pass
    def freeze_norm(gm):
        node, norm = _of(gm, nn.BatchNorm2d)
        gm.set_submodule(node.target, nn.BatchNorm2d(norm.num_features).eval())
        return gm

    net = _network()
    gm = freeze_norm(fx_oto.trace(net, IMAGE)).graph_module
    assert net[1].training
    assert not gm.get_submodule("1").training


@dataclass(frozen=True)
class Nodes:
    count: int


def test_an_analysis_that_edits_its_input_is_refused():
    @fx_oto.analysis_pass
    def count(gm) -> Nodes:
        _drop(gm, _of(gm, nn.Dropout)[0])
        return Nodes(len(gm.graph.nodes))

    with pytest.raises(
        fx_oto.PassError, match=r"'count' changed the graph that it was given.* An analysis must only read"
    ):
        count(fx_oto.trace(_network(), IMAGE))
