"""How much tensors differ: also where they hold NaN, infinities, complex numbers, integers."""

import pytest
import torch

import fx_oto
from fx_oto.core.differences import relative_error

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        ([4.0, 2.0], [4.0, 1.0], 0.25),
        ([4.0, NAN], [4.0, NAN], 0),
        ([4.0, 2.0, NAN], [4.0, 1.0, NAN], 0.25),
        ([4.0, 2.0, INF, -INF], [4.0, 1.0, INF, -INF], 0.25),
        ([4.0, NAN], [4.0, 2.0], INF),
        ([4.0, 2.0], [4.0, NAN], INF),
        ([4.0, INF], [4.0, -INF], INF),
        ([4.0, INF], [4.0, 1e30], INF),
        ([NAN, NAN], [NAN, 1.0], INF),
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([], [], 0),
        ([4 + 2j, 0j], [4 + 1j, 0j], 1 / 20**0.5),
        ([True, False], [True, True], 1),
        ([2**62, 4], [2**62, 4], 0),
        ([200, 4], [4, 200], 0.98),
    ],
)
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"a": [t]}])
def test_differences_are_relative_to_the_largest_finite_value(expected, found, error, wrap):
    assert relative_error(*(wrap(torch.tensor(values)) for values in (expected, found))) == pytest.approx(error)


def test_neighbours_among_large_integers_are_not_equal():
    assert relative_error(torch.tensor([2**60, 4]), torch.tensor([2**60 + 1, 4])) > 0


def test_bytes_do_not_overflow():
    assert relative_error(*(torch.tensor(values, dtype=torch.uint8) for values in ([200], [201]))) == 0.005


class Masked(torch.nn.Module):
    """Attention of which one example may look at nothing: its rows are NaN."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out = torch.nn.Linear(6, 16), torch.nn.Linear(16, 48), torch.nn.Linear(16, 5)

    def forward(self, x, mask):
        q, k, v = self.qkv(torch.tanh(self.embed(x))).chunk(3, -1)
        weights = (q @ k.mT).masked_fill(~mask[:, None], float("-inf")).softmax(-1)
        return self.out(weights @ v)


class Roots(torch.nn.Module):
    """Each channel by the root of its mean square, whose derivative at zero is infinite."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 12, 3), torch.nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.conv(self.stem(x).relu()).relu().square().mean((2, 3)).sqrt())


class Exploding(torch.nn.Module):
    """Values and gradients that overflow."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.first(x).exp().exp().exp())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Masked, (torch.randn(3, 7, 6), torch.arange(7) < torch.tensor([[7], [0], [4]]))),
        (Roots, (torch.randn(2, 3, 9, 9),)),
        (Exploding, (torch.randn(5, 6) * 8,)),
    ],
    ids=["outputs", "gradients", "both"],
)
def test_what_is_no_number_in_the_full_model_is_none_in_the_compact_one(make, inputs, dtype):
    torch.manual_seed(0)
    model = make().to(dtype)
    given = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    gm = fx_oto.prepare(model, given)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    small = fx_oto.compress(gm)
    before, after = model.eval()(*given), small.eval()(*given)
    torch.testing.assert_close(after, before, equal_nan=True)
    assert make is Roots or not before.isfinite().all()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
