"""Code that decides by sizes: where it may decide otherwise at some size, that is told, and the graph checks it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fx_oto


class Decides(nn.Module):
    def __init__(self, question):
        super().__init__()
        self.a, self.b, self.question = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), question

    def forward(self, x):
        x = self.a(x).relu()
        if self.question(*x.shape[2:]):
            x = F.interpolate(x, size=(8, 8))
        return self.b(x)


# The same answer at 8, 16 and 24 pixels, and another one at some size in between.
DECIDES = {
    "rounded up": lambda h, w: math.ceil(h / 2) * 2 != h,
    "rounded up by //": lambda h, w: -(-h // 2) * 2 != h,
    "rounded down": lambda h, w: h // 2 * 2 != h,
    "rest": lambda h, w: h % 2 != 0,
    "rest added": lambda h, w: h + h % 2 != h,
    "not equal": lambda h, w: h // 2 * 2 < h,
    "either": lambda h, w: h // 2 * 2 != h or w // 2 * 2 != w,
    "product": lambda h, w: h // 2 * (w // 2) * 4 != h * w,
}


@pytest.mark.parametrize("name", DECIDES)
def test_a_decision_that_may_fall_otherwise_is_told(name):
    model = Decides(DECIDES[name]).eval()
    gm = fx_oto.prepare(model, torch.randn(2, 3, 8, 8))
    told = {size.dims: size.decided for size in fx_oto.Context.of(gm).capture.sizes}
    assert any(decided and ("x", 2) in dims for dims, decided in told.items())
    for image in (torch.randn(2, 3, 16, 16), torch.randn(3, 3, 12, 12)):
        torch.testing.assert_close(gm.eval()(image), model(image))
    with pytest.raises(AssertionError, match=r"the graph was captured where this was .*test_decisions.py:\d+"):
        gm(torch.randn(2, 3, 7, 7))


NEVER = {
    "itself": lambda h, w: h != h,  # noqa: PLR0124
    "one more": lambda h, w: h + 1 == h,
    "difference": lambda h, w: h - h > 0,
}


@pytest.mark.parametrize("name", NEVER)
def test_a_decision_that_always_falls_alike_is_not(name):
    model = Decides(NEVER[name]).eval()
    gm = fx_oto.prepare(model, torch.randn(2, 3, 8, 8))
    assert not any(size.decided or size.fixed for size in fx_oto.Context.of(gm).capture.sizes)
    for image in (torch.randn(2, 3, 16, 16), torch.randn(3, 3, 7, 5)):
        torch.testing.assert_close(gm.eval()(image), model(image))


# Plain numbers, of which nobody knows what they are made of: at multiples of 8 they look like the size itself.
PLAIN = {
    "int": lambda h, w: int(h / 4) * 4,
    "int of an int": lambda h, w: int(h) // 4 * 4,
    "round": lambda h, w: round(float(h) / 4) * 4,
    "numpy": lambda h, w: int(np.floor(h / 4)) * 4,
    "text": lambda h, w: int(str(h)) // 8 * 8,
}


class Scales(Decides):
    def forward(self, x):
        return self.b(self.a(x).relu() / self.question(*x.shape[2:]))


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("decides", [False, True])
def test_what_is_right_at_multiples_alone_is_not_taken_for_the_size(name, decides):
    number = PLAIN[name]
    model = Decides(lambda h, w: number(h, w) != h) if decides else Scales(number)
    gm = fx_oto.prepare(model.eval(), torch.randn(2, 3, 8, 8)).eval()
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(gm(image), model(image))
    for size in (16, 12, 9, 15):
        image = torch.randn(2, 3, size, size)
        try:
            made = gm(image)
        except AssertionError as error:  # it takes no other size
            assert "the graph was captured where" in str(error)  # noqa: PT017
        else:
            torch.testing.assert_close(made, model(image))


@pytest.mark.parametrize("count", [lambda x: len(x) // 2, lambda x: int(x.shape[0]) // 2, lambda x: len(x) // 2 + 1])
def test_turns_of_a_loop_that_two_batches_share(count):
    """The second capture makes as many turns, a third one does not."""

    class Loops(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.a(x)
            return self.b(sum(h + turn for turn in range(count(x))) + h)

    model = Loops().eval()
    with pytest.warns(fx_oto.FxOtoWarning, match="the graph takes batches of 2 only"):
        gm = fx_oto.prepare(model, torch.randn(2, 4)).eval()
    x = torch.randn(2, 4)
    torch.testing.assert_close(gm(x), model(x))
    with pytest.raises(AssertionError, match="the graph was captured where"):
        gm(torch.randn(4, 4))


# The same for short inputs, whatever their size, and otherwise for long ones: code in C does not tell.
SHORT = {
    "chunks": lambda x: torch.cat([x[:, i : i + 64].relu() for i in range(0, x.shape[1], 64)], 1),
    "batches": lambda x: torch.cat([x[i : i + 64].relu() for i in range(0, x.shape[0], 64)]),
    "turns": lambda x: sum((x + turn for turn in range(int(x.shape[1] / 64))), x),
    "divisor": lambda x: x * math.gcd(x.shape[1], 64),
    "array": lambda x: torch.cat([x[:, i : i + 64].relu() for i in np.arange(0, x.shape[1], 64).tolist()], 1),
    "list": lambda x: sum((x + turn for turn, _ in enumerate([0] * (x.shape[1] // 64))), x),
    "text": lambda x: x * len(str(x.shape[1] // 16)),
    "count": lambda x: sum((x + turn for turn in itertools.islice(itertools.count(), x.shape[1] // 64)), x),
    "power of two": lambda x: x * 2 ** (x.shape[1] - 1).bit_length(),
}


class Between(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.a, self.b, self.middle = nn.Linear(4, 8), nn.Linear(8, 2), middle

    def forward(self, x):
        return self.b(self.middle(self.a(x)))


@pytest.mark.filterwarnings("ignore:the graph takes batches")
@pytest.mark.parametrize("name", SHORT)
def test_what_is_alike_for_short_inputs_is_not_taken_for_all(name):
    model = Between(SHORT[name]).eval()
    gm = fx_oto.prepare(model, torch.randn(2, 8, 4)).eval()
    x = torch.randn(2, 8, 4)
    torch.testing.assert_close(gm(x), model(x))
    with pytest.raises(AssertionError, match="the graph was captured where"):
        gm(torch.randn(130, 100, 4))


def test_a_loop_over_something_else_fixes_nothing():
    model = Between(lambda x: sum(x.reshape(*x.shape) * turn for turn in range(3))).eval()
    gm = fx_oto.prepare(model, torch.randn(2, 8, 4)).eval()
    x = torch.randn(5, 300, 4)
    torch.testing.assert_close(gm(x), model(x))


def test_plain_numbers_whose_exponential_is_too_large():
    model = Between(lambda x: x * (float(x.shape[1]) / 1000) + sum(x * turn for turn in range(2))).eval()
    gm = fx_oto.prepare(model, torch.randn(2, 800, 4)).eval()
    x = torch.randn(3, 800, 4)
    torch.testing.assert_close(gm(x), model(x))
    with pytest.raises(AssertionError, match="the graph was captured where"):
        gm(torch.randn(3, 900, 4))
