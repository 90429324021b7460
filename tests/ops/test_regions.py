"""Regions of interest cut out of feature maps, and convolutions at computed places, as detectors have them."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from support.regions import define
from torch import nn

import fx_oto

define()
vision = torch.ops.torchvision
CUT = {
    "averages": lambda x, boxes: vision.roi_align(x, boxes, 0.5, 3, 2, 2, True),
    "the largest": lambda x, boxes: vision.roi_pool(x, boxes, 0.5, 3, 2)[0],
}


def boxes_of(count, images=2):
    """Boxes as the operators take them: the image, then left, top, right, bottom."""
    corners = torch.rand(count, 2) * 8
    return torch.cat([torch.arange(count)[:, None] % images, corners, corners + 2 + torch.rand(count, 2) * 8], 1)


class OfRegions(nn.Module):
    def __init__(self, cut):
        super().__init__()
        self.body, self.head, self.cut = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(48, 6), cut
        self.scores = nn.Linear(6, 2)

    def forward(self, x, boxes):
        return self.scores(self.head(self.cut(self.body(x), boxes).flatten(1)).relu())


@pytest.mark.parametrize("cut", CUT.values(), ids=CUT)
def test_channels_of_regions_go(cut, tmp_path):
    example, others = (torch.randn(2, 3, 20, 20), boxes_of(5)), [(torch.randn(3, 3, 26, 24), boxes_of(7, 3))]
    found = compress_half(OfRegions(cut), example, others=others)
    assert found.params_left < 0.4
    fx_oto.save(found.small, tmp_path / "small.safetensors")
    given = [one.double() for one in others[0]]
    assert torch.equal(fx_oto.load(tmp_path / "small.safetensors")(*given), found.small.eval()(*given))


def test_what_is_not_zero_once_removed_stays():
    net = OfRegions(lambda x, boxes: vision.roi_align(x.sigmoid(), boxes, 0.5, 3, 2, 2, False))
    gm = fx_oto.prepare(net, (torch.randn(2, 3, 20, 20), boxes_of(5)))
    assert ("body.weight", 0) in {(axis.tensor, axis.dim) for axis in fx_oto.partition(gm).frozen}


class OfLevels(nn.Module):
    """Each region is cut out of the level that suits its size."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList(nn.Conv2d(3, 8, 3, 2**level, 1) for level in (1, 2))
        self.head = nn.Linear(72, 2)

    def forward(self, x, boxes):
        levels = ((boxes[:, 3] - boxes[:, 1]) > 6).long()
        found = x.new_zeros(len(boxes), 8, 3, 3)
        for level, layer in enumerate(self.body):
            rows = torch.where(levels == level)[0]
            found[rows] = vision.roi_align(layer(x), boxes[rows], 2.0 ** (-1 - level), 3, 3, 2, False)
        return self.head(found.flatten(1))


def test_channels_of_regions_go_whichever_level_they_are_cut_out_of():
    example, others = (torch.randn(2, 3, 20, 20), boxes_of(6)), [(torch.randn(3, 3, 24, 28), boxes_of(1, 3))]
    assert compress_half(OfLevels(), example, others=others).params_left < 0.6


def test_what_says_where_regions_are_stays():
    class Guided(OfRegions):
        def __init__(self):
            super().__init__(CUT["averages"])
            self.places = nn.Linear(4, 4)

        def forward(self, x, boxes):
            return super().forward(x, torch.cat([boxes[:, :1], self.places(boxes[:, 1:])], 1))

    gm = fx_oto.prepare(Guided(), (torch.randn(2, 3, 20, 20), boxes_of(5)))
    frozen = {axis.tensor: str(axis.reason) for axis in fx_oto.partition(gm).frozen if axis.dim == 0}
    assert "it steers how values are sampled" in frozen["places.weight"]
    assert "body.weight" not in frozen


class Deformed(nn.Module):
    """A convolution at computed places, as ``torchvision.ops.DeformConv2d`` calls it, between two others."""

    def __init__(self, masked, biased, groups=1, offset_groups=1):
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.offsets = nn.Conv2d(8, 18 * offset_groups, 3, padding=1)
        self.masks = nn.Conv2d(8, 9 * offset_groups, 3, padding=1) if masked else None
        self.weight = nn.Parameter(torch.randn(12, 8 // groups, 3, 3) / 8)
        self.bias = nn.Parameter(torch.randn(12)) if biased else None
        self.offset_groups = offset_groups

    def forward(self, x):
        x = self.before(x).relu()
        offsets = self.offsets(x)
        bias = torch.zeros(len(self.weight), dtype=x.dtype) if self.bias is None else self.bias
        masks = torch.zeros(len(x), 1, dtype=x.dtype) if self.masks is None else self.masks(x).sigmoid()
        numbers = 1, 1, 1, 1, 1, 1, x.shape[1] // self.weight.shape[1], self.offset_groups, self.masks is not None
        return self.after(vision.deform_conv2d(x, self.weight, offsets, masks, bias, *numbers).relu())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_channels_of_a_deformable_convolution_go(masked, biased):
    others = [torch.randn(3, 3, 11, 12)]
    assert compress_half(Deformed(masked, biased), torch.randn(2, 3, 9, 9), others=others).params_left < 0.5


@pytest.mark.parametrize("groups", [{"groups": 2}, {"offset_groups": 2}], ids=str)
def test_a_deformable_convolution_in_groups_is_kept_whole_with_the_reason(groups):
    gm = fx_oto.prepare(Deformed(True, True, **groups), torch.randn(2, 3, 9, 9))
    frozen = {axis.tensor: str(axis.reason) for axis in fx_oto.partition(gm).frozen if axis.dim == 0}
    assert "has groups of channels, or of places" in frozen["weight"]
    assert "before.weight" in frozen
