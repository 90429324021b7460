"""Models that take few other sizes: what is made of a size holds at those, or the graph says that nobody knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from support.kinds import fixed
from torch import nn

import fx_oto


class Corners(nn.Module):
    """PSPNet: sizes are 1 more than a multiple, and code computes that of what is returned as a plain number."""

    def __init__(self, multiple, labelled=False):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 5, 1)
        self.multiple, self.labelled = multiple, labelled

    def forward(self, x, y=None):
        size = x.size()
        assert (size[2] - 1) % self.multiple == 0
        assert (size[3] - 1) % self.multiple == 0
        height, width = (int((n - 1) / 8 * 8 + 1) for n in size[2:])
        x = F.interpolate(self.last(self.first(x).relu()), (height, width), mode="bilinear", align_corners=True)
        return F.cross_entropy(x, y) if self.training and self.labelled else x


@pytest.mark.parametrize("multiple", [4, 8, 16, 32])
def test_sizes_of_corners_are_found(multiple):
    example, *others = (torch.randn(2, 3, a * multiple + 1, b * multiple + 1) for a, b in [(1, 1), (2, 1), (1, 3)])
    compress_half(Corners(multiple), example, others=others, any_size=True)


@pytest.mark.parametrize("training", [False, True])
def test_sizes_of_corners_are_found_beside_labels(training):
    def given(height, width):
        return torch.randn(2, 3, height, width), torch.randint(5, (2, height, width))

    model = Corners(8, labelled=True).train(training)
    gm = fx_oto.prepare(model, given(33, 33)).train(training)
    for size in [(33, 33), (41, 33), (33, 49), (49, 41)]:
        inputs = given(*size)
        torch.testing.assert_close(gm(*inputs), model(*inputs))


def test_a_number_made_of_a_size_of_which_no_other_is_taken_is_computed():
    model = Corners(24)
    gm = fx_oto.prepare(model, torch.randn(2, 3, 25, 25))
    for size in [(25, 25), (49, 25), (25, 49), (73, 73)]:
        torch.testing.assert_close(*(one(torch.ones(3, 3, *size)) for one in (gm, model)))


def test_a_size_of_which_nothing_is_made_is_not_checked():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 5, 5), nn.Linear(8, 2)

        def forward(self, x):
            assert x.size(2) == 25
            return self.last(self.first(x).relu().flatten(2).mT + int(x.size(0)))

    gm = fx_oto.prepare(Square(), torch.randn(2, 3, 25, 25))
    assert not fixed(gm)


def test_a_tensor_of_numpys_is_told_with_the_line_of_the_code():
    class Anchors(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            columns = np.arange(2, x.shape[3], 4).astype(np.float32)
            return self.last(self.first(x).relu()), torch.from_numpy(columns).to(x.device)[None]

    gm = fx_oto.prepare(Anchors(), torch.randn(2, 3, 16, 16))
    assert fixed(gm)
    assert all("test_rare_sizes.py" in where for where in fixed(gm).values())
