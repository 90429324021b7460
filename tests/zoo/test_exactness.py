"""The paper's networks and torchvision's, half of every family zero: the compact model returns the same."""

from __future__ import annotations

import pytest
import torch
from support import networks
from support.exactness import compress_half, randomise

import fx_oto
from fx_oto.analysis.engine import FIXED

PLAIN = 0.40  # at most this share of the parameters is left of plain convolutional networks

# name: (builder, image size, largest share of parameters left)
PAPER = {
    "VGG16": (lambda: networks.VGG(norm=False), 32, PLAIN),
    "VGG16-BN": (networks.VGG, 32, PLAIN),
    "ResNet18": (networks.resnet18, 32, PLAIN),
    "ResNet50": (networks.resnet50, 32, PLAIN),
    "CARNx2": (networks.CARN, 12, PLAIN),
    "StackedUnets": (networks.StackedUnets, 32, PLAIN),
    "DemoNet": (networks.DemoNet, 32, PLAIN),
}

# name: (image size, largest share of parameters left, options)
TORCHVISION = {
    "alexnet": (64, PLAIN, {}),
    "vgg16": (32, PLAIN, {}),
    "vgg16_bn": (32, PLAIN, {}),
    "resnet18": (64, PLAIN, {}),
    "resnet50": (64, PLAIN, {}),
    "densenet121": (64, PLAIN, {}),
    "convnext_tiny": (64, PLAIN, {}),
    "squeezenet1_1": (64, PLAIN, {}),
    "resnext50_32x4d": (64, PLAIN, {}),
    "wide_resnet50_2": (64, PLAIN, {}),
    "mobilenet_v2": (64, PLAIN, {}),
    "mobilenet_v3_large": (64, PLAIN, {}),
    "mnasnet1_0": (64, PLAIN, {}),
    "shufflenet_v2_x1_0": (64, PLAIN, {}),
    "efficientnet_b0": (64, PLAIN, {}),
    "efficientnet_v2_s": (64, PLAIN, {}),
    "regnet_x_400mf": (64, PLAIN, {}),
    "regnet_y_400mf": (64, PLAIN, {}),
    "googlenet": (64, PLAIN, {}),
    "googlenet without auxiliary heads": (64, PLAIN, {"aux_logits": False}),
    "inception_v3": (299, PLAIN, {}),
    "inception_v3 without auxiliary heads": (96, PLAIN, {"aux_logits": False}),
    "fcn_resnet50": (64, PLAIN, {"aux_loss": True}),
    "deeplabv3_resnet50": (64, PLAIN, {}),
    "lraspp_mobilenet_v3_large": (64, PLAIN, {}),
}


# All that is kept whole in these networks: inputs, outputs, and what whole groups of a convolution leave complete.
REASONS = {
    FIXED,
    "it is part of the model's output",
    "training and evaluation return different things here",
    "whole groups of the convolution can go, so each group keeps all its channels",
}


def check(model, size, dtype, limit):
    result = compress_half(model, torch.randn(2, 3, size, size), dtype, sizes=int(dtype == torch.float64))
    assert result.params_left <= limit
    for axis in fx_oto.partition(result.gm).frozen:
        assert axis.reason.why in REASONS, axis
        assert axis.reason.node, axis


BOTH = [
    pytest.param(torch.float64, id="float64"),
    pytest.param(torch.float32, id="float32", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("name", PAPER)
def test_paper(name, dtype):
    build, size, limit = PAPER[name]
    check(build(), size, dtype, limit)


# Of what is like another of these, but takes long.
LONG = {"vgg16", "vgg16_bn", "inception_v3", "wide_resnet50_2", "efficientnet_v2_s", "fcn_resnet50"}
LONG |= {"deeplabv3_resnet50", "googlenet", "inception_v3 without auxiliary heads", "resnext50_32x4d", "mnasnet1_0"}


@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow if x in LONG else ()) for x in TORCHVISION])
def test_torchvision(name):
    from support.vision import build

    size, limit, options = TORCHVISION[name]
    check(build(name.split()[0], **options), size, torch.float64, limit)


IN_FLOAT32 = ("resnet18", "efficientnet_b0")


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x in IN_FLOAT32 else pytest.mark.slow) for x in TORCHVISION]
)
def test_torchvision_in_float32(name):
    from support.vision import build

    size, limit, options = TORCHVISION[name]
    check(build(name.split()[0], **options), size, torch.float32, limit)


@pytest.mark.parametrize(
    "name", ["resnet18", "shufflenet_v2_x1_0", pytest.param("convnext_tiny", marks=pytest.mark.slow)]
)
def test_exported_graph_has_the_same_groups_and_is_exact(name):
    from support.vision import build

    model = build(name).eval()
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    symbolic = fx_oto.partition(fx_oto.prepare(model, image.float())).num_zigs
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(model.double(), (image,), dynamic_shapes=dynamic).module()
    gm = fx_oto.prepare(exported, image)
    assert fx_oto.partition(gm).num_zigs == symbolic
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm)
    other = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(small(other), model(other), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", BOTH)
def test_a_vision_transformer_is_pruned_whole(dtype):
    """Nothing is kept but the image, the classes and the places of the tokens."""
    from support.vision import small_vit

    check(small_vit(), 224, dtype, 0.27)


@pytest.mark.parametrize(("name", "zigs"), [("swin_t", 19_242)])
def test_export_sees_into_wrapped_functions(name, zigs):
    """torchvision's windowed attention is a leaf for torch.fx; exported, its heads and its residual stream go."""
    from support.vision import build

    model = randomise(build(name).eval().double())
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    gm = fx_oto.prepare(torch.export.export(model, (image,), strict=False).module(), image)
    assert fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0)).num_zigs == zigs
    small = fx_oto.compress(gm)
    with torch.no_grad():
        torch.testing.assert_close(small(image), model(image), rtol=1e-10, atol=1e-10)
    assert sum(p.numel() for p in small.parameters()) < 0.27 * sum(p.numel() for p in model.parameters())


def test_language_model():
    model = networks.Decoder(vocabulary=64, width=32, layers=2, heads=4, key_heads=2, hidden=48)
    result = compress_half(model, torch.randint(0, 64, (2, 9)))
    assert result.params_left <= 0.35
    whole = {(axis.tensor, axis.dim) for axis in fx_oto.partition(result.gm).frozen}
    assert whole == {("embed.weight", 0), ("head.weight", 0)}
