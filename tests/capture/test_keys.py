"""Sizes as keys, members, texts and types: the branch that the eager model takes, or a check where a size decides."""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from functools import cache, lru_cache, singledispatch

import numpy as np
import pytest
import torch
from support.kinds import holds, tokens_around
from torch import nn

import fx_oto

EXAMPLE, OTHERS = torch.randn(2, 8, 4), [torch.randn(3, 5, 4), torch.randn(1, 12, 4)]


@cache
def factor_of(size):
    return 1.0 + size / 7


@lru_cache
def split_in(shape):
    return [size for size in shape if size % 2 == 0]


@singledispatch
def scale_of(size):
    raise TypeError(type(size))


@scale_of.register
def _(size: int):
    return 1 + size


class Sizes(enum.IntEnum):
    SHORT, LONG = 5, 8


# The number of dimensions and the width never change: nothing to check.
ALWAYS = {
    "get of ndim": lambda h, x: h * {3: 5.0}.get(x.ndim, 1.0),
    "get of dim()": lambda h, x: h * {3: 5.0}.get(x.dim(), 1.0),
    "get of the width": lambda h, x: h * {12: 5.0}.get(h.size(-1), 1.0),
    "the width in a set": lambda h, x: h * 5 if h.size(-1) in {12, 32} else h,
    "the width in a tuple": lambda h, x: h * 5 if h.shape[2] in (12, 32) else h,
    "ndim in a dictionary": lambda h, x: h * 5 if x.ndim in {3: 0} else h,
    "ndim not in a list": lambda h, x: h if x.ndim not in [2, 4] else h * 5,
    "looked up by ndim": lambda h, x: h * {2: 3.0, 3: 5.0}[x.ndim],
    "indexed by ndim": lambda h, x: h * [1.0, 2.0, 3.0, 5.0][x.ndim],
    "length of the shape": lambda h, x: h * {3: 5.0}.get(len(x.shape), 1.0),
    "text of ndim": lambda h, x: h * 5 if f"{x.ndim}" == "3" else h,
    "text of the width": lambda h, x: h * {"w12": 5.0}.get(f"w{h.shape[-1]}", 1.0),
    "match of ndim": lambda h, x: _matched(h, x.ndim),
    "isinstance of a size": lambda h, x: h * (5 if isinstance(h.shape[-1], int) else 1),
    "isinstance of a tensor": lambda h, x: h * (5 if isinstance(h, torch.Tensor) else 1),
    "isinstance of the shape": lambda h, x: h * (5 if isinstance(x.shape, torch.Size) else 1),
    "dtype as a key": lambda h, x: h * {torch.float64: 5.0}.get(h.dtype, 1.0),
    "device as a key": lambda h, x: h * {"cpu": 5.0}.get(x.device.type, 1.0),
    "layout and strides": lambda h, x: h * (5 if h.is_contiguous() and h.stride(-1) == 1 else 1),
}
# A size that may differ is looked up: the eager model's branch, or a check.
LOOKED_UP = {
    "get": lambda h, x: h * {8: 5.0}.get(x.size(1), 1.0),
    "get, shape": lambda h, x: h * {(8, 4): 5.0}.get(tuple(x.shape[1:]), 1.0),
    "get, torch.Size": lambda h, x: h * {torch.Size([8, 4]): 5.0}.get(x.shape[1:], 1.0),
    "get of the batch": lambda h, x: h * {2: 5.0}.get(x.shape[0], 1.0),
    "in a set": lambda h, x: h * 5 if x.size(1) in {8, 16} else h,
    "in a frozenset": lambda h, x: h * 5 if x.size(1) in frozenset((8, 16)) else h,
    "in a list": lambda h, x: h * 5 if x.size(1) in [8, 16] else h,
    "in a range": lambda h, x: h * 5 if x.size(1) in range(7, 13) else h,
    "not in a tuple": lambda h, x: h * 5 if x.size(1) not in (8, 16) else h,
    "in a dictionary": lambda h, x: h * 5 if x.size(1) in {8: 0} else h,
    "in the shape": lambda h, x: h * 5 if 8 in x.shape else h,
    "index in the shape": lambda h, x: h * (1 + tuple(x.shape).index(4)),
    "count in the shape": lambda h, x: h * (1 + tuple(x.shape).count(8)),
    "computed before": lambda h, x: h * {4: 5.0}.get(x.size(1) // 2, 1.0),
    "table": lambda h, x: h * [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0][x.size(1)],
    "tuple": lambda h, x: h * tuple(range(1, 20))[x.size(1)],
    "text": lambda h, x: h * 5 if str(x.size(1)) == "8" else h,
    "formatted": lambda h, x: h * {"8x4": 5.0}.get(f"{x.shape[1]}x{x.shape[2]}", 1.0),
    "percent": lambda h, x: h * {"T8": 5.0}.get("T%d" % x.size(1), 1.0),  # noqa: UP031
    "text of the shape": lambda h, x: h * len(str(tuple(x.shape))),
    "setdefault": lambda h, x: h * {8: 5.0}.setdefault(x.size(1), 2.0),
    "defaultdict": lambda h, x: h * defaultdict(lambda: 2.0, {8: 5.0})[x.size(1)],
    "counter": lambda h, x: h * (1 + Counter(x.shape)[8]),
    "set of sizes": lambda h, x: h * len({*x.shape, 8}),
    "union of sets": lambda h, x: h * (1 + len({8, 16} & set(x.shape))),
    "dictionary of sizes": lambda h, x: h * dict(zip("btc", x.shape, strict=True))["t"],
    "hash": lambda h, x: h * (hash(x.size(1)) + 1),
    "lru_cache": lambda h, x: h * factor_of(x.size(1)),
    "lru_cache of the shape": lambda h, x: h * sum(split_in(tuple(x.shape))),
    "singledispatch": lambda h, x: h * scale_of(x.size(1)),
    "match": lambda h, x: _matched(h, x.size(1)),
    "match of the shape": lambda h, x: _matched_shape(h, x.shape),
    "enumeration": lambda h, x: h * (2 if x.size(1) == Sizes.LONG else 3),
    "numpy array": lambda h, x: h * float(np.arange(20)[x.size(1)]),
    "is": lambda h, x: h * 5 if x.size(1) == h.size(1) else h,
    "by the batch, in training": lambda h, x, m: h * {2: 5.0}.get(x.size(0), 1.0) if m.training else h,
    "by a cache on the module": lambda h, x, m: h * _cached(m, x.size(1)),
}


def _matched(h, size):
    match size:
        case 3:
            return h * 5
        case 8:
            return h * 7
        case int():
            return h * 2
    raise TypeError(type(size))


def _matched_shape(h, shape):
    match tuple(shape):
        case (_, 8, _):
            return h * 7
        case (batch, length, 4):
            return h * length / batch
    raise ValueError(shape)


def _cached(module, size):
    cache = module.__dict__.setdefault("sizes", {})
    if size not in cache:
        cache[size] = 1.0 + size
    return cache[size]


@pytest.mark.parametrize("name", ALWAYS)
def test_what_never_changes_is_known(name):
    holds(tokens_around(ALWAYS[name]), EXAMPLE, OTHERS)


def test_a_question_that_fake_tensors_answer_otherwise_is_found_by_the_check():
    class Own(torch.Tensor):
        """Tensors of a class of their own."""

    model = tokens_around(lambda h, x: h * (5 if isinstance(x, Own) else 1))
    with pytest.raises(fx_oto.TraceError, match="does not return what the model returns"):
        fx_oto.prepare(model, EXAMPLE.as_subclass(Own))


@pytest.mark.parametrize("name", LOOKED_UP)
def test_a_size_that_is_looked_up(name):
    holds(tokens_around(LOOKED_UP[name]), EXAMPLE, OTHERS, any_size=False)


class Routed(nn.Module):
    """Modules by size: which of them runs depends on the length."""

    def __init__(self, key):
        super().__init__()
        self.a, self.b, self.key = nn.Linear(4, 16), nn.Linear(16, 3), key
        self.routes = nn.ModuleDict({"8": nn.Linear(16, 16), "5": nn.Sequential(nn.Linear(16, 12), nn.Linear(12, 16))})

    def forward(self, x):
        h = torch.relu(self.a(x))
        name = str(x.size(1)) if self.key == "text" else f"{x.size(1)}"
        return self.b(self.routes[name](h) if name in self.routes else h)


@pytest.mark.parametrize("key", ["text", "formatted"])
def test_modules_that_a_size_selects(key):
    holds(Routed(key), EXAMPLE, OTHERS, any_size=False)


@cache
def halves_of(size):
    return _halves(size)


def _halves(size):
    if size % 2:
        raise ValueError(f"{size} is odd")
    return size // 2


class Halved(nn.Module):
    """Caches what it computes of sizes, where these can be keys; odd and long ones it does not take, in either way."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(32, 3)
        self.places = nn.Parameter(torch.randn(12, 4))

    def forward(self, x):
        try:
            half = halves_of(x.size(1))
        except TypeError:
            half = _halves(x.size(1))
        h = self.first(x + self.places[: x.size(1)]).relu()
        return self.second(torch.cat([h[:, :half], h[:, half:]], -1))


def test_code_that_goes_on_without_a_cache_takes_each_size_that_it_took():
    holds(Halved(), EXAMPLE, [torch.randn(3, 8, 4), torch.randn(2, 12, 4), torch.randn(1, 2, 4)])
