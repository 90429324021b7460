"""Classes of outputs that come back without the code that they are of: named tuples as such, others as dictionaries."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from support.saved import assert_same, compact, saved
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fx_oto

ROWS = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
Plain = namedtuple("Plain", "logits hidden")
Renamed = namedtuple("Renamed", ["logits", "class"], rename=True, defaults=(None,))


class Typed(NamedTuple):
    logits: Tensor
    hidden: Tensor | None = None


class Derived(Typed):
    """With a method, which is code."""

    def total(self):
        return self.logits.sum()


class Outer:
    class Inner(NamedTuple):
        logits: Tensor
        hidden: Tensor


@dataclass
class Record:
    logits: object
    hidden: Tensor


def made_here():
    class Local(NamedTuple):
        logits: Tensor
        hidden: Tensor

    return Local


Local = made_here()


class Net(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.first, self.last, self.end = nn.Linear(8, 16), nn.Linear(16, 4), end

    def forward(self, x):
        h = torch.relu(self.first(x))
        if self.training:
            h = h * 2
        return self.end(self.last(h), h.mean(-1))


# Of each output, where a named tuple is, its name and its fields.
ENDS = {
    "namedtuple": (Plain, ["Plain logits hidden"]),
    "by name": (lambda a, b: Plain(hidden=b, logits=a), ["Plain logits hidden"]),
    "NamedTuple": (Typed, ["Typed logits hidden"]),
    "a default": (lambda a, b: Typed(a), ["Typed logits hidden"]),
    "renamed fields": (Renamed, ["Renamed logits _1"]),
    "derived": (Derived, ["Derived logits hidden"]),
    "inside of a class": (Outer.Inner, ["Inner logits hidden"]),
    "inside of a function": (Local, ["Local logits hidden"]),
    "numbers and sizes": (
        lambda a, b: (Plain(a, 3), Plain(b.shape[0], a.shape), Plain(1, "x")),
        ["Plain logits hidden"] * 3,
    ),
    "of each other": (
        lambda a, b: Plain(Typed(a, b), (b, Outer.Inner(b, a))),
        [
            "Inner logits hidden",
            "Plain logits hidden",
            "Typed logits hidden",
        ],
    ),
    "in containers": (
        lambda a, b: {"x": [Plain(a, b)], "y": (Typed(b), a)},
        ["Plain logits hidden", "Typed logits hidden"],
    ),
    "in a dataclass": (lambda a, b: Record(Plain(a, b), b), ["Plain logits hidden"]),
    "a dataclass inside": (lambda a, b: Plain(Record(a, b), b), ["Plain logits hidden"]),
    "updated": (lambda a, b: Plain(a, b)._replace(hidden=a), ["Plain logits hidden"]),
}


def named(value):
    """The names and fields of all named tuples in an output."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    inside = vars(value).values() if isinstance(value, Record) else inside
    mine = [" ".join((type(value).__name__, *value._fields))] if hasattr(value, "_fields") else []
    return sorted([*mine, *(name for one in inside for name in named(one))])


@pytest.mark.parametrize("what", ENDS)
def test_named_tuples_come_back(what, tmp_path):
    end, names = ENDS[what]
    model = Net(end)
    small = compact(model, ROWS)
    assert named(model(ROWS)) == named(small(ROWS)) == names
    loaded = saved(small, tmp_path)
    assert named(loaded(ROWS)) == names
    typed, again = saved(small, tmp_path, model), saved(loaded, tmp_path)
    assert kinds(again(ROWS)) == kinds(loaded(ROWS))
    if what != "inside of a function":  # to which no name leads
        assert kinds(typed(ROWS)) == kinds(model(ROWS))
    if "dataclass" not in what:  # which comes back as a dictionary
        assert_same(small, loaded, ROWS, torch.cat([ROWS, ROWS]))
        assert kinds(saved(loaded, tmp_path, model)(ROWS)) == kinds(typed(ROWS))


def kinds(value):
    inside = vars(value).values() if isinstance(value, Record) else value
    inside = inside.values() if isinstance(inside, dict) else inside
    return type(value), [kinds(one) for one in inside] if isinstance(inside, tuple | list) else None


@pytest.mark.parametrize("what", ENDS)
def test_what_was_loaded_is_pickled_and_copied_and_pruned_again(what, tmp_path):
    loaded = saved(compact(Net(ENDS[what][0]), ROWS), tmp_path)
    expected = loaded(ROWS)
    for one in (copy.deepcopy(loaded), pickled(loaded)):
        assert kinds(one(ROWS)) == kinds(expected)
        assert_equal(one(ROWS), expected)
    for one in (copy.copy(expected), pickled(expected)):
        assert kinds(one) == kinds(expected)
        assert_equal(one, expected)
    gm = fx_oto.prepare(loaded, ROWS)
    fx_oto.partition(gm).zero_(0.5)
    assert kinds(fx_oto.compress(gm)(ROWS)) == kinds(expected)


def pickled(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def assert_equal(found, expected):
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


IN_A_FRESH_PROCESS = """
import sys, torch, fx_oto
model = fx_oto.load(sys.argv[1]).eval()
found = model(torch.zeros(2, 8))
assert found._fields == ("logits", "hidden") and type(found).__name__ == "Plain" and found.logits is found[0]
torch.save(model, sys.argv[2])
"""


def test_in_a_fresh_process_without_the_class(tmp_path):
    fx_oto.save(compact(Net(Plain), ROWS), tmp_path / "small.safetensors")
    program = [sys.executable, "-c", IN_A_FRESH_PROCESS, tmp_path / "small.safetensors", tmp_path / "small.pt"]
    subprocess.run(program, check=True, timeout=300)
    assert named(torch.load(tmp_path / "small.pt", weights_only=False)(ROWS)) == ["Plain logits hidden"]


def test_the_class_is_handed_over_or_found_and_must_have_the_same_fields(tmp_path, monkeypatch):
    small = compact(Net(Plain), ROWS)
    assert type(saved(small, tmp_path, functions=[Plain])(ROWS)) is Plain
    other = namedtuple("Plain", "logits other", module=__name__)
    monkeypatch.setattr(sys.modules[__name__], "Plain", other)
    for given in ({"functions": [other]}, {"model": Net(None)}):
        with pytest.raises(fx_oto.FileError, match=r"a named tuple of the fields logits, hidden; .* has logits, other"):
            saved(small, tmp_path, **given)


def test_exporters_take_it(tmp_path):
    loaded = saved(compact(Net(Plain), ROWS), tmp_path).eval()
    found = torch.export.export(loaded, (ROWS,)).module()(ROWS)
    assert torch.equal(found.logits, loaded(ROWS).logits)
