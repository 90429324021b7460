"""Code that looks at numbers only to raise an error, or to print: the graph raises as well, and nothing is kept whole.

PYTEST_DONT_REWRITE: the models' own assertions stay as they are written.
"""

from __future__ import annotations

import logging
import sys
import warnings

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto


class Net(nn.Module):
    """What ``code`` checks of the input and of a hidden layer, between two layers."""

    def __init__(self, code):
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.code = code

    def forward(self, x):
        y = self.norm(self.a(x)).relu()
        self.code(x, y)
        return self.c(self.b(y).tanh())


def _assert_finite(x, y):
    assert torch.isfinite(y).all(), "not finite"


def _no_nan(x, y):
    if torch.isnan(y).any():
        raise ValueError(f"found {y.isnan().sum().item()} in {y}")


def _not_large(x, y):
    if x.abs().max() > 100:
        raise ValueError(x)


def _item_not_large(x, y):
    if x.abs().max().item() > 100:
        raise ValueError(f"at most 100, found {x.max().item():.2f}")


def _named(x, y):
    ok = bool((x < 100).all())
    if not ok:
        raise RuntimeError(f"too large: {x[x >= 100].tolist()}")


def _two(x, y):
    if torch.isnan(y).any() or torch.isinf(y).any():
        raise ValueError("no numbers")


def _both(x, y):
    assert (x < 100).all() and x.sum() < 100, "no numbers"  # noqa: PT018 as code is written


def _negated(x, y):
    assert not torch.isnan(y.mean())


def _truth_as_item(x, y):
    if not torch.all(x < 100).item():
        raise ValueError(x)


def _torchs(x, y):
    torch._assert((x < 100).all(), "too large")


class OwnError(IndexError):
    """As libraries have them."""


def _of_its_own(x, y):
    if (x >= 100).any():
        raise OwnError(x.max().item())


class _Checks:
    def __call__(self, x, y):
        for one in (x, y):
            self.check(one)

    def check(self, one):
        if not torch.isfinite(one).all():
            self.fail(one)

    def fail(self, one):
        raise FloatingPointError(f"found {one}")


def _chosen_before(x, y):
    rows = x[:, 0] > 0.5
    if rows.any():
        assert torch.isfinite(y[rows]).all()


def _the_same(x, y):
    assert torch.equal(y, y + 0)


def _close(x, y):
    if not (torch.allclose(y, y + 1e-9) and x.allclose(x, rtol=0.1)):
        raise ValueError(y)


CHECKS = [
    *(_the_same, _close),
    *(_assert_finite, _no_nan, _not_large, _item_not_large, _named, _two, _both, _negated, _truth_as_item, _torchs),
    *(_Checks(), _chosen_before, _of_its_own),
]


@pytest.mark.parametrize("code", CHECKS, ids=lambda code: getattr(code, "__name__", "in a loop, by methods"))
def test_what_is_checked_is_checked_by_the_graph(code):
    torch.manual_seed(0)
    model = Net(code)
    found = compress_half(model, torch.randn(6, 4), others=[torch.randn(3, 4)])
    assert found.zigs == 16
    assert not fx_oto.Context.of(found.gm).capture.opaque
    bad = [torch.full((6, 4), number, dtype=torch.float64) for number in (torch.nan, torch.inf, 1000.0)]
    expected = [_raised(model.double(), x) for x in bad]
    assert any(expected)
    assert [_raised(found.gm, x) for x in bad] == [_raised(found.small, x) for x in bad] == expected


def _raised(module, x):
    """The class of what a module raises, or the one of Python's own that it inherits from."""
    try:
        module(x)
    except (LookupError, ValueError, RuntimeError, ArithmeticError, AssertionError) as error:
        return next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    return None


def test_the_graph_says_what_the_model_raises():
    gm = fx_oto.prepare(Net(_not_large), torch.randn(6, 4))
    with pytest.raises(ValueError, match=r"the model raises ValueError at .*test_raising\.py:\d+ \(raise ValueErr"):
        gm(torch.full((6, 4), 1000.0))


class ChecksInTraining(Net):
    """Checks in one mode alone."""

    def forward(self, x):
        if self.training:
            assert torch.isfinite(x).all()
        return super().forward(x)


def test_what_is_checked_in_one_mode_is_checked_in_that_alone():
    torch.manual_seed(0)
    found = compress_half(ChecksInTraining(lambda x, y: None), torch.randn(6, 4))
    bad = torch.full((6, 4), torch.nan, dtype=torch.float64)
    for module in (found.gm, found.small):
        module.eval()(bad)
        with pytest.raises(AssertionError, match="the model raises AssertionError"):
            module.train()(bad)


