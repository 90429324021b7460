"""torchvision's detectors: pruned in parts, exact on other images, with their own losses, and of their own class."""

from __future__ import annotations

import pytest
import torch
from support.detectors import compressed_in_parts, differences
from support.exactness import randomise
from support.vision import torchvision_models
from torch import nn

models = torchvision_models()
if not hasattr(torch.ops.torchvision, "roi_align"):
    pytest.skip("this torchvision has no compiled operators, such as nms", allow_module_level=True)

BOXES = ("backbone", "rpn.head", ("roi_heads.box_head", "roi_heads.box_predictor"))
MASKS = (*BOXES, ("roi_heads.mask_head", "roi_heads.mask_predictor"))
KEYPOINTS = (*BOXES, ("roi_heads.keypoint_head", "roi_heads.keypoint_predictor"))
ONE_STAGE = (("backbone", "head"),)
FEW = {"rpn_post_nms_top_n_test": 20, "rpn_post_nms_top_n_train": 30, "box_detections_per_img": 5}
SMALL = {"min_size": 64, "max_size": 96}
DETECTORS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": (BOXES, 0.45, FEW | SMALL),
    "fasterrcnn_mobilenet_v3_large_fpn": (BOXES, 0.45, FEW | SMALL),
    "fasterrcnn_resnet50_fpn": (BOXES, 0.36, FEW | SMALL),
    "fasterrcnn_resnet50_fpn_v2": (BOXES, 0.28, FEW | SMALL),
    "fcos_resnet50_fpn": (ONE_STAGE, 0.27, SMALL),
    "keypointrcnn_resnet50_fpn": (KEYPOINTS, 0.33, FEW | SMALL),
    "maskrcnn_resnet50_fpn": (MASKS, 0.36, FEW | SMALL),
    "maskrcnn_resnet50_fpn_v2": (MASKS, 0.28, FEW | SMALL),
    "retinanet_resnet50_fpn": (ONE_STAGE, 0.27, SMALL),
    "retinanet_resnet50_fpn_v2": (ONE_STAGE, 0.27, SMALL),
    "ssd300_vgg16": (ONE_STAGE, 0.27, {}),
    "ssdlite320_mobilenet_v3_large": (ONE_STAGE, 0.29, {}),
}
SLOW = set(DETECTORS) - {"ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"}


def detector(name, **options):
    """A detector in float64 that finds something, whatever its weights are."""
    torch.manual_seed(0)
    classes = 2 if name.startswith("keypoint") else 4
    options |= {"weights": None, "weights_backbone": None, "num_classes": classes}
    model = randomise(models.get_model(name, **options).double())
    for module in model.modules():
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0
    return model


def images_of(*sizes, seed=0):
    """Images of these heights and widths with two objects each: boxes, labels, masks and keypoints."""
    drawn = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for height, width in sizes:
        images.append(torch.rand(3, height, width, generator=drawn, dtype=torch.float64))
        boxes = torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.3, 0.2, 0.9, 0.8]], dtype=torch.float64)
        points = torch.rand(2, 17, 2, generator=drawn) * min(height, width)
        targets.append(
            {
                "boxes": boxes * torch.tensor([width, height, width, height]),
                "labels": torch.ones(2, dtype=torch.int64),
                "masks": (torch.rand(2, height, width, generator=drawn) > 0.5).byte(),
                "keypoints": torch.cat([points, torch.ones(2, 17, 1)], 2),
            }
        )
    return images, targets


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


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in DETECTORS])
def test_exact_on_other_images_with_its_own_losses(name):
    parts, share, options = DETECTORS[name]
    example = images_of((64, 80), (72, 60))
    model = calibrated(detector(name, **options), example)
    small, new = compressed_in_parts(model, example, parts)
    assert type(new) is type(model)
    for inputs in (example, images_of((90, 70), seed=1), images_of((50, 90), (96, 64), (70, 70), seed=2)):
        for training in (False, True)[: len(inputs[0])]:  # a batch norm in training takes no single number
            errors, numbers = differences(model, small, new, inputs, training)
            assert numbers > 10 or training
            wrong = {name: error for name, error in errors.items() if not error <= 1e-9}
            assert not wrong, (training, wrong)
    left = sum(p.numel() for p in new.parameters()) / sum(p.numel() for p in model.parameters())
    assert left < share
