"""The rows: what is trained on what, how, and the published row that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.paper.schedules import Cosine, Drops, Linear, Schedule, every

LEGACY = "github.com/tianyic/only_train_once, branch otov2_legacy_backup, tutorials"
NEW = "github.com/microsoft/only_train_once, tutorials"
PAPER = "OTOv2, ICLR 2023 (its table is not at hand: no numbers)"


@dataclass(frozen=True)
class Published:
    """What the authors report; None or an empty mapping where it is not known, and no number is made up.

    Attributes:
        source: where it is published.
        scores: of the compact model, by name: percent, or decibels.
        full: of the full model that they compare with.
        macs: percentage of the full model's multiply-adds that is left, of convolutions and linear layers.
        params: percentage of the parameters that is left, with batch norms folded.
        full_macs: multiply-adds of the full model for one sample, in millions.
        full_params: its parameters.
        zigs: zero-invariant groups of their dependency graph.
    """

    source: str
    scores: Mapping[str, float] = field(default_factory=dict)
    full: Mapping[str, float] = field(default_factory=dict)
    macs: float | None = None
    params: float | None = None
    full_macs: float | None = None
    full_params: int | None = None
    zigs: int | None = None


@dataclass(frozen=True)
class Recipe:
    """One row.

    Attributes:
        network: a name in ``networks.NETWORKS``.
        data: a name in ``tasks.DATA``.
        published: the row to compare with.
        settings: whose settings these are.
        base: the name of a class in ``torch.optim``.
        base_settings: its arguments.
        schedule: factors on the learning rate.
        epochs: length of the training.
        batch: samples in a step.
        augmentation: of images with classes: crop, flip, resized_crop, jitter, randaugment, mixup, smoothing.
        optimizer: the name of a class in ``fx_oto``.
        target: group sparsity.
        window: first epoch of the pruning window, and the one by which the target is reached. Theirs has no end; it is
            put before the first drop of the learning rate.
        options: further arguments of the optimizer.
        steps: in an epoch; None: one pass over the data.
        clip: largest norm of the gradient.
        pretrained: begins with trained weights, to be given by the user.
    """

    network: str
    data: str
    published: Published
    settings: str
    base: str = "SGD"
    base_settings: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Drops)
    epochs: int = 300
    batch: int = 64
    augmentation: tuple[str, ...] = ()
    optimizer: str = "DHSPG"
    target: float = 0.7
    window: tuple[float, float] = (50, 75)
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    clip: float | None = None
    pretrained: bool = False

    @property
    def title(self) -> str:
        """Network and data."""
        return f"{self.network} / {self.data}{', pretrained' if self.pretrained else ''}"


# The authors' defaults for SGD. Momentum is 0 where their tutorials do not set it.
_DHSPG = {"epsilon": 0.95, "lam": 1e-3, "amplify": 2.0, "hat": 10.0, "saliency": "otov2", "allocation": "global"}
_TUTORIAL, _OURS = (
    "the authors' tutorial",
    "those of the authors' nearest tutorial; theirs for this row are not at hand",
)


def _sgd(weight_decay: float, momentum: float = 0.0) -> dict[str, float]:
    return {"lr": 0.1, "momentum": momentum, "weight_decay": weight_decay}


_RESNET18 = Recipe(
    "ResNet18",
    "CIFAR10",
    Published(
        f"{LEGACY}/02.resnet18_cifar10",
        {"top-1": 92.86},
        {"top-1": 93.02},
        macs=20.3,
        params=8.8,
        full_macs=555.42,
        full_params=11_173_962,
        zigs=2880,
    ),
    _TUTORIAL,
    base_settings=_sgd(1e-4),
    schedule=every(300, 75),
    augmentation=("flip", "crop"),
    options=_DHSPG,
)
_RESNET50 = replace(
    _RESNET18,
    network="ResNet50",
    published=Published(
        f"{LEGACY}/03.resnet50_cifar10",
        {"top-1": 94.39},
        {"top-1": 93.62},
        macs=10.0,
        params=3.6,
        full_macs=1297.83,
        full_params=23_520_842,
        zigs=11456,
    ),
    base_settings=_sgd(1e-3),
    target=0.8,
    window=(10, 75),
)
# Their weight decay for this row is of the L1 norm; here it is SGD's own.
_VGG16_BN = replace(
    _RESNET18,
    network="VGG16-BN",
    published=Published(
        f"{LEGACY}/04.vgg16_bn_cifar10",
        {"top-1": 93.27},
        {"top-1": 93.2},
        macs=26.6,
        params=5.0,
        full_macs=313.73,
        full_params=15_253_578,
        zigs=5248,
    ),
    base_settings=_sgd(5e-4),
    augmentation=("flip", "crop", "mixup"),
    target=0.79,
    options={**_DHSPG, "epsilon": 0.9, "lam": 5e-4},
)
# Their 120 epochs are of two passes each, and their learning rate drops every 30 of them.
_IMAGENET = Recipe(
    "ResNet50",
    "ImageNet",
    Published(
        f"{LEGACY}/02.resnet50_imagenet",
        {"top-1": 75.2},
        {"top-1": 76.1},
        macs=38.5,
        params=49.4,
        full_macs=4089.18,
        full_params=25_557_032,
    ),
    _TUTORIAL,
    base_settings=_sgd(0.0, momentum=0.9),
    schedule=every(240, 60),
    epochs=240,
    batch=128,
    augmentation=("resized_crop", "flip", "jitter", "mixup", "smoothing"),
    target=0.4,
    window=(15, 60),
    options=_DHSPG,
    pretrained=True,
)
_CARN = Recipe(
    "CARNx2",
    "DIV2K",
    Published(
        f"{NEW}/03.carnx2_super_resolution",
        {"PSNR Set14": 33.05, "PSNR B100": 31.81, "PSNR Urban100": 30.79},
        macs=18.4,
        params=18.0,
        full_macs=48_527.67,
        full_params=964_187,
        zigs=1408,  # without those of the layer before the last, which they leave alone
    ),
    _TUTORIAL,
    base="Adam",
    base_settings={"lr": 1e-4},
    schedule=Drops((400,), 0.5),
    epochs=600,
    steps=1000,
    optimizer="HESSO",
    target=0.6,
    window=(60, 120),
    options={"periods": 10, "saliency": "hesso", "unprunable": ("up.*",)},
    clip=10.0,
)
_BERT = Recipe(
    "BERT",
    "SQuAD",
    Published(f"{NEW}/02.preliminary_bert_squad (a script without results)"),
    _TUTORIAL,
    base="AdamW",
    base_settings={"lr": 3e-5, "weight_decay": 0.0},
    schedule=Linear(),
    epochs=10,
    batch=12,
    optimizer="HESSO",
    target=0.1,
    window=(2, 4),
    options={"periods": 10, "saliency": "hesso", "unprunable": ("*embeddings*",)},
    pretrained=True,
)
_CONVNEXT = Recipe(
    "ConvNeXt-T",
    "ImageNet",
    Published(PAPER),
    "those of ConvNeXt (arXiv 2201.03545) for a quarter of its batch; theirs for this row are not at hand",
    base="AdamW",
    base_settings={"lr": 1e-3, "weight_decay": 0.05},
    schedule=Cosine(20),
    batch=1024,
    augmentation=("resized_crop", "flip", "randaugment", "mixup", "smoothing"),
    target=0.4,
    window=(30, 180),
    options={**_DHSPG, "lam": 1e-2, "amplify": 20.0, "hat": 1000.0},  # the authors' defaults for AdamW
)


def _unpublished(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, **{"published": Published(PAPER), "settings": _OURS, "pretrained": False, **changes})


_DEMONET = Published(
    "the authors' dependency graph, at 3 × 32 × 32 (no training is published)", full_macs=605.78, zigs=576
)

RECIPES = {
    "resnet18-cifar10": _RESNET18,
    "resnet18-cifar10-hesso": replace(
        _RESNET18,
        published=Published(
            f"{NEW}/01.resnet18_cifar10", {"top-1": 92.81}, {"top-1": 93.02}, params=8.1, full_macs=555.42, zigs=2880
        ),
        optimizer="HESSO",
        epochs=100,
        schedule=every(100, 50),
        window=(10, 20),
        options={"periods": 10, "saliency": "hesso"},
    ),
    "resnet50-cifar10": _RESNET50,
    "vgg16-cifar10": _unpublished(_VGG16_BN, network="VGG16"),
    "vgg16-bn-cifar10": _VGG16_BN,
    "resnet18-cifar100": _unpublished(_RESNET18, data="CIFAR100"),
    "resnet50-cifar100": _unpublished(_RESNET50, data="CIFAR100"),
    "vgg16-cifar100": _unpublished(_VGG16_BN, network="VGG16", data="CIFAR100"),
    "vgg16-bn-cifar100": _unpublished(_VGG16_BN, data="CIFAR100"),
    "densenet121-cifar100": _unpublished(_RESNET18, network="DenseNet121", data="CIFAR100"),
    "stackedunets-svhn": _unpublished(_RESNET18, network="StackedUnets", data="SVHN", augmentation=("crop",)),
    "demonet-fashion-mnist": _unpublished(_RESNET18, network="DemoNet", data="Fashion-MNIST", published=_DEMONET),
    "resnet18-fashion-mnist": _unpublished(
        _RESNET18, data="Fashion-MNIST", published=Published("none: for machines without CIFAR10")
    ),
    "carnx2-div2k": _CARN,
    "resnet50-imagenet": _IMAGENET,
    "resnet50-imagenet-scratch": _unpublished(_IMAGENET),
    "convnext-tiny-imagenet": _CONVNEXT,
    "bert-squad": _BERT,
}
