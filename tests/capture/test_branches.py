"""Code that goes one way or another as numbers say: captured where that makes no difference, refused where it does."""

from __future__ import annotations

import pytest
import torch
from support.exactness import compress_half
from support.releases import after_2_10
from torch import nn

import fx_oto


class Net(nn.Module):
    """Something, spelled by ``code``, between two layers; ``inner`` and ``norm`` are there for it."""

    def __init__(self, code, norm=None):
        super().__init__()
        self.a, self.inner, self.norm, self.b = nn.Linear(4, 8), nn.Linear(8, 8), norm, nn.Linear(8, 3)
        self.code = code

    def forward(self, x):
        return self.b(self.code(self, self.a(x), x[:, 0] > 0.5))


def _added(y, rows, values):
    return y.index_add(0, rows.nonzero()[:, 0], values)


# What is done for the rows that are chosen, and not at all if there are none.
SKIPPED = {
    "if any": lambda m, y, rows: _added(y, rows, m.inner(y[rows])) if rows.any() else y,
    "if not any": lambda m, y, rows: y if not rows.any() else _added(y, rows, m.inner(y[rows])),
    "if there are more than 0": lambda m, y, rows: _added(y, rows, m.inner(y[rows])) if rows.sum() > 0 else y,
    "if the sum is 0": lambda m, y, rows: y if rows.sum() == 0 else _added(y, rows, m.inner(y[rows])),
    "if the number is 0": lambda m, y, rows: y if rows.sum().item() == 0 else _added(y, rows, m.inner(y[rows])),
    "if the length is 0": lambda m, y, rows: y if len(y[rows]) == 0 else _added(y, rows, m.inner(y[rows])),
    "if numel": lambda m, y, rows: _added(y, rows, m.inner(y[rows])) if y[rows].numel() else y,
    "if all, then at once": lambda m, y, rows: y + m.inner(y) if rows.all() else _added(y, rows, m.inner(y[rows])),
    "beside a single number that is compared": lambda m, y, rows: (
        torch.where(y.sum() > 0, 2.0, 1.0) * (_added(y, rows, m.inner(y[rows])) if rows.any() else y)
    ),
    "the sum of none": lambda m, y, rows: y + m.inner(y[rows]).sum(0) if rows.any() else y,
}


@pytest.mark.parametrize("name", SKIPPED)
def test_what_is_skipped_where_nothing_is_chosen_is_done_always(name):
    torch.manual_seed(0)
    model = Net(SKIPPED[name])
    found = compress_half(model, torch.randn(6, 4), others=[torch.full((5, 4), -1.0), torch.full((5, 4), 1.0)])
    assert not fx_oto.Context.of(found.gm).capture.opaque
    assert found.zigs == 8


# What makes a difference where nothing is chosen.
DECIDED = {
    "if any, plus 1": lambda m, y, rows: y + 1 if rows.any() else y,
    "the mean of none": lambda m, y, rows: y + m.inner(y[rows]).mean(0) if rows.any() else y,
    "a layer for all": lambda m, y, rows: m.inner(y) if rows.any() else y,
    "for each, over all": lambda m, y, rows: sum((m.inner(y) for _ in rows.nonzero()), y),
    "if there are two": lambda m, y, rows: _added(y, rows, m.inner(y[rows])) if rows.sum() > 1 else y,
    "if there are two rows": lambda m, y, rows: _added(y, rows, m.inner(y[rows])) if y[rows].shape[0] > 1 else y,
    "if two, plainly": lambda m, y, rows: _added(y, rows, m.inner(y[rows])) if len(y[rows]) > 1 else y,
    "by the number": lambda m, y, rows: _added(y, rows, m.inner(y[rows]) / len(y[rows])) if len(y[rows]) else y,
    "by the largest": lambda m, y, rows: m.inner(y) if y.max() > 1e6 else y,
}


@pytest.mark.parametrize("name", DECIDED)
def test_what_makes_a_difference_is_refused(name):
    torch.manual_seed(0)
    with pytest.raises(fx_oto.TraceError, match=r"test_branches\.py:\d+.*depends on the values in a tensor"):
        fx_oto.prepare(Net(DECIDED[name]), torch.randn(6, 4))


def test_a_norm_over_no_rows_is_seen_in_training():
    """BatchNorm takes no batch of none, so the graph stays in evaluation, as it says."""
    torch.manual_seed(0)
    model = Net(lambda m, y, rows: _added(y, rows, m.norm(y[rows])) if rows.any() else y, nn.BatchNorm1d(8))
    with pytest.warns(fx_oto.FxOtoWarning, match="captured in evaluation mode"):
        gm = fx_oto.prepare(model, torch.randn(6, 4))
    for x in (torch.randn(7, 4), torch.full((5, 4), -1.0)):
        torch.testing.assert_close(gm.eval()(x), model.eval()(x))


def _first(first, *rest):
    return first


def _finite(y):
    if not torch.isfinite(y).all():
        raise ValueError("not finite")
    return y


def test_code_that_raises_an_error_by_numbers_still_does():
    torch.manual_seed(0)
    model, x = Net(lambda m, y, rows: m.inner(_finite(y))), torch.randn(6, 4)
    gm = fx_oto.prepare(model, x)
    torch.testing.assert_close(gm(x), model(x))
    with pytest.raises(ValueError, match="not finite"):
        gm(x / 0)


# As many turns, or parts, as rows were chosen.
COUNTED = {
    "for row in x": lambda m, y, rows: sum((m.inner(row).relu() for row in y[rows]), y),
    "unbind": lambda m, y, rows: sum((row.relu() for row in y[rows].unbind()), y),
    "split": lambda m, y, rows: sum((part.sum(0).relu() for part in y[rows].split(2)), y),
    "chunk": lambda m, y, rows: sum((part.sum(0).relu() for part in y[rows].chunk(3)), y),
    "the first and the rest": lambda m, y, rows: y + _first(*y[rows]),
}


COUNTED_WHEN_RUN = {"split": after_2_10("lets a graph count the parts when it runs")}


@pytest.mark.parametrize("name", [pytest.param(name, marks=COUNTED_WHEN_RUN.get(name, ())) for name in COUNTED])
def test_as_many_turns_as_rows_are_refused(name):
    """They were written down as many as the example had."""
    torch.manual_seed(0)
    x = torch.cat([torch.ones(4, 4), -torch.ones(2, 4)])
    with pytest.raises(fx_oto.TraceError, match=r"test_branches\.py:\d+.*depends on the values in a tensor"):
        fx_oto.prepare(Net(COUNTED[name]), x)


def test_parts_of_another_dimension_are_as_many_whatever_is_chosen():
    torch.manual_seed(0)
    model = Net(lambda m, y, rows: y + sum(part.relu().sum() for part in y[rows].chunk(2, -1)))
    gm = fx_oto.prepare(model, torch.randn(6, 4))
    for x in (torch.randn(7, 4), torch.ones(5, 4)):
        torch.testing.assert_close(gm(x), model(x))
