"""What else of its inputs code goes by, and C code hides: the graph refuses what it was not captured for."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import fx_oto


class Either(nn.Module):
    """Takes batches of sequences, or one sequence."""

    def __init__(self, is_one):
        super().__init__()
        self.first, self.last, self.is_one = nn.Linear(6, 16), nn.Linear(16, 4), is_one

    def forward(self, x):
        if alone := self.is_one(x):
            x = x.unsqueeze(0)
        h = self.first(x).relu()
        y = self.last(h + h.mean(1, keepdim=True))
        return y.squeeze(0) if alone else y


def by_dim(x):
    return x.dim() == 2


def by_ndim(x):
    return x.ndim < 3


def by_length_of_shape(x):
    return len(x.shape) == 2


def by_length_of_size(x):
    return len(x.size()) == 2


@pytest.mark.parametrize("asked", [by_dim, by_ndim, by_length_of_shape, by_length_of_size])
@pytest.mark.parametrize("example", [(5, 7, 6), (7, 6)], ids=str)
def test_another_number_of_dimensions_is_refused(asked, example):
    model = Either(asked).eval()
    gm = fx_oto.prepare(model, torch.randn(*example))
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm)
    for sizes in ((3, 4, 6), (4, 6)):
        x = torch.randn(*sizes)
        if len(sizes) == len(example):
            torch.testing.assert_close(small(x), model(x))
        else:
            with pytest.raises(AssertionError, match=f"had {len(example)} dimensions"):
                small(x)


class Layers(nn.Module):
    """Asks how many dimensions there are, but takes any."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x):
        if x.dim() == 0:
            raise ValueError("no vector")
        return self.last(self.first(x).relu())


def test_code_that_does_the_same_takes_any():
    model = Layers().eval()
    gm = fx_oto.prepare(model, torch.randn(2, 6))
    for sizes in ((6,), (3, 6), (2, 3, 6)):
        x = torch.randn(*sizes)
        torch.testing.assert_close(gm(x), model(x))


# -- types of inputs ----------------------------------------------------------------------------------------------


class Masked(nn.Module):
    def __init__(self, masked):
        super().__init__()
        self.masked, self.first, self.last = masked, nn.Linear(5, 12), nn.Linear(12, 4)

    def forward(self, x, mask):
        h = self.first(x).relu()
        return self.last((h @ h.transpose(1, 2) + self.masked(mask, h)).softmax(-1) @ h)


def as_torch_does(mask, h):
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=h.dtype).masked_fill_(mask, float("-inf"))
    return mask


def by_floating_point(mask, h):
    return mask if mask.is_floating_point() else (1.0 - mask.to(h.dtype)) * -1e4


def by_function(mask, h):
    return mask if torch.is_floating_point(mask) else (1.0 - mask.to(h.dtype)) * -1e4


def of_a_view(mask, h):
    mask = mask[:, None].squeeze(1)
    return mask if mask.dtype in (torch.float32, torch.float64) else mask.logical_not() * -1e4


MASK = (torch.arange(36).view(1, 6, 6) % 5 == 1).expand(3, 6, 6).clone()


@pytest.mark.parametrize("masked", [as_torch_does, by_floating_point, by_function, of_a_view])
@pytest.mark.parametrize("kinds", [(torch.float32, torch.bool), (torch.bool, torch.float32)], ids=str)
def test_inputs_of_a_type_for_which_code_goes_another_way_are_refused(masked, kinds):
    model = Masked(masked).eval()
    x, masks = torch.randn(3, 6, 5), [MASK.to(kind) for kind in kinds]
    gm = fx_oto.prepare(model, (x, masks[0]))
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    for graph in (gm, small):
        torch.testing.assert_close(graph(x[:2], masks[0][:2]), model(x[:2], masks[0][:2]), rtol=1e-4, atol=1e-5)
        with pytest.raises(
            AssertionError, match=rf"mask was of {kinds[0]}, and the model's code does something else with"
        ):
            graph(x, masks[1])


def test_images_of_bytes():
    class Images(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

        def forward(self, x):
            if x.dtype == torch.uint8:
                x = x.float() / 255
            return self.last(self.first(x).relu().mean((2, 3)))

    model, images = Images().eval(), torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8)
    small = fx_oto.prepare(model, images)
    torch.testing.assert_close(small(images[:1]), model(images[:1]))
    with pytest.raises(AssertionError, match=r"x was of torch.uint8, and the model's code does something else with"):
        small(images.float())


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_types_that_code_treats_alike_are_all_taken(kind):
    model = Masked(lambda mask, h: mask if mask.dtype == h.dtype else mask.to(h.dtype)).eval()
    x = torch.randn(3, 6, 5)
    for example in (MASK.float(), MASK.to(kind)):
        gm = fx_oto.prepare(model, (x, example))
        torch.testing.assert_close(gm(x, MASK.to(kind)), model(x, MASK.to(kind)))


