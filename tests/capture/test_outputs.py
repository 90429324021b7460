"""What a model returns is returned as it was: mappings of any keys, named tuples, dataclasses, and these nested."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto

Pair = namedtuple("Pair", ["y", "z"])


class Named(NamedTuple):
    y: torch.Tensor
    z: torch.Tensor
    note: str = "none"


class Table(dict):
    """A dictionary with attributes."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Ordered(OrderedDict):
    """A subclass, as libraries have them."""


@dataclass
class Output:
    y: torch.Tensor
    z: Any = None
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Frozen:
    y: torch.Tensor
    z: tuple = ()


@dataclass
class Doubled:
    """Which its own code would change again, if that made it again."""

    y: Any
    z: Any = field(init=False, default=None)

    def __post_init__(self):
        self.y, self.z = self.y * 2, self.y


class Row(list):
    """A list of a class of its own."""


class Vector(tuple):
    """A tuple of a class of its own."""


class Slots:
    """An object without a dictionary."""

    __slots__ = ("y", "z")

    def __init__(self, y, z):
        self.y, self.z = y, z


class Outer:
    class Inner(NamedTuple):
        y: torch.Tensor
        z: torch.Tensor


class Color(Enum):
    RED = 1


OUTPUTS = {
    "tuple": lambda y, z: (y, z),
    "list": lambda y, z: [y, z],
    "tuple of one": lambda y, z: (y,),
    "nested tuples": lambda y, z: (y, (z, [y, (z,)])),
    "dict": lambda y, z: {"y": y, "z": z},
    "dict of numbers": lambda y, z: {0: y, 1: z},
    "dict of tuples": lambda y, z: {("a", 0): y, ("b", 1): z},
    "dict of mixed keys": lambda y, z: {"a b": y, 3: z, None: y, 1.5: z, True: y},
    "dict of odd texts": lambda y, z: {"0": y, "it's": z, "in": y, "a.b": z, "größe\n": y},
    "empty dict beside": lambda y, z: (y, {}),
    "None beside": lambda y, z: (y, None, z),
    "numbers and texts beside": lambda y, z: (y, 3, "text", 2.5, True, z),
    "OrderedDict": lambda y, z: OrderedDict(y=y, z=z),
    "OrderedDict of digits": lambda y, z: OrderedDict([("0", y), ("1", z), ("pool", y)]),
    "OrderedDict of keywords": lambda y, z: OrderedDict([("in", y), ("class", z)]),
    "OrderedDict of numbers": lambda y, z: OrderedDict([(0, y), (1, z)]),
    "OrderedDict, backwards": lambda y, z: OrderedDict(reversed(OrderedDict(y=y, z=z).items())),
    "OrderedDict, nested": lambda y, z: OrderedDict([("0", OrderedDict([("a b", y)])), ("1", [z])]),
    "OrderedDict, moved": lambda y, z: {"0": _moved(y, z)},
    "defaultdict": lambda y, z: defaultdict(list, {"y": [y], "z": [z]}),
    "defaultdict, filled": lambda y, z: (_filled(y, z), y),
    "subclass of dict": lambda y, z: Table(y=y, z=z),
    "subclass of OrderedDict": lambda y, z: Ordered([("0", y), ("a-b", z)]),
    "namedtuple": lambda y, z: Pair(y * 2, z),
    "namedtuple by name": lambda y, z: Pair(z=z, y=y),
    "NamedTuple": lambda y, z: Named(y, z, "some"),
    "NamedTuple, nested": lambda y, z: {"out": [Named(y, Pair(z, y))]},
    "dataclass": lambda y, z: Output(y * 2, z),
    "dataclass with a dict": lambda y, z: Output(y, None, {"0": z}),
    "dataclass in a dict": lambda y, z: {"0": Output(y, Pair(y, z))},
    "frozen dataclass": lambda y, z: Frozen(y, (z, z)),
    "subclass of list": lambda y, z: [Row([y, z])],
    "subclass of tuple": lambda y, z: Vector((y, z)),
    "subclass of dict with attributes": lambda y, z: _with_attribute(Ordered(y=y), z),
    "NamedTuple in a class": lambda y, z: [Outer.Inner(y, z)],
    "NamedTuple of numbers beside": lambda y, z: (y, z, Pair(1, 2)),
    "slots": lambda y, z: (Slots(y, z), y),
    "deque": lambda y, z: deque([y, z], 3),
    "empty OrderedDict beside": lambda y, z: (y, z, OrderedDict()),
    "Enum": lambda y, z: {"y": y, "z": z, "color": Color.RED},
    "dict of Enums": lambda y, z: {Color.RED: y, "z": z},
    "sets beside": lambda y, z: (y, z, {1, 2}, frozenset([3])),
    "class and function beside": lambda y, z: (y, z, Color, len),
    "what torch returns": lambda y, z: {"y": y.max(1), "z": z.topk(1)},
    "a size of numbers beside": lambda y, z: (y, z, torch.Size([2, 3])),
    "dataclass that computes": lambda y, z: (Doubled(y), z),
    "dataclass with more": lambda y, z: _with_attribute(Output(y), z),
    "the same twice": lambda y, z: (y, y, z, z),
    "views of one": lambda y, z: (y, y[:, :1], y.t()),
    "a size beside": lambda y, z: {"y": y, "batch": y.shape[0], "shape": y.shape},
    "sizes in a list": lambda y, z: [y, list(y.shape), tuple(z.size())],
    "a parameter's own": lambda y, z: (y, z.detach()),
}


