"""The model behind torch.compile is prepared, however it was compiled; what it was is left as it is."""

from __future__ import annotations

import pytest
import torch
from support.exactness import randomise
from torch import nn

import fx_oto
from fx_oto.core.differences import relative_error


def network():
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()]
    return randomise(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)).double())


class Outer(nn.Module):
    """A part of it is compiled."""

    def __init__(self, compiled):
        super().__init__()
        self.a, self.inner, self.b = nn.Conv2d(3, 3, 1), compiled, nn.Linear(5, 4)

    def forward(self, x):
        return self.b(torch.relu(self.inner(self.a(x))))


def in_place(net, **options):
    net.compile(**options)
    return net


def method(net):
    net.forward = torch.compile(net.forward, backend="eager")
    return net


def part_in_place(net):
    net[3].compile(backend="eager")
    return net


COMPILED = {
    "torch.compile": lambda net: torch.compile(net, backend="eager"),
    "torch.compile, default backend": torch.compile,
    "torch.compile, dynamic": lambda net: torch.compile(net, backend="eager", dynamic=True),
    "compile()": lambda net: in_place(net, backend="eager"),
    "compile(), default backend": in_place,
    "compile() of a layer": part_in_place,
    "its forward": method,
    "a compiled part": lambda net: Outer(torch.compile(net, backend="eager")).double(),
    "a part compiled in place": lambda net: Outer(in_place(net, backend="eager")).double(),
    "DataParallel of it": lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
}


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's, of its own
@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("how", COMPILED)
def test_a_compiled_model_is_prepared_as_the_model_is(how, ran):
    net = network().eval()
    model, x = COMPILED[how](net), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    if ran and "default" not in how:
        model(x)
    gm = fx_oto.prepare(model, x)
    capture = fx_oto.Context.of(gm).capture
    assert capture.front_end == "fx_oto"
    assert not capture.opaque
    assert fx_oto.partition(gm).zero_(0.5).num_zigs == (48 if "part" in how else 40)
    names = {name.replace("_orig_mod.", "").replace("module.", "") for name, _ in model.named_parameters()}
    assert {name.replace("_orig_mod.", "").replace("module.", "") for name, _ in gm.named_parameters()} == names
    small = fx_oto.compress(gm).eval()
    other = torch.randn(3, 3, 12, 10, dtype=torch.float64)
    eager = model if "default" not in how else net
    for image in (x, other):
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            assert relative_error(eager.eval()(image), small(image)) <= 1e-10


def test_parameters_of_the_graph_are_those_of_the_compiled_model():
    net = network()
    compiled = torch.compile(net, backend="eager")
    gm = fx_oto.prepare(compiled, torch.randn(4, 3, 8, 8, dtype=torch.float64))
    mine = {id(parameter) for parameter in gm.parameters()}
    assert mine == {id(parameter) for parameter in compiled.parameters()} == {id(p) for p in net.parameters()}


def test_the_compiled_model_still_runs_compiled():
    calls = []

    def backend(graph, inputs):
        calls.append(len(graph.graph.nodes))
        return graph.forward

    net, x = network().eval(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    compiled = torch.compile(net, backend=backend)
    expected = compiled(x)
    assert len(calls) == 1
    fx_oto.prepare(compiled, x)
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=0)
    assert len(calls) == 1


def test_training_the_compiled_model_prunes_it():
    net = network()
    model = torch.compile(net, backend="eager")
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    gm = fx_oto.prepare(model, x)
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.02, target_group_sparsity=0.5, total_steps=20)
    for _ in range(20):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    small = fx_oto.compress(gm).eval()
    assert relative_error(net.eval()(x), small(x)) <= 1e-10
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())
