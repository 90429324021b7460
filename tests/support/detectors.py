"""A detector of one level: a list of images of any sizes in, losses or a list of detections out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fx_oto
from fx_oto.core.context import ExampleInputs
from support.seen import apart, see


class Detector(nn.Module):
    """Its ``forward`` cannot be captured: it counts images, and chooses boxes by their scores."""

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
    """Images of these heights and widths, with two objects each, as positional arguments."""
    drawn = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, *size, generator=drawn, dtype=torch.float64) for size in sizes]
    targets = []
    for height, width in sizes:
        corners = torch.tensor([[2.0, 3.0], [height * 0.2, width * 0.1]], dtype=torch.float64)
        beyond = torch.tensor([[height * 0.5, width * 0.6], [height * 0.9, width * 0.8]], dtype=torch.float64)
        targets.append({"boxes": torch.cat([corners, beyond], 1), "labels": torch.tensor([1, 2])})
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