def _with_attribute(found, value):
    found.more = value
    return found


def _moved(y, z):
    found = OrderedDict([("0", y), ("1", z)])
    found.move_to_end("0")
    found["2"] = found.pop("1")
    return found


def _filled(y, z):
    found = defaultdict(list)
    for name, value in (("a", y), ("b", z), ("a", z)):
        found[name].append(value)
    return found


class Net(nn.Module):
    def __init__(self, pack):
        super().__init__()
        self.a, self.b, self.c, self.pack = nn.Linear(4, 12), nn.Linear(12, 3), nn.Linear(12, 2), pack

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.pack(self.b(h), self.c(h))


def same(found, expected):
    """The same types, keys in the same order, and numbers."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same(found[key], expected[key])
        same_beside(found, expected)
    elif isinstance(expected, Slots):
        same((found.y, found.z), (expected.y, expected.z))
    elif isinstance(expected, tuple | list | deque):
        same_beside(found, expected)
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            same(left, right)
    elif hasattr(expected, "__dataclass_fields__"):
        same(vars(found), vars(expected))
    else:
        assert found == expected


def same_beside(found, expected):
    """The same of what a container has beside what is in it."""
    for name in ("default_factory", "maxlen"):
        assert getattr(found, name, None) == getattr(expected, name, None)
    if isinstance(expected, Ordered):
        same(vars(found), vars(expected))


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_output_is_what_the_model_returns(name):
    model = Net(OUTPUTS[name])
    result = compress_half(model, torch.randn(3, 4), sensitive=False, any_size=True)
    assert result.zigs >= 12
    for x in (torch.randn(3, 4).double(), torch.randn(5, 4).double()):
        for training in (True, False):
            same(result.small.train(training)(x), model.train(training)(x))
            same(result.gm.train(training)(x), model.train(training)(x))


@pytest.mark.parametrize("name", OUTPUTS)
def test_it_stays_so_when_the_graph_is_copied_and_pickled(name):
    model, x = Net(OUTPUTS[name]).eval(), torch.randn(3, 4)
    gm = fx_oto.prepare(model, x).eval()
    for twin in (copy.deepcopy(gm), pickle.loads(pickle.dumps(gm))):
        same(twin(x), model(x))


class ByMode(nn.Module):
    """Losses in training, predictions in evaluation, as detectors have it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(12, 3), nn.Linear(12, 2)

    def forward(self, x):
        h = torch.relu(self.a(x))
        if self.training:
            return OrderedDict([("loss 0", self.b(h).square().mean()), ("loss 1", self.c(h).abs().mean())])
        return [{"boxes": self.b(h)}, {"scores": self.c(h).sigmoid()}]


class Counted(Net):
    """What it returns has a default that is a function anew each time, and depends on sizes and the mode."""

    def __init__(self):
        super().__init__(self.counted)

    def counted(self, y, z):
        return defaultdict(lambda: 0.5, y=y, z=z, count=len(y), drop=0.1 if self.training else 0.0)


def test_a_default_that_is_made_in_the_call():
    model = Counted()
    result = compress_half(model, torch.randn(3, 4), sensitive=False, any_size=True)
    for training in (True, False):
        found = result.small.train(training)(torch.randn(5, 4).double())
        assert (type(found), found["count"], found["drop"], found["none"]) == (
            defaultdict,
            5,
            0.1 if training else 0.0,
            0.5,
        )


def test_another_type_in_each_mode():
    model = ByMode()
    result = compress_half(model, torch.randn(3, 4))
    x = torch.randn(4, 4).double()
    for training in (True, False):
        same(result.small.train(training)(x), model.train(training)(x))


class Backbone(nn.Module):
    """As torchvision's IntermediateLayerGetter: what its children return, by names that it was given."""

    def __init__(self, names):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, 2, 1)]
        )
        self.names = names

    def forward(self, x):
        found = OrderedDict()
        for name, layer in zip(self.names, self.layers, strict=True):
            x = torch.relu(layer(x))
            found[name] = x
        return found


class Detector(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.backbone, self.heads = (
            Backbone(names),
            nn.ModuleDict({n: nn.Conv2d(w, 4, 1) for n, w in zip(names, (8, 12, 16), strict=True)}),
        )

    def forward(self, x):
        return OrderedDict((name, self.heads[name](value)) for name, value in self.backbone(x).items())


@pytest.mark.parametrize("names", [("0", "1", "2"), ("in", "a b", "it's"), ("p3", "p4", "pool")])
def test_a_backbone_inside(names):
    result = compress_half(Detector(names), torch.randn(2, 3, 16, 16), any_size=True)
    assert result.zigs == 8 + 12 + 16
    assert list(result.small(torch.randn(1, 3, 8, 8).double())) == list(names)


class Cast(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(self.a(x).to(float).relu().to(dtype=self.b.weight.dtype))


def test_a_dtype_by_the_class_of_a_number():
    assert compress_half(Cast(), torch.randn(3, 4)).zigs == 8


def test_every_leaf_is_compared():
    """The helper above sees all of them: a wrong one would not pass."""
    expected = {"0": torch.ones(2), "1": [Pair(torch.ones(1), torch.zeros(1))]}
    found = copy.deepcopy(expected)
    found["1"][0].z.add_(1)
    with pytest.raises(AssertionError):
        same(found, expected)
