"""BatchNorm folded into the layer before it: the same outputs, and nothing folded that is read elsewhere."""

from __future__ import annotations

import pytest
import torch
from support.vision import build
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import fx_oto


def with_statistics(model):
    """Norms as after a training: statistics and weights that are no ones and zeros."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name, tensor in module.state_dict().items():
                if name == "running_var":
                    nn.init.uniform_(tensor, 0.5, 2)
                elif tensor.is_floating_point():
                    nn.init.normal_(tensor, 0.5, 0.2)
    return model.eval()


def norms(model):
    return [type(one) for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(("name", "left"), [("resnet18", 0), ("mobilenet_v3_small", 0), ("densenet121", 62)])
def test_networks(name, left):
    torch.manual_seed(0)
    model, x = with_statistics(build(name)), torch.randn(2, 3, 64, 64)
    gm = fx_oto.prepare(model, x).eval()
    fx_oto.partition(gm).zero_(0.5)
    small, folded = fx_oto.compress(gm), fx_oto.compress(gm, fold_batchnorm=True)
    assert len(norms(folded)) == left < len(norms(small)) == len(norms(model))
    for images in (x, torch.randn(3, 3, 96, 64)):
        torch.testing.assert_close(
            folded(images), model(images), rtol=1e-5, atol=1e-5 * model(images).abs().max().item()
        )
    names = [record.name for record in fx_oto.report(folded).records]
    assert names[-3:] == ["physical-slicing", "fold-batchnorm", "verification"]
    assert fx_oto.report(folded).records[-2].nodes[1] < fx_oto.report(folded).records[-2].nodes[0]
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in small.parameters())
    assert folded.state_dict().keys() < small.state_dict().keys() | {
        k.replace("weight", "bias") for k in small.state_dict()
    }


LAYERS = {
    "convolution": (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)),
    "in groups": (nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6, affine=False)),
    "mirrored padding": (nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)),
    "1-D": (nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 6, 3)), nn.BatchNorm1d(6)),
    "3-D": (nn.Sequential(nn.Unflatten(2, (2, 4)), nn.Conv3d(3, 6, 2)), nn.BatchNorm3d(6)),
    "transposed": (nn.ConvTranspose2d(3, 6, 3), nn.BatchNorm2d(6)),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(192, 6)), nn.BatchNorm1d(6)),
}
NOT_FOLDED = {
    "transposed in groups": (nn.ConvTranspose2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)),
    "linear over a sequence": (nn.Sequential(nn.Flatten(2), nn.Linear(64, 6)), nn.BatchNorm1d(3)),
    "statistics of each batch": (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
    "parametrized": (weight_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)),
    "something between": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), nn.BatchNorm2d(6)),
    "another type": (nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, track_running_stats=True)),
}


@pytest.mark.parametrize("name", [*LAYERS, *NOT_FOLDED])
def test_layers(name):
    torch.manual_seed(0)
    model = with_statistics(nn.Sequential(*{**LAYERS, **NOT_FOLDED}[name]))
    x = torch.randn(2, 3, 8, 8)
    gm = fx_oto.trace(model, x)
    folded = fx_oto.FoldBatchNorm()(gm)
    torch.testing.assert_close(folded.graph_module(x), model(x))
    assert folded.modified == (name in LAYERS)
    assert norms(folded.graph_module) == ([] if name in LAYERS else norms(model))
    torch.testing.assert_close(gm(x), model(x), rtol=0, atol=0)


class Twice(nn.Module):
    """One layer, or what a norm normalizes, is used once more."""

    def __init__(self, second):
        super().__init__()
        self.conv, self.norm, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), second
        self.alias = self.conv

    def forward(self, x):
        h = self.conv(x)
        return self.second(self, h, self.norm(h))


SECOND = {
    "what is normalized is read": lambda net, h, y: y + h,
    "the layer is called again": lambda net, h, y: net.conv(y),
    "under another name": lambda net, h, y: net.alias(y),
    "the weight is read": lambda net, h, y: y * net.conv.weight.mean(),
}


@pytest.mark.parametrize("name", SECOND)
def test_what_is_used_twice_stays(name):
    model, x = with_statistics(Twice(SECOND[name])), torch.randn(2, 3, 8, 8)
    result = fx_oto.FoldBatchNorm()(fx_oto.trace(model, x))
    assert not result.modified
    torch.testing.assert_close(result.graph_module(x), model(x))


def test_a_weight_that_is_tied_to_another_layer_s_stays_there():
    model, x = (
        with_statistics(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3))),
        torch.randn(2, 3, 8, 8),
    )
    model[2].weight = model[0].weight
    folded = fx_oto.FoldBatchNorm()(fx_oto.trace(model, x)).graph_module
    torch.testing.assert_close(folded(x), model(x))
    assert norms(folded) == []


def test_hooks_keep_their_place():
    model, x = with_statistics(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))), torch.randn(2, 3, 8, 8)
    seen = []
    model[0].register_forward_hook(lambda *call: seen.append(call))
    result = fx_oto.FoldBatchNorm()(fx_oto.trace(model, x))
    assert not result.modified


def test_training_mode_is_refused():
    gm = fx_oto.prepare(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)), torch.randn(2, 3, 8, 8)
    )
    fx_oto.partition(gm).zero_(0.5)
    with pytest.raises(fx_oto.SettingsError, match=r"in training mode.*call gm\.eval\(\) first"):
        fx_oto.compress(gm.train(), fold_batchnorm=True)
    assert norms(fx_oto.compress(gm.eval(), fold_batchnorm=True)) == []


def test_a_norm_that_trains_on_stays():
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))
    gm = fx_oto.trace(model, torch.randn(2, 3, 8, 8)).eval()
    gm.get_submodule("1").train()
    assert not fx_oto.FoldBatchNorm()(gm).modified
