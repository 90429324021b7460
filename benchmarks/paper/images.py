"""Images and their classes: CIFAR, SVHN and Fashion-MNIST in memory, ImageNet from folders; top-1 is the score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from support.vision import without_compiled_library
from torch import Tensor, nn

import fx_oto
from benchmarks.paper.recipes import Recipe
from benchmarks.paper.tasks import SHAPES, Options, missing, spread
from fx_oto.demo.data import read_idx

Batch = tuple[Tensor, Tensor]

# The authors' for all of them; Fashion-MNIST has its own.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY = ((0.286,), (0.353,))
_SMOOTHING, _MIXUP = 0.1, 0.2
_EVALUATED = 500


def torchvision() -> Any:
    """The package, with its data sets.

    Raises:
        InputError: it is not installed.
    """
    without_compiled_library()
    try:
        import torchvision
        import torchvision.datasets
        import torchvision.transforms
    except ImportError as error:
        raise fx_oto.InputError("the readers of data are torchvision's: pip install torchvision pillow") from error
    return torchvision


class Classification:
    """Loss, mix-up, label smoothing and score."""

    def __init__(self, recipe: Recipe, options: Options) -> None:
        self.recipe, self.options, self.device = recipe, options, options.device
        self.shape, self.classes = SHAPES[recipe.data]
        self.generator = torch.Generator()
        self.example = torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        mean, std = _GREY if self.shape[0] == 1 else (_MEAN, _STD)
        self.mean, self.std = (torch.tensor(x, device=self.device).view(-1, 1, 1) for x in (mean, std))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy; with mix-up, of images and labels mixed with others of the batch."""
        images, labels = batch
        smoothing = _SMOOTHING if "smoothing" in self.recipe.augmentation else 0.0
        if "mixup" not in self.recipe.augmentation:
            return F.cross_entropy(model(images), labels, label_smoothing=smoothing)
        share = torch.distributions.Beta(_MIXUP, _MIXUP).sample().item()
        other = torch.randperm(len(labels)).to(labels.device)
        found = model(images.lerp(images[other], 1 - share))
        both = (F.cross_entropy(found, y, label_smoothing=smoothing) for y in (labels, labels[other]))
        return share * next(both) + (1 - share) * next(both)

    @torch.no_grad()
    def score(self, model: nn.Module) -> dict[str, float]:
        """Percentage of the test images whose class is the most likely one."""
        model.eval()
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in self.tests())
        return {"top-1": round(100 * right / self.counts[1], 2)}


class InMemory(Classification):
    """All images on the device as bytes, augmented there in batches: flips, and crops of images padded by 4 zeros."""

    def __init__(self, recipe: Recipe, root: Path, options: Options) -> None:
        super().__init__(recipe, options)
        train, labels, *tests = (part.to(self.device) for part in _READERS[recipe.data](root))
        chosen = spread(len(train), options.subset).to(self.device)
        self.train, self.labels, self.test, self.test_labels = train[chosen], labels[chosen], *tests
        self.counts = len(self.train), len(self.test)

    def steps(self) -> int:
        """An incomplete last batch counts, as with the authors."""
        return -(-len(self.train) // self.recipe.batch)

    def batches(self) -> Iterator[Batch]:
        """One shuffled pass."""
        for index in torch.randperm(len(self.train), generator=self.generator).split(self.recipe.batch):
            images = self.train[index.to(self.device)]
            if "flip" in self.recipe.augmentation:
                flip = torch.rand(len(index), generator=self.generator).to(self.device) < 0.5
                images = torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)
            if "crop" in self.recipe.augmentation:
                images = crops(images, torch.randint(0, 9, (2, len(index)), generator=self.generator).to(self.device))
            yield self.normalised(images), self.labels[index.to(self.device)]

    def tests(self) -> Iterator[Batch]:
        """The test images."""
        for images, labels in zip(self.test.split(_EVALUATED), self.test_labels.split(_EVALUATED), strict=True):
            yield self.normalised(images), labels

    def normalised(self, images: Tensor) -> Tensor:
        """Bytes to what the network is given."""
        images = images.contiguous(memory_format=torch.channels_last)
        return (images.float() / 255 - self.mean) / self.std


def crops(images: Tensor, corners: Tensor) -> Tensor:
    """Each of the images ``(n, c, h, w)``, padded by 4 zeros, cut at its corner ``(2, n)`` to its old size."""
    _, _, height, width = images.shape
    padded = F.pad(images, (4, 4, 4, 4))
    rows = (corners[0][:, None] + torch.arange(height, device=images.device))[:, :, None]
    columns = (corners[1][:, None] + torch.arange(width, device=images.device))[:, None, :]
    number = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[number, :, rows, columns].permute(0, 3, 1, 2)


