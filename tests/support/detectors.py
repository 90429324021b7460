"""Detectors: a list of images of any sizes in, losses or a list of detections out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fx_oto
from fx_oto.core.context import ExampleInputs
from support.seen import apart, see


def _heads(kind):
    return [f"roi_heads.{kind}_{part}" for part in ("roi_pool", "head", "predictor")]


_BOXES = ["backbone", "rpn.head", *_heads("box")]
_ONE_STAGE = (("backbone", "head"),)
_FEW = {"rpn_post_nms_top_n_test": 20, "rpn_post_nms_top_n_train": 30, "box_detections_per_img": 5}
_SMALL = {"min_size": 64, "max_size": 96}
# The start of a name of torchvision's: the parts of its detectors, and options with which they take little time.
_TORCHVISION = {
    "fasterrcnn": ((tuple(_BOXES),), _FEW | _SMALL),
    "fcos": (_ONE_STAGE, _SMALL),
    "keypointrcnn": (((*_BOXES, *_heads("keypoint")),), _FEW | _SMALL),
    "maskrcnn": (((*_BOXES, *_heads("mask")),), _FEW | _SMALL),
    "retinanet": (_ONE_STAGE, _SMALL),
    "ssd300": (_ONE_STAGE, {}),
    "ssdlite320": (_ONE_STAGE, {}),
}


def of_torchvision(name):
    """The parts of one of torchvision's detectors, and options with which it takes little time on small images."""
    return _TORCHVISION[name.partition("_")[0]]


def finds_something(model):
    """A detector that returns what it finds, however sure it is of it: with random weights it is of nothing."""
    for module in model.modules():
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0
    return model


class Detector(nn.Module):
    """One level; its ``forward`` cannot be captured: it counts images, and chooses boxes by their scores."""

    def __init__(self, width=16, classes=3):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()
        )
        self.neck = nn.Conv2d(width, width, 1)
        self.scores = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, classes, 1))
        self.boxes = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 4, 1))
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None):
        if self.training and targets is None:
            raise ValueError("targets are needed")
        height, width = (max(image.shape[dim] for image in images) for dim in (1, 2))
        batch = torch.stack([F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])) for one in images])
        features = self.neck(self.body(batch))
        found = self.heads(features)
        return self.losses(*found, targets) if self.training else self.detections(*found)

    def heads(self, features):
        return self.scores(features) * self.scale, self.boxes(features)

    def losses(self, scores, boxes, targets):
        losses = {"classes": scores.new_zeros(()), "boxes": scores.new_zeros(())}
        for score, box, target in zip(scores, boxes, targets, strict=True):
            sampled = torch.randperm(score[0].numel())[:4]
            wanted = target["labels"][:1].expand(len(sampled))
            losses["classes"] = losses["classes"] + F.cross_entropy(score.flatten(1).T[sampled], wanted)
            losses["boxes"] = losses["boxes"] + (box.flatten(1).T[sampled] - target["boxes"][:1]).abs().mean()
        return losses

    def detections(self, scores, boxes):
        found = []
        for score, box in zip(scores, boxes, strict=True):
            best, label = score.flatten(1).softmax(0).max(0)
            keep = best > 0.35
            found.append({"boxes": box.flatten(1).T[keep], "scores": best[keep], "labels": label[keep]})
        return found


def images_of(*sizes, seed=0):
    """Images of these heights and widths with two objects each, as positional arguments of a detector.

    An object has a box, a label, a mask and keypoints.
    """
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


def compressed_in_parts(model, inputs, parts):
    """Half of the groups of a detector's parts zero, then cut out.

    Returns:
        The compact graph of the parts, and the whole model written back.
    """
    gm = fx_oto.prepare(model, inputs, parts=parts)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    small = fx_oto.compress(gm)
    return small, fx_oto.write_back(small, model)


def differences(model, small, new, inputs, training):
    """How far a detector that was written back is from the eager one, in outputs, gradients and buffers.

    Returns:
        That, and how many numbers the eager one returns.
    """
    given = ExampleInputs.of(inputs)
    eager, compact = (see(one, given, training, gradients=training) for one in (model, new))
    return apart(model, small, eager, compact), sum(output.numel() for output in eager.outputs)
