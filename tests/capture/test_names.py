"""Names that Python's grammar knows nothing of: modules, parameters, buffers and inputs are prepared by any name."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from support.exactness import compress_half
from torch import nn

import fx_oto

NAMES = {
    "keyword": "in",
    "soft keyword": "match",
    "lambda": "lambda",
    "None": "None",
    "class": "class",
    "single quote": "it's",
    "double quote": 'a "b"',
    "three quotes": '"""',
    "backslash": "a\\b",
    "newline": "a\nb",
    "tab": "a\tb",
    "carriage return": "a\rb",
    "brace": "{x}",
    "percent": "%s",
    "hash": "a#b",
    "brackets": "a[0]",
    "parentheses": "f()",
    "comma": "a,b",
    "space": "a b",
    "spaces only": "  ",
    "colon": "a:b",
    "slash": "a/b",
    "minus": "layer-1",
    "plus": "+",
    "at": "@",
    "semicolon": "a; raise",
    "digit": "0",
    "digits": "123",
    "digit first": "1a",
    "underscore": "_",
    "dunder": "__x__",
    "private": "__private",
    "unicode": "größe",
    "chinese": "层",
    "emoji": "🙂",
    "combining": "e\u0301",
    "ligature": "ﬁ",
    "right to left": "שכבה",
    "nul": "a\0b",
    "builtin": "print",
    "module": "torch",
    "self": "self",
    "graph": "graph",
    "code": "code",
    "input": "x",
    "output": "output",
    "getattr": "getattr",
    "node-like": "relu_1",
    "uppercase": "IN",
    "long": "n" * 300,
}


class Named(nn.Module):
    """Modules by name, a parameter, and a buffer that it has too."""

    def __init__(self, name):
        super().__init__()
        self.name, self.a, self.out = name, nn.Linear(4, 8), nn.Linear(8, 2)
        self.parts, self.own, self.end = nn.Module(), nn.ParameterDict(), nn.Module()
        self.parts.add_module(name, nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8)))
        self.parts.add_module(f"{name}1", nn.Linear(8, 8))
        self.end.register_parameter(name, nn.Parameter(torch.randn(8)))
        self.end.register_buffer(f"{name}2", torch.randn(8))

    def forward(self, x):
        h = self.parts._modules[self.name](self.a(x).relu())
        h = self.parts._modules[f"{self.name}1"](h).tanh() * self.end._parameters[self.name]
        return self.out(h + self.end._buffers[f"{self.name}2"])


@pytest.mark.parametrize("name", NAMES)
def test_a_module_a_parameter_and_a_buffer_of_any_name(name):
    name = NAMES[name]
    result = compress_half(Named(name), torch.randn(3, 4), any_size=True)
    assert result.zigs == 8 + 12 + 8 + 8
    assert set(dict(result.small.named_parameters())) == set(dict(Named(name).named_parameters()))


CONTAINERS = {
    "ModuleDict": lambda: nn.ModuleDict({"in": nn.Linear(4, 8), "a b": nn.Linear(8, 8), "out": nn.Linear(8, 2)}),
    "ModuleDict of digits": lambda: nn.ModuleDict({"2": nn.Linear(4, 8), "1": nn.Linear(8, 8), "10": nn.Linear(8, 2)}),
    "ModuleList": lambda: nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)]),
    "Sequential by name": lambda: nn.Sequential(
        OrderedDict([("if", nn.Linear(4, 8)), ("1-2", nn.Tanh()), ("é", nn.Linear(8, 2))])
    ),
}


class Contained(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, x):
        for part in self.parts.values() if isinstance(self.parts, nn.ModuleDict) else self.parts:
            x = torch.sin(part(x))
        return x


@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers(kind):
    assert compress_half(Contained(CONTAINERS[kind]()), torch.randn(3, 4), any_size=True).zigs >= 8


@pytest.mark.parametrize("name", ["in", "it's", "a\nb", "层", "0", '"""'])
def test_the_graph_is_printed_copied_pickled_and_loaded(name):
    model, x = Named(name).eval(), torch.randn(3, 4)
    gm = fx_oto.prepare(model, x)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm).eval()
    for module in (gm, small):
        assert module.code
        assert str(module.graph)
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            torch.testing.assert_close(twin(x), module(x))
            twin.load_state_dict(module.state_dict(), strict=True)
    assert fx_oto.partition(gm).explain() is not None


class Keywords(nn.Module):
    """Inputs by name alone, and by names that are words of Python."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, **given):
        return self.b(torch.relu(self.a(given["in"])) * given["größe"] * given["print"])


def test_inputs_of_any_name():
    model = Keywords()
    given = {"in": torch.randn(3, 4), "größe": torch.randn(3, 1), "print": torch.randn(3, 1)}
    compress_half(model, given, any_size=True)


class Shadowing(nn.Module):
    """Attributes that GraphModule has as well."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.recompile_me = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 8)
        self.add_module("print_readable_", nn.Tanh())
        self.size, self.names, self.config = 3.0, ["a"], {"b": 2.0}

    def forward(self, x):
        return self.b(self.print_readable_(self.recompile_me(self.a(x).relu()) * self.size / self.config["b"]))


def test_attributes_beside_those_of_a_graph_module():
    assert compress_half(Shadowing(), torch.randn(3, 4), any_size=True).zigs == 16