class Folders(Classification):
    """A folder for each class in ``train`` and in ``val``, through torchvision's ``ImageFolder`` and transforms."""

    def __init__(self, recipe: Recipe, root: Path, options: Options) -> None:
        super().__init__(recipe, options)
        for part in ("train", "val"):
            if not (root / part).is_dir():
                raise missing("ImageNet", root, "train/CLASS/*.JPEG and val/CLASS/*.JPEG")
        datasets, transforms = torchvision().datasets, torchvision().transforms
        size = self.shape[1]
        last = [transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)]
        ways = {
            "resized_crop": lambda: transforms.RandomResizedCrop(size),
            "flip": transforms.RandomHorizontalFlip,
            "jitter": lambda: transforms.ColorJitter(0.4, 0.4, 0.4, 0.2),
            "randaugment": transforms.RandAugment,
        }
        first = [ways[name]() for name in recipe.augmentation if name in ways]
        middle = [transforms.Resize(size * 8 // 7), transforms.CenterCrop(size)]
        train = datasets.ImageFolder(root / "train", transforms.Compose([*first, *last]))
        self._test = datasets.ImageFolder(root / "val", transforms.Compose([*middle, *last]))
        if train.classes != self._test.classes or len(train.classes) > self.classes:
            raise fx_oto.InputError(
                f"expected the same folders, at most {self.classes}, in {root / 'train'} and in {root / 'val'}; found "
                f"{len(train.classes)} and {len(self._test.classes)}"
            )
        self._train = torch.utils.data.Subset(train, spread(len(train), options.subset).tolist())
        self.counts = len(self._train), len(self._test)

    def steps(self) -> int:
        """An incomplete last batch counts."""
        return -(-self.counts[0] // self.recipe.batch)

    def batches(self) -> Iterator[Batch]:
        """One shuffled pass; transforms draw from the loader's generator, or from torch's own without workers."""
        return self._loaded(self._train, shuffle=True, generator=self.generator)

    def tests(self) -> Iterator[Batch]:
        """The images of ``val``."""
        return self._loaded(self._test)

    def _loaded(self, images: Any, **settings: Any) -> Iterator[Batch]:
        common = {"num_workers": self.options.workers, "pin_memory": self.device != "cpu"}
        loader = torch.utils.data.DataLoader(images, self.recipe.batch, **common, **settings)
        for batch, labels in loader:
            yield batch.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


# -- readers: training images (n, c, h, w) as bytes, their classes (n,), and the same for testing ------------


def _cifar(name: str, root: Path) -> tuple[Tensor, ...]:
    parts = []
    for train in (True, False):
        try:
            read = getattr(torchvision().datasets, name)(root, train=train)
        except RuntimeError as error:
            folder = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}[name]
            raise missing(name, root, f"the folder {folder} of the archive for Python, unchanged") from error
        parts += [torch.from_numpy(read.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(read.targets)]
    return tuple(parts)


def _svhn(root: Path) -> tuple[Tensor, ...]:
    parts = []
    for split in ("train", "test"):
        try:
            read = torchvision().datasets.SVHN(root, split)
        except RuntimeError as error:
            raise missing("SVHN", root, "train_32x32.mat and test_32x32.mat, unchanged") from error
        except ImportError as error:
            raise fx_oto.InputError("SVHN's files are read by scipy: pip install scipy") from error
        parts += [torch.from_numpy(read.data).contiguous(), torch.from_numpy(read.labels)]
    return tuple(parts)


_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _fashion_mnist(root: Path) -> tuple[Tensor, ...]:
    """torchvision's layout through its reader; or the four files as they are distributed, compressed."""
    if (root / "FashionMNIST" / "raw").is_dir():
        try:
            read = [torchvision().datasets.FashionMNIST(root, train=train) for train in (True, False)]
        except RuntimeError as error:
            raise missing("Fashion-MNIST", root / "FashionMNIST" / "raw", ", ".join(_IDX)) from error
        return tuple(part for one in read for part in (one.data[:, None], one.targets))
    paths = [next((p for p in (root / f"{name}.gz", root / name) if p.is_file()), None) for name in _IDX]
    if None in paths:
        raise missing("Fashion-MNIST", root, f"FashionMNIST/raw, or {', '.join(_IDX)}, each with .gz or without")
    images, labels, tests, test_labels = (read_idx(path) for path in paths if path is not None)
    return images[:, None], labels.long(), tests[:, None], test_labels.long()


_READERS = {
    "CIFAR10": lambda root: _cifar("CIFAR10", root),
    "CIFAR100": lambda root: _cifar("CIFAR100", root),
    "SVHN": _svhn,
    "Fashion-MNIST": _fashion_mnist,
}
