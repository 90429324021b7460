"""What leaves the analysis's sight is kept whole, and what stays in the graph keeps a shape that it can have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from support.networks import Scale
from torch import nn

import fx_oto


class Between(nn.Module):
    """Two layers, and what ``code`` does in between."""

    def __init__(self, code, first, second, **others):
        super().__init__()
        self.code, self.first, self.second = code, first, second
        for name, other in others.items():
            self.register_parameter(name, other) if isinstance(other, nn.Parameter) else self.add_module(name, other)

    def forward(self, x):
        return self.second(self.code(self, self.first(x)))


def linear(code, middle=8, prepare=fx_oto.prepare, **others):
    return prepare(Between(code, nn.Linear(5, 8), nn.Linear(middle, 3), **others), torch.randn(2, 5))


def images(code, before, after):
    model = Between(code, nn.Conv2d(3, before, 1), nn.Conv2d(after, 2, 1))
    return exact(model, torch.randn(2, 3, 4, 4))


def exact(model, x):
    """Prepared, and checked to be the same when half of it is cut."""
    return compress_half(model, x).gm


def reasons(gm, tensor):
    return {axis.reason.why for axis in fx_oto.partition(gm).frozen if axis.tensor == tensor}


def sizes(gm):
    return sorted(len(family) for family in fx_oto.partition(gm).families)


def shuffled(net, h):
    return h.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8)


def test_of_a_grid_that_a_selection_replaces_any_channel_may_go():
    assert sizes(linear(shuffled)) == [8]


def also_read(net, h):
    grid = h.view(-1, 2, 4)
    return torch.cat([grid.transpose(1, 2).reshape(-1, 8), grid.relu().sum(1)], 1)


def test_a_grid_that_something_else_reads_as_well_loses_columns():
    gm = linear(also_read, middle=12, prepare=exact)
    assert sizes(gm) == [4]


def stacked(net, h):
    grid = h.view(-1, 2, 4).transpose(1, 2)
    return torch.stack([grid, grid], 1).reshape(-1, 16)


def test_a_grid_that_moves_on_but_is_no_selection_at_the_end_loses_columns():
    gm = linear(stacked, middle=16, prepare=exact)
    assert sizes(gm) == [4]


def sized(net, h):
    grid = h.view(-1, 2, 4)
    return grid.transpose(1, 2).reshape(-1, 8) * grid.size(0)


def test_who_asks_for_a_grids_size_alone_does_not_read_it():
    assert sizes(linear(sized, prepare=exact)) == [8]


def test_many_pixels_of_few_channels_still_go_together():
    """Of a grid (2, 3, 3) the last axis would leave most, which no convolution forbids here."""
    model = Between(lambda net, h: F.pixel_shuffle(h, 3).flatten(1), nn.Conv2d(3, 18, 1), nn.Linear(2 * 12 * 12, 2))
    gm = exact(model, torch.randn(2, 3, 4, 4))
    assert fx_oto.partition(gm).families[0].slots[0].index.tolist() == [list(range(9)), list(range(9, 18))]


@pytest.mark.parametrize("shuffle", [lambda net, h: F.pixel_shuffle(h, 2), lambda net, h: nn.PixelShuffle(2)(h)])
def test_all_channels_go_that_become_the_pixels_of_one(shuffle):
    gm = images(shuffle, 12, 3)
    assert sizes(gm) == [3]
    index = fx_oto.partition(gm).families[0].slots[0].index
    assert index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_all_channels_go_that_were_the_pixels_of_one():
    gm = images(lambda net, h: F.pixel_unshuffle(h, 2), 3, 12)
    assert sizes(gm) == [3]


def test_pixels_of_images_without_a_batch():
    model = Between(lambda net, h: F.pixel_shuffle(h, 2), nn.Conv2d(3, 12, 1), nn.Conv2d(3, 2, 1))
    assert sizes(fx_oto.prepare(model, torch.randn(3, 4, 4))) == [3]


def test_the_output_is_kept_whole_wherever_it_is_made():
    gm = linear(lambda net, h: h.relu())
    assert reasons(gm, "second.weight") == {"it is part of the model's output"}
    assert reasons(gm, "second.bias") == {"it is part of the model's output"}


def test_a_parameter_that_nothing_reads_is_kept_whole():
    """An exported module holds it all the same."""
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3)), torch.randn(2, 5)
    model.register_parameter("spare", nn.Parameter(torch.randn(7)))
    gm = fx_oto.prepare(torch.export.export(model, (x,), strict=False).module(), x)
    assert reasons(gm, "spare") == {"it is not used by the traced graph"}
    assert sizes(gm) == [8]


def test_a_module_whose_parameters_cannot_be_cut_keeps_them_and_what_enters():
    gm = linear(lambda net, h: net.scale(h), scale=Scale(8))
    assert reasons(gm, "scale.weight") == {"slicing does not know the module class Scale"}
    assert sizes(gm) == []


IN_TRAINING = "it meets a tensor that there is in training only"


def test_what_there_is_in_training_only_is_kept_with_what_it_meets():
    inner, shift = nn.Linear(8, 8), nn.Parameter(torch.randn(8))
    gm = linear(
        lambda net, h: F.linear(h, net.inner.weight, net.shift if net.training else None), inner=inner, shift=shift
    )
    assert reasons(gm, "shift") == {IN_TRAINING}
    assert reasons(gm, "first.weight") >= {IN_TRAINING}
    assert sizes(gm) == []


@pytest.mark.parametrize(
    ("code", "others"),
    [
        (lambda net, h: h + (net.inner(h) if net.training else 0), {"inner": nn.Linear(8, 8)}),
        (lambda net, h: h * (net.scale if net.training else 1), {"scale": nn.Parameter(torch.randn(8))}),
    ],
)
def test_a_number_may_stand_for_a_tensor_in_one_mode(code, others):
    model = Between(code, nn.Linear(5, 8), nn.Linear(8, 3), **others)
    assert sizes(exact(model, torch.randn(2, 5))) == [8]


def test_tensors_of_both_modes_may_go():
    scales = {name: nn.Parameter(torch.randn(8)) for name in ("one", "other")}
    assert sizes(linear(lambda net, h: h * (net.one if net.training else net.other), **scales)) == [8]
