"""Every model of torchvision that is not quantised, on the smallest images that make sense."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from networks import Built, Call, Parts, images, of_images
from support.detectors import finds_something, images_of, of_torchvision
from support.exactness import to_double
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
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
    if ".detection" in builder.__module__:
        parts, few = of_torchvision(name)
        return _on_lists_of_images(finds_something(builder(**options, **few)), parts)
    return _with_inputs(builder(**options), name, builder.__module__)


def _with_inputs(model: nn.Module, name: str, module: str) -> Built:
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


def _on_lists_of_images(model: nn.Module, parts: Parts) -> Built:
    """A detector: the images of a list have sizes of their own, and targets, which training needs."""
    example, others = ((64, 80), (72, 60), (70, 70)), ((50, 90), (96, 64), (90, 70))
    sizes = {"image size": (partial(_lists_of_images, others),)}
    return Built(model, partial(_lists_of_images, example), sizes, parts, _in_double)


def _lists_of_images(sizes: tuple[tuple[int, int], ...], batch: int, seed: int) -> Call:
    given = images_of(*sizes[:batch], seed=100 * batch + seed)
    return tree_map_only(Tensor, lambda one: one.float() if one.is_floating_point() else one, given), {}


def _in_double(call: Call) -> Call:
    """All but keypoints, which torchvision takes in float32 only."""
    (given, targets), named = to_double(call)
    return (given, [target | {"keypoints": target["keypoints"].float()} for target in targets]), named


def _pairs_of_images(size: int, batch: int, seed: int) -> Call:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, batch, 3, size, size, generator=generator) * 2 - 1
    return (first, second), {"num_flow_updates": 2}
