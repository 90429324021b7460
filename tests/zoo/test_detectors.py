"""torchvision's detectors: pruned in parts, exact on other images, with their own losses, and of their own class."""

from __future__ import annotations

import pytest
import torch
from support.detectors import compressed_in_parts, differences, finds_something, images_of, of_torchvision
from support.exactness import randomise
from support.vision import torchvision_models
from torch import nn

models = torchvision_models()
if not hasattr(torch.ops.torchvision, "nms"):
    pytest.skip("this torchvision has no compiled operators, such as nms", allow_module_level=True)

SHARES = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": 0.45,
    "fasterrcnn_mobilenet_v3_large_fpn": 0.45,
    "fasterrcnn_resnet50_fpn": 0.36,
    "fasterrcnn_resnet50_fpn_v2": 0.28,
    "fcos_resnet50_fpn": 0.27,
    "keypointrcnn_resnet50_fpn": 0.33,
    "maskrcnn_resnet50_fpn": 0.36,
    "maskrcnn_resnet50_fpn_v2": 0.28,
    "retinanet_resnet50_fpn": 0.27,
    "retinanet_resnet50_fpn_v2": 0.27,
    "ssd300_vgg16": 0.27,
    "ssdlite320_mobilenet_v3_large": 0.29,
}
SLOW = set(SHARES) - {"ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"}


def detector(name, options):
    """A detector in float64 that finds something, whatever its weights are."""
    torch.manual_seed(0)
    classes = 2 if name.startswith("keypoint") else 4
    plain = {"weights": None, "weights_backbone": None, "num_classes": classes}
    return finds_something(randomise(models.get_model(name, **options, **plain).double()))


@torch.no_grad()
def calibrated(model, inputs):
    """Statistics of batch norms, taken from data: signals keep their scale."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train().momentum = 1.0
    model(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_var += 1e-3
    return model.eval()


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SHARES])
def test_exact_on_other_images_with_its_own_losses(name):
    parts, options = of_torchvision(name)
    example = images_of((64, 80), (72, 60))
    model = calibrated(detector(name, options), example)
    small, new = compressed_in_parts(model, example, parts)
    assert type(new) is type(model)
    for inputs in (example, images_of((90, 70), seed=1), images_of((50, 90), (96, 64), (70, 70), seed=2)):
        for training in (False, True)[: len(inputs[0])]:  # a batch norm in training takes no single number
            errors, numbers = differences(model, small, new, inputs, training)
            assert numbers > 10 or training
            wrong = {name: error for name, error in errors.items() if not error <= 1e-9}
            assert not wrong, (training, wrong)
    left = sum(p.numel() for p in new.parameters()) / sum(p.numel() for p in model.parameters())
    assert left < SHARES[name]
