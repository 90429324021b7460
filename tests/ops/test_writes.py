"""Writing in place into some channels, ``x[:, 2:6] = y``, in both training modes or in one of them."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH = 12


class Net(nn.Module):
    """Linear layers around some code, which is given the hidden units; ``first`` makes them."""

    def __init__(self, write, first=lambda h: h * 1.0, mode=None):
        super().__init__()
        self.a, self.b, self.c, self.inner = nn.Linear(5, 7), nn.Linear(7, WIDTH), nn.Linear(WIDTH, 3), nn.Linear(4, 4)
        self.register_buffer("places", torch.tensor([9, 1, 4, 3]))
        self.shift, self.write, self.first, self.mode = nn.Parameter(torch.randn(WIDTH)), write, first, mode

    def forward(self, x):
        h = self.first(self.b(self.a(x)))
        if self.mode is None or self.training == self.mode:
            self.write(self, h)
        return self.c(h)


def set_slice(m, h):
    h[:, 2:6] = m.inner(h[:, 2:6].clone())


def set_the_last(m, h):
    h[..., -4:] = m.inner(h[:, :4].clone())


def set_every_third(m, h):
    h[:, ::3] = h[:, 1::3].clone()


def set_a_number(m, h):
    h[:, 2:6] = 0


def set_one(m, h):
    h[:, 3] = 1.0


def set_rows(m, h):
    h[h[:, 0] > 0, :4] = 0.0


def add_to_slice(m, h):
    h[:, 2:6] += m.inner(h[:, :4].clone())


def add_shift(m, h):
    h += m.shift


def copy_to_slice(m, h):
    h[:, :4].copy_(m.inner(h[:, 4:8].clone()))


def multiply_by_zero(m, h):
    h.mul_(0)


def fill(m, h):
    h.narrow(1, 0, 9).fill_(0)


def mask(m, h):
    h.masked_fill_(h > 1, 0.5)


def absolute(m, h):
    h.abs_()


def set_where_large(m, h):
    h[h > 0.5] = 0.5


def set_where_both(m, h):
    h[(h < 0) & (h > -3)] = torch.zeros(())


def add_where_large(m, h):
    h.index_put_((h > 0.5,), torch.tensor(2.0, dtype=h.dtype), accumulate=True)


def set_channels_by_a_parameter(m, h):
    h[:, m.shift == m.shift.max()] = 0


def set_channels_by_a_table(m, h):
    h[:, torch.arange(2 * WIDTH).view(WIDTH, 2)[:, 1] > 15] = 0


def set_channels_by_a_list(m, h):
    h[:, [True, False, True, False] * 3] = 0


def set_channels_by_data(m, h):
    h[:, h.sum(0) > 1] = 0


def set_to_the_largest(m, h):
    h[h > 0.5] = h.detach().max()


def add_and_halve(m, h):
    h[:, 2:6].add_(1).mul_(0.5)


def cosine_of_the_last(m, h):
    h[:, 8:].cos_()


def cosine_of_some_rows(m, h):
    h[:1, 2:6].cos_()


def cosine_of_rows_that_are_channels(m, h):
    h.t()[2:8].cos_()


def cosine_within_a_part(m, h):
    h[:, 2:10][:, 1:5].cos_()


def cosine_of_one(m, h):
    h.narrow(1, 2, 7)[:, 3].cos_()


def cosine_before_a_part_is_read(m, h):
    view = h[:, :4]
    h.cos_()
    view.mul_(m.inner(view.clone()))


def parts_that_meet(m, h):
    left, right = h[:, :6], h[:, 4:]
    left.cos_()
    right.mul_(2.0)
    left.add_(1)


def parts_side_by_side(m, h):
    left, right = h[:, :6], h[:, 6:]
    left.cos_()
    right.add_(left)


def one_half_then_the_other(m, h):
    out = torch.zeros_like(h)
    out[:, :6] = h[:, 6:]
    out[:, 6:].add_(h[:, :6]).mul_(2)
    h.copy_(out)


def even_and_odd(m, h):
    out, old = torch.zeros_like(h), h.clone()
    out[:, ::2] = old[:, :6]
    out[:, 1::2] = old[:, 6:].cos()
    h.copy_(out)


def add_to_every_second(m, h):
    h[:, 1::2] += 1


def add_through_a_view_of_every_second(m, h):
    h[:, 1::2].add_(1)


def double_through_a_view_of_every_second(m, h):
    h[:, 1::2].mul_(2)


def double_within_every_second(m, h):
    view = h[:, 1::2]
    view[:, 1:] *= 2


def set_some(m, h):
    h[:, [7, 0, 2, 3]] = m.inner(h[:, :4].clone())


def set_some_by_a_table(m, h):
    h[:, m.places] = m.inner(h[:, 4:8].clone())


def set_some_from_behind(m, h):
    h[..., [-1, -5]] = h[:, [0, 4]] * 2


def set_some_that_arange_counts(m, h):
    h[:, torch.arange(1, 9, 2)] = m.inner(h[:, torch.arange(4)])


def set_some_to_a_number(m, h):
    h[:, [1, 2]] = 1.0


def set_some_to_a_shift(m, h):
    h[:, [1, 2, 11]] = m.shift[:3]


def set_some_to_what_examples_share(m, h):
    h[:, [1, 8]] = h[0, [4, 2]].detach()


def set_some_of_some_rows(m, h):
    h[1:, [3, 5]] = h[1:, [5, 3]]


def add_to_some(m, h):
    h[:, [0, 2, 4, 6]] += m.inner(h[:, :4].clone())


def double_some_by_a_table(m, h):
    h[:, m.places] *= 2


def set_some_by_a_mask(m, h):
    h[:, [True, False, True, False] * 3] = h[:, 6:].clone()


def put_some(m, h):
    torch.ops.aten.index_put_(h, [None, m.places], m.inner(h[:, :4].clone()))


def put_and_add_some(m, h):
    torch.ops.aten.index_put_(h, [None, torch.tensor([8, 3])], m.inner(h[:, :4].clone())[:, :2], True)


def put_out_of_place(m, h):
    h.copy_(torch.ops.aten.index_put(h, [None, torch.tensor([8, 3])], h[:, :2].clone()))


def set_the_same_again(m, h):
    h[:, [2, 2, 5]] += h[:, [5, 5, 2]]


def set_one_of_a_list(m, h):
    h[:, [3]] = h[:, [4]].cos()


def set_some_at_places_of_data(m, h):
    h[:, h.sum(0).argsort()[:4]] = m.inner(h[:, :4].clone())


def set_some_pairs(m, h):
    h[[0, 1], [2, 3]] = 0.0


def shift_and_scale(m, h):
    h[:, 2:6].add_(m.shift[:4]).mul_(m.shift[4:8])


# What a linear layer returns is zero once removed; of the others, each joins channels, or keeps one that is written.
WRITES = {
    set_slice: WIDTH,
    set_the_last: WIDTH,
    set_every_third: WIDTH - 4,
    set_a_number: WIDTH,
    set_one: WIDTH - 1,
    set_rows: WIDTH - 1,
    add_to_slice: WIDTH,
    add_shift: WIDTH,
    copy_to_slice: WIDTH,
    multiply_by_zero: WIDTH,
    fill: WIDTH,
    mask: WIDTH,
    absolute: WIDTH,
    set_where_large: WIDTH,
    set_where_both: WIDTH,
    add_where_large: WIDTH,
    set_channels_by_a_parameter: WIDTH,
    set_channels_by_a_table: WIDTH,
    set_channels_by_a_list: WIDTH,
    set_channels_by_data: WIDTH,
    set_to_the_largest: WIDTH,
    add_and_halve: WIDTH,
    cosine_of_the_last: WIDTH,
    cosine_of_some_rows: WIDTH,
    cosine_of_rows_that_are_channels: WIDTH,
    cosine_within_a_part: WIDTH,
    cosine_of_one: WIDTH - 1,
    cosine_before_a_part_is_read: WIDTH,
    parts_that_meet: WIDTH,
    parts_side_by_side: WIDTH // 2,
    one_half_then_the_other: WIDTH // 2,
    even_and_odd: 3,
    add_to_every_second: WIDTH,
    # Once channels are cut, every second of those that are left is not every second of all.
    add_through_a_view_of_every_second: 0,
    double_through_a_view_of_every_second: 0,
    double_within_every_second: 0,
    shift_and_scale: WIDTH,
    set_some: WIDTH,
    set_some_by_a_table: WIDTH,
    set_some_from_behind: WIDTH - 2,
    set_some_that_arange_counts: WIDTH,
    set_some_to_a_number: WIDTH,
    set_some_to_a_shift: WIDTH,
    set_some_to_what_examples_share: WIDTH - 2,
    set_some_of_some_rows: WIDTH - 1,
    add_to_some: WIDTH,
    double_some_by_a_table: WIDTH,
    set_some_by_a_mask: WIDTH // 2,
    set_the_same_again: WIDTH - 1,
    set_one_of_a_list: WIDTH - 2,
    set_some_at_places_of_data: 0,
    set_some_pairs: 0,
}


@pytest.mark.parametrize("mode", [None, False, True])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_channels_are_cut(write, mode):
    found = compress_half(Net(write, mode=mode), torch.randn(4, 5), sensitive=write is not multiply_by_zero)
    assert found.zigs == WRITES[write] + 7


@pytest.mark.parametrize("mode", [None, False, True])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_what_is_not_zero_once_removed(write, mode):
    compress_half(Net(write, lambda h: h.sigmoid() * 1.0, mode), torch.randn(4, 5), sensitive=False)


@pytest.mark.parametrize("first", [lambda h: h * 1.0, lambda h: h.sigmoid() * 1.0], ids=["zero", "half"])
@pytest.mark.parametrize("write", [put_some, put_and_add_some, put_out_of_place], ids=lambda write: write.__name__)
def test_writes_as_torch_export_spells_them(write, first):
    zigs = compress_half(Net(write, first), torch.randn(4, 5)).zigs
    assert zigs == WIDTH + 7 + {put_some: 0, put_and_add_some: 2, put_out_of_place: -2}[write]


def test_noise_of_training_alone():
    def noise(m, h):
        h.add_(torch.randn_like(h))

    assert compress_half(Net(noise, mode=True), torch.randn(4, 5)).zigs == WIDTH + 7
    gm = fx_oto.prepare(Net(noise, mode=False), torch.randn(4, 5))
    assert fx_oto.partition(gm).num_zigs == 7


def test_rows_by_a_mask_of_several_dimensions():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.inner = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3), nn.Linear(4, 4)

        def forward(self, x):
            h = self.a(x)
            chosen = x[..., 0] > 0
            h[chosen, 2:6] = self.inner(h[:, 0, 2:6].mean(0))
            return self.b(h)

    assert compress_half(Tokens(), torch.randn(4, 6, 5)).zigs == WIDTH


def test_steps_that_a_loop_writes_one_by_one():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.b = nn.GRUCell(5, WIDTH), nn.Linear(WIDTH, 3)

        def forward(self, x):
            h, out = x.new_zeros(x.size(0), WIDTH), x.new_zeros(x.size(0), 4, WIDTH)
            for step in range(4):
                h = self.cell(x[:, step], h)
                out[:, step] = h
            return self.b(out)

    assert compress_half(Loop(), torch.randn(2, 4, 5)).zigs == WIDTH


class Partial(nn.Module):
    """A convolution of the first channels alone, spelled in one way in training and in another in evaluation."""

    def __init__(self, in_place):
        super().__init__()
        self.conv, self.in_place = nn.Conv2d(4, 4, 3, padding=1), in_place

    def forward(self, x):
        if self.training != self.in_place:
            return torch.cat([self.conv(x[:, :4]), x[:, 4:]], 1)
        x[:, :4] = self.conv(x[:, :4].clone())
        return x


@pytest.mark.parametrize("in_place", [False, True])
def test_two_spellings_of_one_computation(in_place):
    torch.manual_seed(0)
    ends = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1)
    model = nn.Sequential(ends[0], Partial(in_place), *ends[1:])
    assert compress_half(model, torch.randn(2, 3, 8, 8)).zigs == 32  # what is written shares the channels' place


@pytest.mark.parametrize("write", [set_slice, set_some, put_some])
def test_a_graph_of_torch_export(write):
    torch.manual_seed(0)
    model = Net(write).double()
    exported = torch.export.export(model, (torch.randn(4, 5, dtype=torch.float64),)).module()
    gm = fx_oto.prepare(exported, torch.randn(4, 5, dtype=torch.float64))
    assert fx_oto.partition(gm).num_zigs == WIDTH + 7
    fx_oto.partition(gm).zero_(0.5)
    small, x = fx_oto.compress(gm), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(small(x), exported(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Linear])
def test_channels_of_images_and_of_tokens(kind):
    class Some(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.inner, self.b = kind(3, 8, 1), kind(2, 2, 1), kind(8, 3, 1)
            self.places = (1, 6) if kind is nn.Conv2d else torch.tensor([1, 6])

        def forward(self, x):
            h = self.a(x).sigmoid() * 2
            if kind is nn.Conv2d:
                h[:, list(self.places), 1:] = self.inner(h[:, 2:4, 1:].clone())
            else:
                h[:, 1:, self.places] += self.inner(h[:, :1, 2:4].clone())
            return self.b(h)

    torch.manual_seed(0)
    shape = (2, 3, 6, 6) if kind is nn.Conv2d else (2, 5, 3)
    assert compress_half(Some(), torch.randn(shape), any_size=True).zigs == 8


def test_places_that_are_named_twice_are_not_all():
    """Of 4 copies of a channel, worth a half once it is removed, two are written and two are not."""

    class Copies(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = self.a(x).sigmoid().unsqueeze(2).repeat(1, 1, 4)
            h[:, :, [0, 1, 1, 0]] = 0.0
            return self.b(h.mT)

    torch.manual_seed(0)
    assert compress_half(Copies(), torch.randn(4, 5)).zigs == 8


class Written(nn.Module):
    """A convolution whose first rows of pixels, or first channels, are written anew."""

    def __init__(self, channels):
        super().__init__()
        self.a, self.b, self.rows, self.channels = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1), 2, channels

    def forward(self, x):
        x = self.a(x)
        if self.channels:
            x[..., : self.channels, :, :] = x[:, -4:].sigmoid() - 0.5
        else:
            x[:, :, : self.rows] = 0
            x[..., x.size(-1) // 2] = 0
        return self.b(x)


class Whole(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(3, 3, 1), Written(channels), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.last(self.inner(self.first(x)))


@pytest.mark.parametrize("channels", [0, 4])
def test_written_back(channels):
    """Into the user's own class; where the code spells out channels, that module alone becomes a graph."""
    torch.manual_seed(0)
    model, x = Whole(channels).double().eval(), torch.randn(2, 3, 8, 8).double()
    gm = fx_oto.prepare(model, x)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    assert small.inner.a.out_channels < 8
    back = fx_oto.write_back(small, model)
    torch.testing.assert_close(back(x), model(x))
    assert {one.module for one in fx_oto.WriteBack.of(back).graphs} == ({"inner"} if channels else set())
