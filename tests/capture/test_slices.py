"""What an input's size selects of channels that may be cut: exact at every size, or kept whole for it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.kinds import holds, tokens_around
from support.releases import after_2_10

WIDTH = 12
EXAMPLE = torch.randn(2, 5, 4)
OTHERS = [torch.randn(2, 9, 4), torch.randn(3, 7, 4), torch.randn(1, 2, 4)]


def length(x):
    return x.shape[1]


def zeroed(h, x):
    h = h.clone()
    h[..., : length(x)] = 0
    return h


def doubled(h, x):
    h = h.clone()
    h[..., : length(x)] *= 2
    return h


def added(h, x):
    h = h.clone()
    h[..., length(x) :] += h[..., :1]
    return h


def by_mask(h, x):
    h = h.clone()
    h[..., torch.arange(WIDTH) < length(x)] = 0.5
    return h


# Each gives back as many channels as there were, so that another layer reads them.
KEEPING = {
    "rolled": lambda h, x: torch.roll(h, length(x), -1),
    "rolled back": lambda h, x: h.roll(shifts=-length(x), dims=-1),
    "rolled by the batch": lambda h, x: torch.roll(h, x.shape[0], 2),
    "swapped": lambda h, x: torch.cat([h[..., length(x) :], h[..., : length(x)]], -1),
    "swapped after a split": lambda h, x: torch.cat(h.split([length(x), WIDTH - length(x)], -1)[::-1], -1),
    "swapped after tensor_split": lambda h, x: torch.cat(h.tensor_split((length(x),), dim=-1)[::-1], -1),
    "scaled in part": lambda h, x: torch.cat([h[..., : length(x)] * 2, h[..., length(x) :]], -1),
    "flipped in part": lambda h, x: torch.cat([h[..., : length(x)].flip(-1), h[..., length(x) :]], -1),
    "by a turned range": lambda h, x: h[..., (torch.arange(WIDTH) + length(x)) % WIDTH],
    "by index_select": lambda h, x: h.index_select(-1, torch.arange(WIDTH).roll(length(x))),
    "by gather": lambda h, x: h.gather(-1, torch.arange(WIDTH).roll(length(x)).expand_as(h)),
    "masked by a range": lambda h, x: h * (torch.arange(WIDTH) < length(x)),
    "masked_fill by a range": lambda h, x: h.masked_fill(torch.arange(WIDTH) < length(x), 0.0),
    "where, by a range": lambda h, x: torch.where(torch.arange(WIDTH) < length(x), h, h * h),
    "a diagonal's place": lambda h, x: h @ torch.eye(WIDTH, dtype=h.dtype).roll(length(x), 0),
    "triangle": lambda h, x: h @ torch.ones(WIDTH, WIDTH, dtype=h.dtype).tril(length(x) - 6),
    "padded and cut": lambda h, x: F.pad(h, (length(x), 0))[..., :WIDTH],
    "padded behind and cut": lambda h, x: F.pad(h, (0, length(x)))[..., -WIDTH:],
    "moved by padding": lambda h, x: F.pad(h, (length(x), -length(x))),
    "one channel for all": lambda h, x: h * h[..., length(x) - 1 : length(x)],
    "one channel, selected": lambda h, x: h * h.select(-1, length(x)).unsqueeze(-1),
    "zeroed in place": zeroed,
    "scaled in place": doubled,
    "added in place": added,
    "by a mask in place": by_mask,
    "index_fill": lambda h, x: h.index_fill(-1, torch.arange(length(x)), 0.25),
    "index_add": lambda h, x: h.index_add(-1, torch.arange(length(x)), h[..., : length(x)]),
    "slice_scatter": lambda h, x: torch.slice_scatter(h, h[..., : length(x)] * 3, -1, 0, length(x)),
    "select_scatter": lambda h, x: torch.select_scatter(h, h[..., 0], -1, length(x)),
    "in training only": lambda h, x, m: torch.roll(h, length(x), -1) if m.training else h,
    "in evaluation only": lambda h, x, m: h if m.training else doubled(h, x),
}
# Each sums over what it selected.
SUMMING = {
    "to a size": lambda h, x: h[:, :, : length(x)],
    "to a size, with dots": lambda h, x: h[..., : length(x)],
    "from a size": lambda h, x: h[..., length(x) :],
    "from behind": lambda h, x: h[..., -length(x) :],
    "up to behind": lambda h, x: h[..., : -length(x)],
    "between sizes": lambda h, x: h[..., x.shape[0] : length(x) + x.shape[0]],
    "by steps": lambda h, x: h[..., :: length(x)],
    "a slice object": lambda h, x: h[(..., slice(None, length(x)))],
    "half of a size": lambda h, x: h[..., : length(x) // 2 + 1],
    "to the batch": lambda h, x: h[..., : x.shape[0]],
    "to a size of another value": lambda h, x: h[..., : h.shape[1]],
    "narrow": lambda h, x: h.narrow(-1, 0, length(x)),
    "torch.narrow from a size": lambda h, x: torch.narrow(h, 2, length(x), 3),
    "narrow_copy": lambda h, x: h.narrow_copy(-1, 1, length(x)),
    "split with sizes": lambda h, x: h.split([length(x), WIDTH - length(x)], -1)[0],
    "torch.split, the rest": lambda h, x: torch.split(h, (length(x), WIDTH - length(x)), dim=-1)[1],
    "the first part of a split": lambda h, x: h.split(length(x), -1)[0],
    "split_with_sizes": lambda h, x: h.split_with_sizes([length(x), WIDTH - length(x)], -1)[1],
    "the last part of a split": lambda h, x: h.split(length(x), -1)[-1],
    "the first chunk": lambda h, x: h.chunk(length(x), -1)[0],
    "the first of tensor_split": lambda h, x: h.tensor_split(length(x), -1)[0],
    "the first of tensor_split, by the batch": lambda h, x: h.tensor_split(x.shape[0], 2)[0],
    "the first chunk, by the batch": lambda h, x: h.chunk(x.shape[0], dim=2)[0],
    "narrow by the batch": lambda h, x: torch.narrow(h, 2, 3, x.shape[0]),
    "dsplit": lambda h, x: torch.dsplit(h, [length(x)])[1],
    "a range": lambda h, x: h[..., torch.arange(length(x))],
    "one by a size": lambda h, x: h[..., length(x) - 1].unsqueeze(-1),
    "take_along_dim": lambda h, x: h.take_along_dim(torch.arange(length(x)).view(1, 1, -1), -1),
    "windows": lambda h, x: h.unfold(-1, length(x), 1).amax(-1),
    "diagonal": lambda h, x: h.diagonal(0, 1, 2),
    "diagonal from a size": lambda h, x: torch.diagonal(h, length(x) - 3, 1, 2),
    "unflattened": lambda h, x: F.pad(h, (0, length(x) * WIDTH - WIDTH)).unflatten(-1, (length(x), WIDTH)).amax(-1),
    "repeated": lambda h, x: h.repeat(1, 1, length(x)) * torch.arange(WIDTH * length(x)),
    "repeat_interleave": lambda h, x: h.repeat_interleave(length(x), -1) * torch.arange(WIDTH * length(x)),
    "tiled": lambda h, x: torch.tile(h, (length(x),)) * torch.arange(WIDTH * length(x)),
    "a narrow attention that a layer makes": lambda h, x: h.narrow(-1, 0, length(x)).relu() @ x,
    "an attention of a split that a layer makes": lambda h, x: h.split([length(x), WIDTH - length(x)], -1)[0] @ x,
    "attention that a layer makes": lambda h, x: h[..., : length(x)].softmax(-1) @ x,
    "added to the scores": lambda h, x: (x @ x.mT + h[..., : length(x)]).softmax(-1) @ h,
    "a table of positions": lambda h, x: h + h.mean(0, keepdim=True)[:, : length(x)],
}


@pytest.mark.parametrize("name", KEEPING)
def test_channels_moved_by_a_size(name):
    holds(tokens_around(KEEPING[name], WIDTH), EXAMPLE, OTHERS)


WITHOUT_GRADIENT = {"narrow_copy": after_2_10("has no derivative of it")}


@pytest.mark.parametrize("name", [pytest.param(name, marks=WITHOUT_GRADIENT.get(name, ())) for name in SUMMING])
def test_channels_selected_by_a_size(name):
    select, any_size = SUMMING[name], name != "the last part of a split"  # of as many as the size says
    holds(tokens_around(lambda h, x: select(h, x).sum(-1), WIDTH, 0), EXAMPLE, OTHERS, any_size)


@pytest.mark.parametrize("example", [torch.randn(2, 1, 4), torch.randn(1, 5, 4), torch.randn(2, 11, 4)])
@pytest.mark.parametrize("name", ["to a size", "from behind", "narrow", "split with sizes", "a range"])
def test_channels_selected_by_a_size_whatever_the_example(name, example):
    select = SUMMING[name]
    holds(tokens_around(lambda h, x: select(h, x).sum(-1), WIDTH, 0), example, OTHERS)


# Sizes that are the same on every input: the channels are moved, and go all the same.
CONSTANT = {
    "tensor_split into one that nobody reads": lambda h, x: h * h.tensor_split(3, -1)[1].repeat(1, 1, 3),
    "tensor_split at places out of order": lambda h, x: torch.cat(h.tensor_split((8, 5), dim=-1)[::2], -1)[..., :WIDTH],
    "tensor_split from behind": lambda h, x: torch.cat(torch.tensor_split(h, indices=(-4, 20), dim=-1)[::-1], -1),
    "tensor_split at a share": lambda h, x: torch.cat(h.tensor_split([h.size(-1) // 3], -1)[::-1], -1),
    "dsplit": lambda h, x: torch.cat(torch.dsplit(h, 3)[::-1], -1),
    "hsplit": lambda h, x: torch.cat(h.flatten(0, 1).hsplit(2)[::-1], -1).reshape(h.shape),
    "one part of all": lambda h, x: h.split(4, 0)[0].mean((0, 1), keepdim=True) * h,
    "split at a half": lambda h, x: torch.cat(h.split(h.shape[-1] // 2, -1)[::-1], -1),
    "slice of a share": lambda h, x: h[..., -(h.shape[2] // 3) :].repeat(1, 1, 3),
    "narrow to a half": lambda h, x: h.narrow(-1, h.shape[-1] // 2, h.shape[-1] // 2).repeat(1, 1, 2),
    "rolled by a half": lambda h, x: h.roll(h.shape[-1] // 2, -1),
    "padded by a half": lambda h, x: F.pad(h, (h.shape[-1] // 2, 0))[..., :WIDTH],
    "padded to a size": lambda h, x: F.pad(h, (0, 16 - h.shape[-1]))[..., :WIDTH],
}


@pytest.mark.parametrize("name", CONSTANT)
def test_channels_selected_by_what_is_the_same_on_every_input(name):
    found = holds(tokens_around(CONSTANT[name], WIDTH), EXAMPLE, [*OTHERS, torch.randn(9, 5, 4)])
    assert found.params_left < 0.6  # with whole channels, it would be 0.63


# Rows, columns and batches are selected by sizes as well; the channels go all the same.
ELSEWHERE = {
    "the first half of the length": lambda h, x: h[:, : length(x) // 2 + 1],
    "the last half of the length": lambda h, x: h[:, length(x) // 2 :],
    "the batch without one": lambda h, x: torch.cat([h[: x.shape[0] - 1], h[x.shape[0] - 1 :] * 2]),
    "the last step": lambda h, x: h[:, length(x) - 1],
    "the last step of a list": lambda h, x: h[:, [-1]] * length(x),
    "a length that is moved": lambda h, x: torch.cat([h[:, 1:], h[:, :1]], 1),
    "a length that is rolled by half": lambda h, x: h.roll(length(x) // 2, 1),
    "positions from a table": lambda h, x: h + torch.linspace(0, 1, 40, dtype=h.dtype)[: length(x), None],
    "relative positions": lambda h, x: (
        h * (torch.arange(length(x))[:, None] - torch.arange(length(x))).to(h.dtype).abs().mean(1, True)
    ),
    "causal mask": lambda h, x: (
        (h @ h.mT).masked_fill(torch.ones(length(x), length(x)).triu(1).bool(), float("-inf")).softmax(-1) @ h
    ),
    "causal mask from a buffer's corner": lambda h, x: (
        (h @ h.mT).masked_fill(~torch.ones(40, 40).tril().bool()[: length(x), : length(x)], -1e9).softmax(-1) @ h
    ),
    "padded to an even length": lambda h, x: F.pad(h, (0, 0, 0, length(x) % 2)).unflatten(1, (-1, 2)).mean(2),
    "padded to a multiple": lambda h, x: F.pad(h, (0, 0, 0, -length(x) % 4))[:, : length(x)],
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_lengths_and_batches_selected_by_sizes(name):
    holds(tokens_around(ELSEWHERE[name], WIDTH), EXAMPLE, OTHERS)


# Along the length, by amounts of which some are 0 on the example, as the width's are always.
PADS = {
    "to a multiple, as windows are": lambda h, x: F.pad(h, (0, 0, 0, (5 - length(x) % 5) % 5)),
    "to at least the example's": lambda h, x: F.pad(h, (0, 0, max(0, 5 - length(x)), 0)),
    "by the batch": lambda h, x: F.pad(h, (0, 0, x.shape[0] - 2, 1)),
    "by a list": lambda h, x: F.pad(h, [0, 0, *([length(x) - 2] * 2)]),
    "by name": lambda h, x: F.pad(input=h, pad=(0, 0, 0, length(x) // 4)),
    "with a size": lambda h, x: F.pad(h, (0, 0, 1, 0), value=length(x) - 5)[:, 1:],
    "repeated": lambda h, x: h.repeat(1, length(x) - 1, 1)[:, : length(x)],
    "rolled": lambda h, x: h.roll((length(x) - 5, 1), (1, 1)),
}


@pytest.mark.parametrize("name", [name for name in PADS if name != "with a size"])
def test_amounts_that_are_sizes_keep_no_other_dimension_whole(name):
    found = holds(tokens_around(lambda h, x: PADS[name](h - 0.5, x)), torch.randn(2, 5, 4), [torch.randn(3, 9, 4)])
    assert found.zigs == 8 + WIDTH


def test_a_padding_value_that_is_a_size_is_no_constant():
    holds(tokens_around(lambda h, x: PADS["with a size"](h - 0.5, x)), torch.randn(2, 5, 4), [torch.randn(3, 9, 4)])