def test_checks_are_kept_by_files_and_by_exporters(tmp_path):
    torch.manual_seed(0)
    small = compress_half(Net(_assert_finite), torch.randn(6, 4)).small.eval()
    x = torch.randn(6, 4, dtype=torch.float64)
    fx_oto.save(small, tmp_path / "small.safetensors")
    exported = torch.export.export(small, (x,)).module(check_guards=False)
    for module in (fx_oto.load(tmp_path / "small.safetensors"), exported, torch.compile(small, backend="eager")):
        torch.testing.assert_close(module(x), small(x))
        with pytest.raises((AssertionError, RuntimeError), match="the model raises AssertionError"):
            module(x / 0)


def test_a_model_of_torchs_own_that_looks_at_numbers():
    """There is no line of the user's where it asks."""
    torch.manual_seed(0)
    model, x = nn.AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10], div_value=2.0), torch.randn(6, 8)
    target = torch.tensor([0, 7, 15, 3, 12, 9])
    gm = fx_oto.prepare(model, (x, target))
    for mine, theirs in zip(gm(x, target), model(x, target), strict=True):
        torch.testing.assert_close(mine, theirs)


def _warned(x, y):
    if x.max() > 1:
        warnings.warn("large", stacklevel=1)


def _logged(x, y):
    large = y.mean() > 1
    if large.item():
        logging.getLogger("net").warning("large")


def _printed(x, y):
    if torch.isnan(y).any():
        sys.stderr.write("nan")


@pytest.mark.parametrize("code", [_warned, _logged, _printed], ids=lambda code: code.__name__)
@pytest.mark.filterwarnings("ignore:large")
def test_what_is_told_alone_makes_no_difference(code):
    torch.manual_seed(0)
    found = compress_half(Net(code), torch.randn(6, 4), others=[torch.full((3, 4), 1000.0)])
    assert found.zigs == 16


class Decides(nn.Module):
    """Computes something else, as ``code`` says."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b, self.code = nn.Linear(4, 8), nn.Linear(8, 3), code

    def forward(self, x):
        return self.b(self.code(x, self.a(x)))


def _caught(x, y):
    try:
        assert (y.abs() < 1).all()
    except AssertionError:
        y = 2 * y
    return y


def _one_of_two(x, y):
    if x.max() > 2 and y.max() > 1:
        raise ValueError
    return y


def _later(x, y):
    large = False
    if x.max() > 1:
        large = True
    if y.max() > 1:
        warnings.warn("large", stacklevel=1)
    return y / 2 if large else y


def _until(x, y):
    while (y > 0).any():
        y = y - 1
    return y


@pytest.mark.parametrize("code", [_caught, _one_of_two, _later, _until], ids=lambda code: code.__name__)
@pytest.mark.filterwarnings("ignore:large")
def test_what_makes_a_difference_is_refused(code):
    with pytest.raises(fx_oto.TraceError, match="depends on the values in a tensor"):
        fx_oto.prepare(Decides(code), torch.zeros(6, 4))


def test_a_model_that_raises_in_both_ways_is_told():
    def fails(x, y):
        if x.max() > 1:
            raise ValueError("large")
        raise ValueError("small")

    with pytest.raises(fx_oto.InputError, match=r"large|small"):
        fx_oto.prepare(Net(fails), torch.randn(6, 4))


class Routed(nn.Module):
    """Experts, and a weight of each token; errors are raised again in other words."""

    def __init__(self):
        super().__init__()
        self.a, self.gate, self.c = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(3))

    def forward(self, x, weights):
        try:
            return self.routed(x, weights)
        except RuntimeError as error:
            raise TypeError("forward was called with the wrong arguments") from error

    def routed(self, x, weights):
        y = self.a(x).relu()
        rows = y.reshape(-1, 8)
        chosen = nn.functional.one_hot(self.gate(rows).argmax(-1), 3)
        out = torch.zeros_like(rows)
        for i in (chosen.sum(0) > 0).nonzero():
            (at,) = torch.where(chosen[:, i].squeeze(-1) > 0)
            out.index_add_(0, at, self.experts[i](rows[at]))
        return self.c(out.reshape(y.shape) * torch.vmap(lambda row: row.reshape(row.shape[0], 1))(weights))


def test_what_inputs_that_do_not_fit_raise_changes_nothing():
    model = Routed().eval()
    gm = fx_oto.prepare(model, (torch.randn(2, 5, 4), torch.rand(2, 5)))
    assert not any(size.fixed for size in fx_oto.Context.of(gm).capture.sizes)
    longer = torch.randn(3, 7, 4), torch.rand(3, 7)
    assert torch.equal(gm(*longer), model(*longer))
