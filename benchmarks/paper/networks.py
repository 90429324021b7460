"""The networks, from the tests' support, torchvision and transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support import networks, vision
from torch import nn

import fx_oto


def _resnet(block: type[nn.Module], counts: tuple[int, ...]) -> Callable[..., nn.Module]:
    def build(classes: int, inputs: int, width: int = 64) -> nn.Module:
        return networks.ResNet(block, counts, classes, width, inputs)

    return build


def _demonet(classes: int, inputs: int, width: int = 64) -> nn.Module:
    return networks.DemoNet(classes, width, inputs)


def _densenet121(classes: int, inputs: int) -> nn.Module:
    """torchvision's, with the stem for 32 × 32 images: no stride, no pooling."""
    model = vision.build("densenet121", num_classes=classes)
    model.features.conv0 = nn.Conv2d(inputs, 64, 3, padding=1, bias=False)
    model.features.pool0 = nn.Identity()
    return model


def _carn(classes: int, inputs: int, width: int = 64) -> nn.Module:
    return networks.CARN(width)


def transformers() -> Any:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    vision.without_compiled_library()
    try:
        import transformers
    except ImportError as error:
        raise fx_oto.InputError("BERT is of transformers: pip install transformers") from error
    return transformers


def _bert(classes: int, inputs: int, folder: Path | None = None) -> nn.Module:
    if folder is not None:
        return transformers().AutoModelForQuestionAnswering.from_pretrained(folder)
    return transformers().BertForQuestionAnswering(transformers().BertConfig())


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "DemoNet": _demonet,
    "VGG16": lambda classes, inputs: networks.VGG(norm=False, classes=classes),
    "VGG16-BN": lambda classes, inputs: networks.VGG(classes=classes),
    "ResNet18": _resnet(networks.Block, (2, 2, 2, 2)),
    "ResNet50": _resnet(networks.Bottleneck, (3, 4, 6, 3)),
    "DenseNet121": _densenet121,
    "StackedUnets": lambda classes, inputs: networks.StackedUnets(classes=classes, inputs=inputs),
    "CARNx2": _carn,
    "ResNet50 / ImageNet": lambda classes, inputs: vision.build("resnet50", num_classes=classes),
    "ConvNeXt-T / ImageNet": lambda classes, inputs: vision.build("convnext_tiny", num_classes=classes),
    "BERT": _bert,
}


def build(name: str, data: str, shape: tuple[int, ...], classes: int, **options: Any) -> nn.Module:
    """A network with random weights; ImageNet's have other stems than those for small images.

    Args:
        name: as in a recipe.
        data: the data's name.
        shape: of one sample.
        classes: of the data.
        options: ``width``, the channels of the first layer; ``weights``, a file of a state dict, or BERT's folder.

    Raises:
        InputError: the network has no such option, or the weights are not there.
    """
    make = NETWORKS.get(f"{name} / {data}", NETWORKS.get(name))
    if make is None:
        raise fx_oto.InputError(f"there is no network {name} for {data}; known are {', '.join(NETWORKS)}")
    weights = options.pop("weights", None)
    given = {key: value for key, value in options.items() if value is not None}
    takes = inspect.signature(make).parameters
    if "folder" in takes:
        given["folder"], weights = weights, None
    for key in given:
        if key not in takes:
            raise fx_oto.InputError(f"{name} / {data} has no --{key}: leave it out")
    model = make(classes, shape[0], **given)
    if weights is not None:
        if not Path(weights).is_file():
            raise fx_oto.InputError(f"expected a file of the state dict of {name}, found none at {weights}")
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model