# -- numbers that are given ---------------------------------------------------------------------------------------


class Numbered(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.first, self.last = function, nn.Linear(5, 12), nn.Linear(12, 4)
        self.layers = nn.ModuleList([nn.Linear(12, 12) for _ in range(4)])

    def forward(self, x, n):
        return self.last(self.function(self, self.first(x).relu(), n))


def loop(model, h, n):
    for _ in range(n):
        h = (h * 0.9 + 1).tanh()
    return h


def layers(model, h, n):
    for layer in model.layers[:n]:
        h = layer(h).relu()
    return h


GONE_BY = {
    "range": loop,
    "slice of modules": layers,
    "index of modules": lambda model, h, n: model.layers[n](h),
    "index of a list": lambda model, h, n: h * [1.0, 2.0, 4.0, 8.0][n],
    "text": lambda model, h, n: h * float(f"{n}.5"),
    "root": lambda model, h, n: h * math.sqrt(n),
    "repeated list": lambda model, h, n: torch.stack([h] * n).sum(0),
    "split": lambda model, h, n: h * len(h.split(n, 1)),
    "half": lambda model, h, n: loop(model, h, n // 2 + 1),
}
FOLLOWED = {
    "product": lambda model, h, n: h * n,
    "power": lambda model, h, n: h / n**0.5,
    "function": lambda model, h, n: torch.roll(h, n, 0),
    "size": lambda model, h, n: h + torch.ones(n, 1, 12).sum(0),
}


@pytest.mark.parametrize("name", GONE_BY)
@pytest.mark.parametrize("training", [False, True])
def test_a_number_that_code_goes_by_must_be_what_it_was(name, training):
    model = Numbered(GONE_BY[name]).train(training)
    x = torch.randn(3, 5)
    gm = fx_oto.prepare(model, (x, 2))
    can_go = fx_oto.partition(gm).num_zigs > 0
    fx_oto.partition(gm).zero_(0.5)
    for graph in (gm, fx_oto.compress(gm)) if can_go else (gm,):
        torch.testing.assert_close(graph(x, 2), model(x, 2), rtol=1e-4, atol=1e-5)
        with pytest.raises(
            AssertionError, match=r"n was 2, and the model's code does something else with other numbers"
        ):
            graph(x, 3)


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_number_that_the_graph_computes_with_may_be_any(name):
    model = Numbered(FOLLOWED[name])
    x = torch.randn(3, 5)
    gm = fx_oto.prepare(model, {"x": x, "n": 2})
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    for n in (1, 2, 3, 7):
        torch.testing.assert_close(small(x=x, n=n), model(x=x, n=n), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", [math.inf, -math.inf, math.nan, 1.5])
def test_numbers_that_are_not_finite(first):
    model, x = Numbered(lambda model, h, n: h.masked_fill(h < 0.1, n).softmax(-1)), torch.randn(3, 5)
    gm = fx_oto.prepare(model, (x, first))
    for n in (math.inf, -math.inf, math.nan, 2, 0.5):
        torch.testing.assert_close(gm(x, n), model(x, n), equal_nan=True)


@pytest.mark.parametrize("function", [lambda model, h, t: h * math.exp(t), lambda model, h, t: h * int(t * 10)])
def test_numbers_with_a_fraction(function):
    model, x = Numbered(function), torch.randn(3, 5)
    gm = fx_oto.prepare(model, (x, 0.5))
    torch.testing.assert_close(gm(x, 0.5), model(x, 0.5))
    with pytest.raises(AssertionError, match=r"n was 0\.5, and the model's code does something else"):
        gm(x, 0.9)


KINDS = {
    "asked": lambda model, h, n: h * 2 if isinstance(n, float) else h,
    "asked for whole numbers": lambda model, h, n: h + h[:, :n].sum(1, True) if isinstance(n, int) else h * n,
    "of several": lambda model, h, n: h * (2 if isinstance(n, list | tuple | int) else 3),
    "as a text": lambda model, h, n: h * (2 if "." in str(n) else 3),
}


@pytest.mark.parametrize("first", [2, 2.0, 2.5])
@pytest.mark.parametrize("name", KINDS)
def test_whole_numbers_of_which_code_thinks_apart(name, first):
    model, x = Numbered(KINDS[name]), torch.randn(3, 5)
    gm = fx_oto.prepare(model, (x, first))
    taken = []
    for n in (first, 2, 2.0, 3, 3.0):
        try:
            found = gm(x, n)
        except AssertionError:
            continue
        torch.testing.assert_close(found, model(x, n))
        taken.append(n)
    assert taken[0] == first
    assert {type(n) for n in taken} == {type(first)}


@pytest.mark.parametrize("first", [2, 0.5, None])
def test_a_number_that_is_left_out(first):
    class Net(Numbered):
        def forward(self, x, n=None):
            h = super().forward(x, n)
            return h if n is None else h.clamp(max=n)

    model, x = Net(lambda model, h, n: h), torch.randn(3, 5)
    gm = fx_oto.prepare(model, (x, first))
    torch.testing.assert_close(gm(x, first), model(x, first))
    others = [(1.5,)] if first is None else [(None,), ()]
    for given in others:
        with pytest.raises(AssertionError, match="the graph was captured where n was"):
            gm(x, *given)


class WithMask(nn.Module):
    """Between two layers something may be done with a mask, (batch, length, length)."""

    def __init__(self, code):
        super().__init__()
        self.first, self.last, self.code = nn.Linear(5, 12), nn.Linear(12, 4), code

    def forward(self, x, mask=None):
        return self.last(self.code(self.first(x).relu(), mask))


attend = nn.functional.scaled_dot_product_attention
LEFT_OUT = {
    "attended otherwise": lambda h, mask: attend(h, h, h, mask) * (2 if mask is None else 1),
    "another branch": lambda h, mask: h if mask is None else attend(h, h, h, mask),
    "a bound": lambda h, mask: 2 * h if mask is None else h.clamp(max=mask[:, :, :1]),
    "rows": lambda h, mask: h if mask is None else h[mask[:, :, 0] > 0].sum() + h,
}
LEFT_TO_TORCH = {
    "attended": lambda h, mask: attend(h, h, h, mask),
    "attended where given": lambda h, mask: attend(h, h, h, attn_mask=mask if mask is not None else None),
    "not read": lambda h, mask: h,
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_code_does_something_else_without_must_be_given(name, training):
    model, x, mask = WithMask(LEFT_OUT[name]).train(training), torch.randn(2, 3, 5), torch.randn(2, 3, 3)
    gm = fx_oto.prepare(model, (x, mask))
    fx_oto.partition(gm).zero_(0.5)
    for graph in (gm, fx_oto.compress(gm)):
        torch.testing.assert_close(graph(x, mask), model(x, mask))
        for given in ((), (None,)):
            with pytest.raises(AssertionError, match="mask was given, and the model's code does something else"):
                graph(x, *given)


@pytest.mark.parametrize("name", LEFT_TO_TORCH)
def test_what_code_leaves_to_torch_may_be_left_out(name):
    model, x, mask = WithMask(LEFT_TO_TORCH[name]), torch.randn(2, 3, 5), torch.randn(2, 3, 3)
    gm = fx_oto.prepare(model, {"x": x, "mask": mask})
    fx_oto.partition(gm).zero_(0.5)
    for graph in (gm, fx_oto.compress(gm)):
        torch.testing.assert_close(graph(x, mask=mask), model(x, mask))
        torch.testing.assert_close(graph(x), model(x))


@pytest.mark.parametrize(
    "given", [lambda n: (7, n), lambda n: [7, n], lambda n: {"steps": n}], ids=["tuple", "list", "dict"]
)
def test_numbers_inside_of_what_is_given(given):
    def last(n):
        return n["steps"] if isinstance(n, dict) else n[-1]

    model, x = Numbered(lambda model, h, n: loop(model, h, last(n))), torch.randn(3, 5)
    gm = fx_oto.prepare(model, (x, given(2)))
    torch.testing.assert_close(gm(x, given(2)), model(x, given(2)))
    with pytest.raises(AssertionError, match="n was 2, and the model's code does something else"):
        gm(x, given(3))
    gm = fx_oto.prepare(Numbered(lambda model, h, n: h * last(n)), (x, given(2)))
    torch.testing.assert_close(copy.deepcopy(gm)(x, given(5)) / 1, gm(x, given(5)))


def test_what_code_decides_by_a_number_is_checked_as_it_was():
    model, x = Numbered(lambda model, h, n: h * 2 if n > 2 else h), torch.randn(3, 5)
    gm = fx_oto.prepare(model, (x, 2))
    for n in (0, 1, 2):
        torch.testing.assert_close(gm(x, n), model(x, n))
    with pytest.raises(AssertionError, match="captured where this was False"):
        gm(x, 3)
