"""Sizes that torch's functions are given, in every spelling: any batch, or a word at prepare with the line."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from support.exactness import CHECK
from support.kinds import fixed, holds, tokens_around
from torch import nn

import fx_oto

EXAMPLE, OTHERS = torch.randn(2, 3, 4), [torch.randn(3, 3, 4), torch.randn(1, 3, 4), torch.randn(5, 3, 4)]


def batch(x):
    return x.shape[0]


def written(h, x):
    out = h.new_empty(batch(x), 3, 16)
    out[:] = h
    return out.flatten(1)


def swapped_halves(h, x):
    half = batch(x) // 2
    return torch.cat([h[half:], h[:half]]).flatten(1)


# (batch, 3, 16) to (batch, 48). Nothing needs to know the batch.
FUNCTIONS = {
    "reshape": lambda h, x: h.reshape(batch(x), -1),
    "reshape of a list": lambda h, x: h.reshape([batch(x), -1]),
    "reshape of a tuple": lambda h, x: h.reshape((x.size(0), 48)),
    "torch.reshape of a list": lambda h, x: torch.reshape(h, [batch(x), -1]),
    "torch.reshape of a tuple": lambda h, x: torch.reshape(h, (x.size(0), 48)),
    "torch.reshape by name": lambda h, x: torch.reshape(input=h, shape=(batch(x), -1)),
    "torch.reshape of a shape": lambda h, x: torch.reshape(h, x.shape[:1] + (-1,)),  # noqa: RUF005
    "reshape of an unpacked shape": lambda h, x: h.reshape(*x.shape[:1], 48),
    "reshape of torch.Size": lambda h, x: h.reshape(torch.Size([batch(x), 48])),
    "reshape of a product": lambda h, x: h.reshape(batch(x) * 3, 16).reshape(batch(x), 48),
    "reshape of math.prod": lambda h, x: h.reshape(math.prod(x.shape[:2]), 16).reshape(-1, 48),
    "reshape_as": lambda h, x: h.flatten(1).reshape_as(x.new_empty(batch(x), 48)),
    "view": lambda h, x: h.view(batch(x), 48),
    "view of a list": lambda h, x: h.view([batch(x), -1]),
    "view by name": lambda h, x: h.view(size=(batch(x), 48)),
    "view_as": lambda h, x: h.view_as(x.new_empty(batch(x), 48)),
    "reshape_as a grid": lambda h, x: h.reshape_as(x.new_empty(batch(x), 3, 4, 4)).flatten(1),
    "view_as itself": lambda h, x: h.flatten(1).view_as(other=h).flatten(1),
    "reshape_as what is left of no channel": lambda h, x: (
        h.unflatten(-1, (8, 2)).mT.reshape_as(h.unflatten(-1, (2, 8))).flatten(1)
    ),
    "unflatten": lambda h, x: torch.unflatten(h.flatten(0, 1), 0, (batch(x), 3)).flatten(1),
    "unflatten, method": lambda h, x: h.flatten(0, 1).unflatten(0, (batch(x), -1)).flatten(1),
    "unflatten by name": lambda h, x: h.flatten(0, 1).unflatten(dim=0, sizes=[batch(x), 3]).flatten(1),
    "as_strided": lambda h, x: h.contiguous().as_strided((batch(x), 48), (48, 1)),
    "expand": lambda h, x: (h + h[:1].expand(batch(x), 3, 16)).flatten(1),
    "expand of a list": lambda h, x: (h + h[:1].expand([batch(x), -1, -1])).flatten(1),
    "expand_as": lambda h, x: (h + h[:1].expand_as(h)).flatten(1),
    "expand_as another": lambda h, x: (h + h[:1].expand_as(x.new_empty(batch(x), 3, 16))).flatten(1),
    "expand_as by name": lambda h, x: (h + h.mean(1, True).expand_as(other=h)).flatten(1),
    "torch.broadcast_to": lambda h, x: torch.broadcast_to(h.mean(0, True), (x.size(0), 3, 16)).reshape(batch(x), -1),
    "broadcast_to, method": lambda h, x: (h + h[:1].broadcast_to((batch(x), 3, 16))).flatten(1),
    "repeat": lambda h, x: h[:1].repeat(batch(x), 1, 1).flatten(1),
    "repeat of a list": lambda h, x: (h + h[:1].repeat([batch(x), 1, 1])).flatten(1),
    "torch.tile": lambda h, x: torch.tile(h[:1], (x.size(0), 1, 1)).flatten(1),
    "tile, method": lambda h, x: (h + h[:1].tile(batch(x), 1, 1)).flatten(1),
    "repeat_interleave": lambda h, x: (h + h[:1].repeat_interleave(batch(x), 0)).flatten(1),
    "torch.repeat_interleave": lambda h, x: (h + torch.repeat_interleave(h[:1], batch(x), dim=0)).flatten(1),
    "narrow": lambda h, x: h.narrow(0, 0, batch(x)).flatten(1),
    "torch.narrow": lambda h, x: torch.narrow(torch.cat([h, h]), 0, batch(x), batch(x)).flatten(1),
    "select": lambda h, x: (h + h.select(0, batch(x) - 1)).flatten(1),
    "torch.select": lambda h, x: (h + torch.select(h, 0, batch(x) - 1)).flatten(1),
    "index by a size": lambda h, x: (h + h[batch(x) - 1]).flatten(1),
    "slice": lambda h, x: torch.cat([h, h])[batch(x) :].flatten(1),
    "slice to the least": lambda h, x: h[: min(batch(x), 100)].flatten(1),
    "split": lambda h, x: torch.cat([h, h]).split(batch(x))[1].flatten(1),
    "torch.split with sizes": lambda h, x: torch.cat(torch.split(h, [x.size(0) - 1, 1], 0)).flatten(1),
    "split by name": lambda h, x: torch.split(torch.cat([h, h]), split_size_or_sections=batch(x))[0].flatten(1),
    "tensor_split": lambda h, x: torch.cat([h, h]).tensor_split((batch(x),))[1].flatten(1),
    "chunk into two": lambda h, x: torch.cat([h, 2 * h]).chunk(2)[1].flatten(1),
    "roll": lambda h, x: torch.roll(h, (1,), (0,)).flatten(1),
    "roll by a size": lambda h, x: torch.roll(h, batch(x) // 2, 0).flatten(1),
    "halves swapped": swapped_halves,
    "flip": lambda h, x: h.flip(0).flatten(1),
    "arange": lambda h, x: h[torch.arange(x.size(0))].flatten(1),
    "arange from behind": lambda h, x: h[torch.arange(batch(x) - 1, -1, -1)].flatten(1),
    "arange of a modulus": lambda h, x: h[(torch.arange(batch(x)) + 1) % batch(x)].flatten(1),
    "index_select": lambda h, x: h.index_select(0, torch.arange(batch(x))).flatten(1),
    "gather": lambda h, x: h.gather(0, torch.zeros(batch(x), 3, 16, dtype=torch.long)).flatten(1),
    "zeros": lambda h, x: (h + torch.zeros(batch(x), 3, 16, dtype=h.dtype)).flatten(1),
    "zeros of a list": lambda h, x: (h + torch.zeros([batch(x), 3, 16], dtype=h.dtype)).flatten(1),
    "zeros by name": lambda h, x: (h + torch.zeros(size=(batch(x), 3, 16), dtype=h.dtype)).flatten(1),
    "zeros of a shape": lambda h, x: (h + torch.zeros(h.shape, dtype=h.dtype)).flatten(1),
    "ones": lambda h, x: (h * torch.ones(batch(x), 1, 1, dtype=h.dtype)).flatten(1),
    "full": lambda h, x: h.flatten(1) + torch.full((x.size(0), 1), 0.5, dtype=h.dtype),
    "full of sizes": lambda h, x: h.flatten(1) + torch.full((batch(x), 1), batch(x), dtype=h.dtype),
    "empty": lambda h, x: torch.empty(batch(x), 48, dtype=h.dtype).copy_(h.flatten(1)),
    "new_zeros": lambda h, x: (h + h.new_zeros(batch(x), 3, 16)).flatten(1),
    "new_ones": lambda h, x: (h * h.new_ones((batch(x), 1, 1))).flatten(1),
    "new_full": lambda h, x: (h + h.new_full((batch(x), 3, 1), 0.5)).flatten(1),
    "new_empty, written": written,
    "eye": lambda h, x: (torch.eye(batch(x), dtype=h.dtype) @ h.flatten(1)) * 2,
    "linspace": lambda h, x: h.flatten(1) * torch.linspace(1, 2, batch(x), dtype=h.dtype)[:, None],
    "tril": lambda h, x: torch.ones(batch(x), batch(x), dtype=h.dtype).tril() @ h.flatten(1) / 3,
    "tril_indices": lambda h, x: h.flatten(1) + h[torch.tril_indices(batch(x), batch(x))[0]].flatten(1).mean(0),
    "meshgrid": lambda h, x: h.flatten(1) * torch.meshgrid(torch.arange(batch(x)), torch.arange(48), indexing="ij")[0],
    "cumsum over the batch": lambda h, x: h.cumsum(0).flatten(1) / batch(x),
    "pad": lambda h, x: F.pad(h, (0, 0, 0, 0, 0, x.size(0)))[: x.size(0)].flatten(1),
    "pad to a multiple": lambda h, x: F.pad(h, (0, 0, 0, 0, 0, -batch(x) % 4))[: batch(x)].flatten(1),
    "view by -1 times": lambda h, x: h.view(-1, 3 * 16),
    "interpolate": lambda h, x: F.interpolate(h.permute(2, 1, 0), size=batch(x)).permute(2, 1, 0).flatten(1),
    "adaptive pooling": lambda h, x: F.adaptive_avg_pool1d(h.permute(1, 2, 0), batch(x)).permute(2, 0, 1).flatten(1),
    "one_hot": lambda h, x: F.one_hot(torch.arange(batch(x)), batch(x)).to(h.dtype) @ h.flatten(1),
    "scatter": lambda h, x: h.flatten(1).scatter_add(0, torch.zeros(batch(x), 48, dtype=torch.long), h.flatten(1)),
    "index_add": lambda h, x: h.index_add(0, torch.arange(batch(x)), h).flatten(1),
    "bmm": lambda h, x: torch.bmm(h, h.mT).expand(batch(x), 3, 3).flatten(1).repeat(1, 6)[:, :48],
    "einsum": lambda h, x: torch.einsum("btc,bsc->bts", h, h).reshape(batch(x), 9).repeat(1, 6)[:, :48],
    "stack of a constant": lambda h, x: torch.cat([h, h.new_zeros(batch(x), 1, 16)], 1)[:, :3].flatten(1),
    "class token": lambda h, x, m: torch.cat([m.scale.expand(batch(x), 1, 16), h], 1)[:, :3].flatten(1),
    "a function of the size": lambda h, x: h.flatten(1) * (batch(x) / (batch(x) + 1)),
    "assert on the size": lambda h, x: _asserted(h, x) * 2,
    "numel": lambda h, x: h.reshape(h.numel() // 48, 48),
    "to float and back": lambda h, x: h.reshape(int(batch(x) * 1.0), 48),
    "int of a half": lambda h, x: h.reshape(int(2 * batch(x) / 2), 48),
}
# Plain numbers for C code: dynamic, or said at prepare.
SEEN = {
    "float": lambda h, x: h.flatten(1) * (batch(x) / float(batch(x) + 1)),
    "int, which cuts off": lambda h, x: h.flatten(1) * 0.5 * int(batch(x) / 2 + 1),
    "int of a third": lambda h, x: h.flatten(1) + int(batch(x) / 3),
    "math.sqrt": lambda h, x: h.flatten(1) * math.sqrt(batch(x)),
    "len": lambda h, x: h.reshape(len(x), 48),
    "len of the output": lambda h, x: h.reshape(len(h), -1),
    "range": lambda h, x: torch.stack([h[i].reshape(-1) for i in range(x.size(0))]),
    "list of zeros": lambda h, x: h.flatten(1) + torch.tensor([0.5] * batch(x), dtype=h.dtype)[:, None],
    "tensor of a range": lambda h, x: h[torch.tensor(list(range(batch(x))))].flatten(1),
    "index by a list": lambda h, x: h[list(range(batch(x)))].flatten(1),
    "block_diag": lambda h, x: torch.block_diag(*h[..., :1].unbind(0))[:, :1].mean() + h.flatten(1),
    "text": lambda h, x: h.reshape(int(f"{batch(x)}"), 48),
    "round": lambda h, x: h.reshape(round(batch(x) * 1.0), 48),
    "tolist": lambda h, x: h.reshape(torch.tensor(x.shape).tolist()[0], 48),
    "numpy": lambda h, x: h.flatten(1) * float(torch.tensor(batch(x)).numpy()),
    "even or odd": lambda h, x: h.flatten(1) * (2 if batch(x) % 2 else 3),
    "compared": lambda h, x: h.flatten(1) * (2 if batch(x) > 2 else 3),
    "training batch": lambda h, x, m: h.flatten(1) * (2 if m.training and batch(x) > 2 else 3),
}


def _asserted(h, x):
    assert h.shape[0] == x.shape[0]
    assert x.shape[0] > 0
    return h.flatten(1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_batch(name):
    holds(tokens_around(FUNCTIONS[name], 16, 48), EXAMPLE, OTHERS)


@pytest.mark.parametrize("name", SEEN)
def test_any_batch_or_a_word_at_prepare(name):
    holds(tokens_around(SEEN[name], 16, 48), EXAMPLE, OTHERS, any_size=False)


class Kernels(nn.Module):
    """A kernel for each example: a batch is one convolution in as many groups."""

    def __init__(self, groups):
        super().__init__()
        self.w, self.s, self.o = nn.Parameter(torch.randn(8, 4, 3, 3)), nn.Linear(5, 4), nn.Conv2d(8, 3, 1)
        self.c, self.groups = nn.Parameter(torch.randn(4, 6, 6)), groups
        self.z = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, z):
        b, z = z.shape[0], self.z(z)
        k = (self.w[None] * self.s(z)[:, None, :, None, None]).reshape(-1, 4, 3, 3)
        x = F.conv2d(self.c.repeat(b, 1, 1).reshape(1, -1, 6, 6), k, padding=1, groups=self.groups(z))
        return self.o(x.reshape(b, 8, 6, 6).relu())


GROUPS = {
    "of the shape": lambda z: z.shape[0],
    "of size()": lambda z: z.size(0),
    "of len": len,
    "of a product": lambda z: z.numel() // 5,
    "of int": lambda z: int(z.shape[0]),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_by_the_batch(name):
    holds(Kernels(GROUPS[name]), torch.randn(2, 5), [torch.randn(3, 5), torch.randn(1, 5)], any_size=False)


@pytest.mark.parametrize("name", ["range", "compared", "even or odd", "text"])
def test_a_batch_that_is_fixed_is_announced_once_with_line_and_remedy(name):
    model = tokens_around(SEEN[name], 16, 48)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", fx_oto.FxOtoWarning)
        gm = fx_oto.prepare(model, EXAMPLE)
    said = [str(w.message) for w in told if issubclass(w.category, fx_oto.FxOtoWarning) and "batch" in str(w.message)]
    if fixed(gm):
        assert list(fixed(gm)) == [("x", 0)]
        assert len(said) == 1
        assert re.search(r"test_sizes_in_functions\.py:\d+", said[0])
        assert re.search(r"test_sizes_in_functions\.py:\d+", fixed(gm)["x", 0])
        with pytest.raises(AssertionError, match=CHECK):
            gm(OTHERS[0])
    else:
        assert not said
        torch.testing.assert_close(gm(OTHERS[0]), model(OTHERS[0]))


@pytest.mark.parametrize("name", ["reshape", "torch.reshape of a list", "zeros", "int of a half"])
def test_a_dynamic_batch_is_shown_as_such(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = fx_oto.prepare(tokens_around(FUNCTIONS[name], 16, 48), EXAMPLE)
    assert ("x", 0) not in fixed(gm)


def test_what_takes_any_size_says_nothing_of_sizes():
    gm = fx_oto.prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), EXAMPLE)
    assert not fixed(gm)
