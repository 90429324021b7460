"""Images enlarged by 2: DIV2K's pairs for training, PSNR of the luminance on Set14, B100 and Urban100."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fx_oto
from benchmarks.paper.recipes import Recipe
from benchmarks.paper.tasks import SHAPES, Options, missing, spread

__all__ = ["SCALE", "TEST_SETS", "SuperResolution", "luminance", "psnr"]

SCALE = 2
TEST_SETS = ("Set14", "B100", "Urban100")
_LAYOUTS = (("x2/*HR.png", "x2/*LR.png"), ("HR/*.png", "LR_bicubic/X2/*.png"))
Pair = tuple[Tensor, Tensor]


class SuperResolution:
    """Random patches of DIV2K, turned and mirrored, under an L1 loss; scored on whole images."""

    def __init__(self, recipe: Recipe, root: Path, options: Options) -> None:
        if recipe.steps is None:
            raise fx_oto.InputError("patches have no end: the recipe must say how many steps an epoch has")
        self.steps_, self.batch, self.device = recipe.steps, recipe.batch, options.device
        shape, _ = SHAPES[recipe.data]
        self.patch = shape[1]
        self.generator = torch.Generator()
        self.example = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        train = pairs(root, ("DIV2K_train_HR/*.png", "DIV2K_train_LR_bicubic/X2/*.png"))
        if not train:
            raise missing("DIV2K", root, "DIV2K_train_HR/*.png and DIV2K_train_LR_bicubic/X2/*.png")
        chosen = spread(len(train), options.subset).tolist()
        self.train = [(read(train[i][0]), read(train[i][1])) for i in chosen]
        for high, low in self.train:
            _check(high, low, self.patch)
        self.tests = {name: _test_set(root, name) for name in TEST_SETS}
        self.counts = len(self.train), sum(len(found) for found in self.tests.values())

    def steps(self) -> int:
        """As the recipe says."""
        return self.steps_

    def batches(self) -> Iterator[Pair]:
        """Batches of pairs, small and large ``(n, 3, h, w)``, each from an image of its own choice."""
        for _ in range(self.steps_):
            chosen = torch.randint(len(self.train), (self.batch,), generator=self.generator).tolist()
            patches = [self._cut(*self.train[i]) for i in chosen]
            yield tuple(torch.stack(part).to(self.device).float() / 255 for part in zip(*patches, strict=True))

    def _cut(self, high: Tensor, low: Tensor) -> Pair:
        """A patch at a random place, mirrored or not, turned by a multiple of 90 degrees."""
        rows, columns = (n - self.patch + 1 for n in low.shape[1:])
        y, x, mirrored, turns = (int(torch.randint(n, (), generator=self.generator)) for n in (rows, columns, 2, 4))
        cut = []
        for image, scale in ((low, 1), (high, SCALE)):
            top, left, size = scale * y, scale * x, scale * self.patch
            part = image[:, top : top + size, left : left + size]
            cut.append(torch.rot90(part.flip(2) if mirrored else part, turns, (1, 2)))
        return cut[0], cut[1]

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """Mean absolute difference."""
        return F.l1_loss(model(batch[0]), batch[1])

    @torch.no_grad()
    def score(self, model: nn.Module) -> dict[str, float]:
        """Mean PSNR of each test set, in decibels."""
        model.eval()
        scores = {}
        for name, found in self.tests.items():
            values = []
            for high, low in found:
                large = model((read(low).to(self.device).float() / 255)[None])[0]
                values.append(psnr(large.mul(255).clamp(0, 255).byte().cpu(), read(high)))
            scores[f"PSNR {name}"] = round(sum(values) / len(values), 2)
        return scores


def luminance(image: Tensor) -> Tensor:
    """Y of ITU-R BT.601, 16 to 235, of an image of bytes ``(3, h, w)``; in float64."""
    weights = torch.tensor((65.481, 128.553, 24.966), dtype=torch.float64)
    return 16 + torch.einsum("c,chw->hw", weights, image.double() / 255)


def psnr(found: Tensor, right: Tensor) -> float:
    """Peak signal-to-noise ratio of the luminances, in decibels, without a border as wide as the scale.

    The authors' measure: images of bytes, the peak is 255. An image that is one pixel larger than the enlarged one, for
    its size is odd, is cut.
    """
    height, width = found.shape[1:]
    inside = (slice(None), slice(SCALE, height - SCALE), slice(SCALE, width - SCALE))
    error = (luminance(found)[inside[1:]] - luminance(right[:, :height, :width])[inside[1:]]) / 255
    return float(-10 * torch.log10(error.square().mean()))


def read(path: Path) -> Tensor:
    """A picture as bytes ``(3, h, w)``.

    Raises:
        InputError: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise fx_oto.InputError("pictures are read by pillow: pip install pillow") from error
    with Image.open(path) as image:
        content = image.convert("RGB")
        flat = torch.frombuffer(bytearray(content.tobytes()), dtype=torch.uint8)
        return flat.view(content.height, content.width, 3).permute(2, 0, 1).contiguous()


def pairs(root: Path, layout: tuple[str, str]) -> list[tuple[Path, Path]]:
    """Large and small pictures, in the order of their names.

    Raises:
        InputError: there are more of one than of the other.
    """
    high, low = (sorted(root.glob(pattern)) for pattern in layout)
    if len(high) != len(low):
        raise fx_oto.InputError(
            f"expected as many large pictures as small ones in {root}; found {len(high)} {layout[0]} and {len(low)} "
            f"{layout[1]}"
        )
    return list(zip(high, low, strict=True))


def _test_set(root: Path, name: str) -> list[tuple[Path, Path]]:
    for folder in (root / name, root / "benchmark" / name):
        for layout in _LAYOUTS:
            if found := pairs(folder, layout):
                return found
    raise missing(name, root / name, "x2/*HR.png and x2/*LR.png, or HR/*.png and LR_bicubic/X2/*.png")


def _check(high: Tensor, low: Tensor, patch: int) -> None:
    enlarged = torch.Size((3, *(SCALE * n for n in low.shape[1:])))
    if high.shape != enlarged or min(low.shape[1:]) < patch:
        raise fx_oto.InputError(
            f"expected pictures of at least {patch} pixels and their enlargements by {SCALE}; found {tuple(low.shape)} "
            f"and {tuple(high.shape)}"
        )
