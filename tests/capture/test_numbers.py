"""Numbers that are made of sizes are computed, not remembered: exact at every size, whatever they are used for."""

from __future__ import annotations

import math
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.kinds import holds, images_around, tokens_around
from torch import nn

import fx_oto

TOKENS = torch.randn(2, 8, 4)
OTHER_TOKENS = [torch.randn(2, 20, 4), torch.randn(5, 3, 4), torch.randn(1, 9, 4)]
IMAGE = torch.randn(2, 3, 8, 8)
OTHER_IMAGES = [torch.randn(2, 3, 16, 16), torch.randn(3, 3, 6, 10), torch.randn(1, 3, 5, 7)]


def _by_mean_length(h, batch, length, width):
    return h * batch / length


def _by_rest(h, shape):
    batch, *rest = shape
    return h * batch / rest[0]


# Arithmetic of Python, and numbers that torch is given: nothing looks at them, so every size must do.
NUMBERS = {
    "/ T": lambda h, x: h / x.shape[1],
    "* T": lambda h, x: h * x.size(1),
    "+ B": lambda h, x: h + x.shape[0],
    "- B": lambda h, x: h - x.size(dim=0),
    "T - h": lambda h, x: x.shape[1] - h,
    "T / h": lambda h, x: x.shape[-2] / (1 + h),
    "** -0.5": lambda h, x: h * x.shape[1] ** -0.5,
    "square root of a product": lambda h, x: h * (x.shape[0] * x.shape[1]) ** 0.5,
    "numel": lambda h, x: h / x.numel(),
    "numel of a shape": lambda h, x: h / x.shape.numel(),
    "nelement": lambda h, x: h / x.nelement(),
    "nbytes": lambda h, x: h / h.nbytes,
    "stride": lambda h, x: h / h.stride(0),
    "strides": lambda h, x: h / h.stride()[0] + h.mT.stride()[2],
    "size of what was computed": lambda h, x: h / h.size(1) + h.shape[0],
    "size of a slice": lambda h, x: h * x[:, 1:].size(1),
    "size of a reshape": lambda h, x: h / x.reshape(-1, 4).shape[0],
    "one over one more": lambda h, x: h * (1 / (1 + x.shape[1])),
    "//": lambda h, x: h * (x.shape[1] // 3 + 1),
    "%": lambda h, x: h + x.shape[1] % 5,
    "divmod": lambda h, x: h * (divmod(x.shape[1], 3)[1] + 2),
    "-T": lambda h, x: h * -x.shape[1],
    "+T": lambda h, x: h * +x.shape[1],
    "abs": lambda h, x: h * abs(1 - x.shape[1] * 2),
    "<<": lambda h, x: h * (x.shape[1] << 1),
    ">>": lambda h, x: h * ((x.shape[1] + 2) >> 1),
    "pow": lambda h, x: h / pow(x.shape[1], 2),
    "operator.mul": lambda h, x: h / operator.mul(x.shape[0], x.shape[1]),
    "sum of a shape": lambda h, x: h / sum(x.shape),
    "math.prod of a shape": lambda h, x: h / math.prod(x.shape[:-1]),
    "unpacked": lambda h, x: _by_mean_length(h, *x.shape),
    "unpacked with a star": lambda h, x: _by_rest(h, x.shape),
    "list of a shape": lambda h, x: h / list(x.shape)[1],
    "tuple of a shape": lambda h, x: h / tuple(x.size())[1],
    "within a loop": lambda h, x: h / [size * 2 for size in x.shape][1],
    "ratio of two": lambda h, x: h * (x.shape[1] / x.shape[0]),
    "torch.mul": lambda h, x: torch.mul(h, x.shape[1]),
    "torch.div with floor": lambda h, x: torch.div(10 * h, x.shape[1], rounding_mode="floor") + h,
    "torch.add with alpha": lambda h, x: torch.add(h, 1, alpha=x.shape[1]),
    "torch.sub with alpha": lambda h, x: torch.sub(h, h * h, alpha=1 / x.shape[1]),
    "addcmul": lambda h, x: torch.addcmul(h, h, h, value=1 / x.shape[1]),
    "lerp": lambda h, x: torch.lerp(h, h * h, 1 / x.shape[1]),
    "in place": lambda h, x: h.clone().div_(x.shape[1]).add_(x.shape[0]),
    "power of a tensor": lambda h, x: h ** (1 / x.shape[1]),
    "number to the power of a tensor": lambda h, x: x.shape[1] ** -h,
    "slope": lambda h, x: F.leaky_relu(h - 0.6, 1 / x.shape[1]),
    "elu": lambda h, x: F.elu(h - 0.6, alpha=1 / x.shape[1]),
    "softplus": lambda h, x: F.softplus(h, beta=1 / x.shape[1]),
    "hardtanh": lambda h, x: F.hardtanh(h, -1 / x.shape[1], 2 / x.shape[1]),
    "clamp": lambda h, x: h.clamp(min=1 / x.shape[1]),
    "clip from above": lambda h, x: torch.clip(h, max=2 / x.shape[1]),
    "masked_fill": lambda h, x: h.masked_fill(h < 0.5, 1 / x.shape[1]),
    "where": lambda h, x: torch.where(h > 0.5, h, 1 / x.shape[1]),
    "where, of a tensor": lambda h, x: torch.where(h > 0.5, h, torch.full_like(h, x.shape[1])),
    "full": lambda h, x: h * torch.full((1,), x.shape[1], dtype=h.dtype),
    "full_like": lambda h, x: h + torch.full_like(h, 1 / x.shape[1]),
    "new_full": lambda h, x: h + h.new_full((12,), 1 / x.shape[1]),
    "fill_": lambda h, x: h + torch.empty_like(h).fill_(1 / x.shape[1]),
    "sum of ones": lambda h, x: h / torch.ones(x.shape[1], dtype=h.dtype).sum(),
    "mean of a range": lambda h, x: h * torch.arange(x.shape[1], dtype=h.dtype).mean(),
    "arange to a size": lambda h, x: h + torch.arange(x.shape[1], dtype=h.dtype)[:, None],
    "arange from minus a size": lambda h, x: h + torch.arange(-x.shape[1], 0, dtype=h.dtype)[:, None],
    "linspace": lambda h, x: h * torch.linspace(1, 2, x.shape[1], dtype=h.dtype)[:, None],
    "linspace to a size": lambda h, x: h * torch.linspace(1, x.shape[1], 12, dtype=h.dtype)[-1],
    "mean, spelled out": lambda h, x: h + h.sum(1, keepdim=True) / h.shape[1],
    "variance, spelled out": lambda h, x: h + (h - h.mean(1, True)).square().sum(1, True) / (h.shape[1] - 1),
    "mean over the batch, spelled out": lambda h, x: h + h.sum(0) / h.shape[0],
    "root of the sum of squares": lambda h, x: h * (h.square().sum(1, True) / h.shape[1]).sqrt(),
    "eps of a norm": lambda h, x: F.layer_norm(h, (12,), eps=1 / x.shape[1]),
    "attention": lambda h, x: F.scaled_dot_product_attention(h, h, h, scale=x.shape[1] ** -0.5),
    "attention, spelled out": lambda h, x: (h @ h.mT / x.shape[1] ** 0.5).softmax(-1) @ h,
    "baddbmm": lambda h, x: torch.baddbmm(h, h @ h.mT, h, beta=1 / x.shape[1], alpha=x.shape[0]),
    "with a parameter": lambda h, x, m: h * (m.scale / x.shape[1]),
    "parameter to its power": lambda h, x, m: h * m.scale.exp() ** (1 / x.shape[1]),
    "in training only": lambda h, x, m: h / x.shape[1] if m.training else h,
    "of another in training": lambda h, x, m: h * x.shape[0] if m.training else h * x.shape[1],
}
# C code sees a plain number, or Python rounds: computed all the same, or the graph says for what size it is.
SEEN = {
    "math.sqrt": lambda h, x: h * math.sqrt(x.shape[1]),
    "math.log": lambda h, x: h / math.log(x.shape[1] + 1),
    "math.exp": lambda h, x: h * math.exp(-x.shape[1]),
    "math.log2 and ceil": lambda h, x: h * math.ceil(math.log2(x.shape[1] + 1)),
    "math.gcd": lambda h, x: h * math.gcd(x.shape[1], 6),
    "math.floor": lambda h, x: h * math.floor(x.shape[1] / 3 + 1),
    "math.pow": lambda h, x: h * math.pow(x.shape[1], -0.5),
    "math.hypot": lambda h, x: h / math.hypot(x.shape[1], x.shape[0]),
    "numpy": lambda h, x: h * float(np.sqrt(x.shape[1])),
    "numpy's float": lambda h, x: h / np.sqrt(x.shape[1]),
    "numpy's product": lambda h, x: h / float(np.prod(x.shape)),
    "float": lambda h, x: h / float(x.shape[1]),
    "int": lambda h, x: h * int(x.shape[1]),
    "int of a quotient": lambda h, x: h * int(x.shape[1] / 2 + 1),
    "round": lambda h, x: h * round(x.shape[1] / 3 + 1),
    "max": lambda h, x: h * max(x.shape[1], 9),
    "min": lambda h, x: h * min(x.shape[1], 9),
    "max of a shape": lambda h, x: h / max(x.shape),
    "sorted": lambda h, x: h / sorted(x.shape)[-1],
    "len of a tensor": lambda h, x: h / len(x[0]),
    "len of a list": lambda h, x: h / len(x.unbind(1)),
    "tensor": lambda h, x: h * torch.tensor(x.shape[1]),
    "tensor of floats": lambda h, x: h * torch.tensor([1.0, x.shape[1] ** 0.5], dtype=h.dtype)[1],
    "new_tensor": lambda h, x: h / h.new_tensor(x.shape[1]),
    "as_tensor of a shape": lambda h, x: h / torch.as_tensor(x.shape)[1],
    "scalar_tensor": lambda h, x: h / torch.scalar_tensor(x.shape[1], dtype=h.dtype),
    "log of a tensor": lambda h, x: h * torch.log(torch.tensor(float(x.shape[1]))).to(h),
    "text": lambda h, x: h * int(str(x.shape[1])),
    "formatted": lambda h, x: h * float(f"{x.shape[1]:03d}"),
    "bit_length": lambda h, x: h * x.shape[1].bit_length(),
    "compared": lambda h, x: h * (2 if x.shape[1] > 8 else 3),
    "even or odd": lambda h, x: h if x.shape[1] % 2 else h * 2,
    "truth": lambda h, x: h * 2 if x.shape[1] - 8 else h,
    "a bool in arithmetic": lambda h, x: h * (1 + (x.shape[1] > 8)),
    "and, or": lambda h, x: h * ((x.shape[1] - 8) or 5),
    "while": lambda h, x: h * _halvings(x.shape[1]),
}


def _halvings(size):
    times = 1
    while size > 1:
        size, times = size // 2, times + 1
    return times


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_made_of_sizes(name):
    holds(tokens_around(NUMBERS[name]), TOKENS, OTHER_TOKENS)


@pytest.mark.parametrize("name", SEEN)
def test_a_number_that_is_looked_at(name):
    holds(tokens_around(SEEN[name]), TOKENS, OTHER_TOKENS, any_size=False)


@pytest.mark.parametrize("name", ["math.sqrt", "float", "int", "round", "compared", "while"])
def test_a_length_that_is_looked_at_fixes_no_batch(name):
    found = holds(tokens_around(SEEN[name]), TOKENS, OTHER_TOKENS, any_size=False)
    assert not any(sized.is_batch for sized in found.checked)


def _mixed_with_batch(h, area):
    rows = h.permute(0, 2, 3, 1).reshape(-1, h.shape[1]).relu()
    return rows.view(int(rows.shape[0] / area), h.shape[2], h.shape[3], h.shape[1]).amax((1, 2))


AREAS = {
    "mean times root of area": lambda h, x: h.mean((2, 3)) * (h.shape[2] * h.shape[3]) ** 0.5,
    "sum over area": lambda h, x: h.sum((2, 3)) / (x.shape[-1] * x.shape[-2]),
    "height over width": lambda h, x: h.amax((2, 3)) * x.shape[2] / x.shape[3],
    "area of a slice": lambda h, x: h.mean((2, 3)) * h[0, 0].numel(),
    "pixels in all": lambda h, x: h.sum((2, 3)) / h[:, 0].numel(),
    "pooled by size": lambda h, x: F.avg_pool2d(h, (h.shape[2], h.shape[3])).flatten(1),
    "pooled by size, of a list": lambda h, x: F.avg_pool2d(h, list(h.shape[2:])).flatten(1),
    "pooled by size, divided": lambda h, x: F.avg_pool2d(h, h.shape[2:], divisor_override=5).flatten(1),
    "adapted to half": lambda h, x: F.adaptive_avg_pool2d(h, (x.shape[2] // 2, x.shape[3] // 2)).amax((2, 3)),
    "interpolated to the double": lambda h, x: F.interpolate(h, size=(2 * x.shape[2], x.shape[3])).mean((2, 3)),
    "interpolated to another's": lambda h, x: (F.interpolate(h[:, :, ::2], size=h.shape[2:]) * h).mean((2, 3)),
    "normalised over the shape": lambda h, x: F.layer_norm(h, h.shape[2:]).amax((2, 3)),
    "flattened area": lambda h, x: h.flatten(2).cumsum(2)[..., -1] / (x.shape[2] * x.shape[3]),
    "batch out of a quotient by an area, in C": lambda h, x: _mixed_with_batch(h, h.shape[2:].numel()),
    "batch out of a quotient by an area": lambda h, x: _mixed_with_batch(h, h.shape[2] * h.shape[3]),
    "positions": lambda h, x: (h * torch.linspace(-1, 1, x.shape[3], dtype=h.dtype)).sum((2, 3)),
    "grid": lambda h, x: (
        h * torch.stack(torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")).sum(0)
    ).mean((2, 3)),
}


@pytest.mark.parametrize("name", AREAS)
def test_a_number_made_of_height_and_width(name):
    holds(images_around(AREAS[name], nn.Linear(12, 3)), IMAGE, OTHER_IMAGES)


def windows(count):
    """Swin's own: the batch is the number of windows through those of one image."""

    def code(h, x):
        _, height, width, _ = x.shape
        h = h.view(-1, height // 4, 4, width // 4, 4, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 12)
        batch = count(h, height, width)
        h = h.view(batch, height // 4, width // 4, 4, 4, 12).permute(0, 1, 3, 2, 4, 5)
        return h.reshape(batch, height, width, 12)

    return code


COUNTS = {
    "int of a quotient": lambda h, H, W: int(h.shape[0] / (H * W / 4 / 4)),
    "int of a quotient of quotients": lambda h, H, W: int(h.shape[0] / (H / 4) / (W / 4)),
    "floor division": lambda h, H, W: h.shape[0] // (H * W // 16),
    "floor of a division of floats": lambda h, H, W: int(h.shape[0] // (H * W / 16)),
    "round": lambda h, H, W: round(h.shape[0] / (H * W / 16)),
    "math.floor": lambda h, H, W: math.floor(h.shape[0] / (H * W / 16)),
    "math.ceil": lambda h, H, W: math.ceil(h.shape[0] / (H * W / 16)),
    "math.trunc": lambda h, H, W: math.trunc(h.shape[0] / (H * W / 16)),
    "int of a product": lambda h, H, W: int(h.shape[0] * (16 / (H * W))),
    "int of an int": lambda h, H, W: int(int(h.shape[0]) // int(H * W / 16)),
    "minus one": lambda h, H, W: -1,
}


@pytest.mark.parametrize("name", COUNTS)
def test_an_int_of_a_quotient_of_sizes(name):
    example, others = torch.randn(2, 8, 8, 4), [torch.randn(3, 8, 8, 4), torch.randn(1, 8, 12, 4)]
    found = holds(tokens_around(windows(COUNTS[name])), example, others, any_size=name != "math.trunc")
    assert not any(sized.is_batch for sized in found.checked)


class Scaling(nn.Module):
    """Computes with the mode itself, of which Python tells nobody."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 12), nn.Linear(12, 3), how

    def forward(self, x):
        h = torch.relu(self.a(x))
        if self.how == "float on the left":
            return self.b(h * (1 + 0.5 * self.training))
        if self.how == "on the right":
            return self.b(h * (self.training * 0.5 + 1))
        return self.b(h * [1.0, 3.0][self.training])


@pytest.mark.parametrize("how", ["float on the left", "on the right", "index"])
def test_the_mode_as_a_number(how):
    holds(Scaling(how), TOKENS, OTHER_TOKENS)


# Of a square image nobody can tell height from width: another image can, which is not square.
OF_ONE_SIDE = {
    "width": lambda h, x: h / float(x.shape[3]),
    "height": lambda h, x: h / float(x.shape[2]),
    "root of the width": lambda h, x: h / math.sqrt(x.shape[3]),
    "both": lambda h, x: h / float(x.shape[2]) + h.sigmoid() / float(x.shape[3]),
    "width, then height": lambda h, x: h / float(x.shape[3]) + h.sigmoid() / float(x.shape[2]),
    "rest of the width": lambda h, x: h / (float(x.shape[3]) + 1) * float(x.shape[2]),
    "places by numpy": lambda h, x: h + torch.from_numpy(np.arange(x.shape[3]) / x.shape[3]).to(h),
    "places of rows": lambda h, x: h + (torch.arange(x.shape[2]) / float(x.shape[2])).to(h)[:, None],
    "area": lambda h, x: h / float(x.shape[2] * x.shape[3]),
}


@pytest.mark.parametrize("name", OF_ONE_SIDE)
def test_height_and_width_of_a_square_image_are_told_apart(name):
    others = [torch.randn(2, 3, *sides) for sides in ((12, 8), (8, 12), (9, 16))]
    is_open = name not in ("rest of the width", "places by numpy")  # of which nobody knows how they are computed
    holds(images_around(OF_ONE_SIDE[name], nn.Conv2d(12, 3, 1)), torch.randn(2, 3, 8, 8), others, any_size=is_open)


def test_two_lengths_that_are_alike_are_told_apart():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x, y):
            mine = self.a(x).relu() / float(y.shape[1])
            return self.c(mine) + self.c(self.b(y).relu().sum(1, True) / float(x.shape[1]))

    lengths = ((5, 5), (9, 7), (3, 8))
    example, *others = [(torch.randn(2, one, 4), torch.randn(2, other, 4)) for one, other in lengths]
    holds(Both(), example, others)


def turned(h, order):
    return h.permute(*order).permute(*order)


# What torch takes a number for may be an integer in a tensor, if no input changes it.
IN_TENSORS = {
    "an order": lambda h, x, m: turned(h, torch.tensor([1, 0, 2])),
    "an order that is put together": lambda h, x, m: turned(
        h, torch.cat((torch.tensor([1, 0]), torch.arange(2, h.ndim)))
    ),
    "an order in a buffer": lambda h, x, m: turned(h, m.order),
    "a shape": lambda h, x, m: h.view(*torch.tensor(h.shape)),
    "a product of sizes": lambda h, x, m: h.reshape(h.size(0), torch.tensor(h.shape[1:]).prod()).view(h.shape),
    "a place": lambda h, x, m: h - h.select(1, torch.tensor(2))[:, None],
    "a length": lambda h, x, m: h - h.narrow(1, torch.tensor(0), torch.tensor(1)),
    "a dimension": lambda h, x, m: h.unsqueeze(torch.tensor(0)).mean(torch.tensor(0)),
    "a slice": lambda h, x, m: h - h[:, : torch.tensor(2)].mean(1, keepdim=True),
    "a slice by a buffer": lambda h, x, m: h - h[:, : m.two].mean(1, keepdim=True),
    "a range": lambda h, x, m: h + sum(h[:, i : i + 1] for i in torch.arange(2)),
    "several": lambda h, x, m: h.roll(torch.tensor(1), 1).repeat(1, torch.tensor(2), 1)[:, : x.shape[1]],
}


@pytest.mark.parametrize("name", IN_TENSORS)
def test_an_integer_in_a_tensor(name):
    model = tokens_around(IN_TENSORS[name])
    model.register_buffer("order", torch.tensor([1, 0, 2]))
    model.register_buffer("two", torch.tensor(2))
    found = holds(model, TOKENS, OTHER_TOKENS, any_size=False)
    assert fx_oto.Context.of(found.gm).capture.opaque == ()
    assert found.params_left < 0.7


# Functions of torch that are given numbers alone, and return a tensor of one.
OF_NUMBERS = {
    "div": lambda h, x: h * torch.div(x.size(1), 3, rounding_mode="trunc"),
    "floor of a div": lambda h, x: h[:, : torch.div(x.size(1) + 2, 3, rounding_mode="floor")].mean(1, True) + h,
    "add": lambda h, x: h * torch.add(x.size(1), 2.5),
    "mul": lambda h, x: h * torch.mul(x.size(1), x.size(0)),
    "sub": lambda h, x: h.reshape(h.size(0), torch.sub(x.size(1), 0), -1),
    "true_divide": lambda h, x: h + torch.true_divide(x.size(1), 4),
}


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_a_function_of_numbers_alone(name):
    found = holds(tokens_around(OF_NUMBERS[name]), TOKENS, OTHER_TOKENS)
    assert fx_oto.Context.of(found.gm).capture.opaque == ()
