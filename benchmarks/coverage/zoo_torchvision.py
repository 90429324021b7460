"""Every model of torchvision that is not quantised, on the smallest images that make sense."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from networks import Built, Call, images, of_images
from torch import Tensor, nn
from torchvision import extension
from torchvision.models import get_model_builder, list_models
from torchvision.ops import box_iou

# name or the start of it: size of the image; the longest start wins
SIZES = {"": 64, "vit": 224, "vit_h_14": 224, "maxvit": 224, "inception_v3": 299, "vgg": 32}
CLIPS = {"": (8, 112, 112), "mvit": (16, 224, 224), "s3d": (16, 224, 224), "swin3d": (8, 64, 64)}


if not extension._has_ops():  # only the Python part is installed; what detection needs beyond it is one operator

    @torch.library.custom_op("torchvision::nms", mutates_args=())
    def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
        """Indices of boxes, best first, of which none overlaps a better one by more than the threshold."""
        overlap, kept = box_iou(boxes, boxes), []
        for index in scores.argsort(descending=True, stable=True).tolist():
            if not kept or overlap[index, kept].max() <= iou_threshold:
                kept.append(index)
        return torch.tensor(kept, dtype=torch.int64)

    @_nms.register_fake
    def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
        return scores.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)

    extension._has_ops = lambda: True


def names() -> list[str]:
    return [name for name in list_models() if not name.startswith("quantized_")]


def build(name: str) -> Built:
    builder = get_model_builder(name)
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # theirs takes a minute
    if ".detection" in builder.__module__ and not name.startswith("ssd"):
        options |= {"min_size": 64, "max_size": 64}  # they resize their images
    return _with_inputs(builder(**options), name, builder.__module__)


def _with_inputs(model: nn.Module, name: str, module: str) -> Built:
    if ".detection" in module:
        return Built(model, partial(_lists_of_images, 64, 64), {"image size": (partial(_lists_of_images, 64, 96),)})
    if ".optical_flow" in module:
        return Built(model, partial(_pairs_of_images, 128), {"image size": (partial(_pairs_of_images, 160),)})
    if ".video" in module:
        frames, height, width = shape = _longest(CLIPS, name)
        larger, longer = (frames, height + 32, width + 32), (frames * 3 // 2, height, width)
        others = {"image size": (images(3, *larger),), "frames": (images(3, *longer),)}
        return Built(model, images(3, *shape), others)
    return of_images(model, 3, *[_longest(SIZES, name)] * 2)


def _longest(table: dict[str, Any], name: str) -> Any:
    return table[max((start for start in table if name.startswith(start)), key=len)]


def _lists_of_images(height: int, width: int, batch: int, seed: int) -> Call:
    """Two images: how long a list is, is fixed when it is captured, so another batch has others."""
    generator = torch.Generator().manual_seed(100 * batch + seed)
    return ([torch.rand(3, height, width, generator=generator) for _ in range(2)],), {}


def _pairs_of_images(size: int, batch: int, seed: int) -> Call:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, batch, 3, size, size, generator=generator) * 2 - 1
    return (first, second), {"num_flow_updates": 2}
