"""Compact models go through ``jit.trace``, ``jit.script`` and ``torch.export``, with all that they check."""

from __future__ import annotations

import pytest
import torch
from support.saved import compact
from torch import nn

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions, with something between."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x):
        return self.b(self.between(self.a(x).relu()))


class DecidesBySize(Net):
    def between(self, x):
        height, width = x.shape[-2:]
        if height < 4 or width * height > 1000 or not height != 7:
            raise ValueError("an image of another size is meant")
        return x * 2 if height % 8 == 0 and width else x


class NoiseInTraining(Net):
    def between(self, x):
        return x + torch.randn_like(x) if self.training else x


class MakesZeros(Net):
    def between(self, x):
        return torch.cat([x, torch.Tensor.new_zeros(x, x.shape)], 1)[:, : x.shape[1]]


class Defaults(Net):
    def forward(self, x, mask=None, causal=False, scaled=True, factor=2.0, power=1, name="sum"):
        x = self.a(x).relu()
        if mask is not None:
            x = x * mask
        if causal:
            x = x.cumsum(-1)
        return self.b(x * factor**power if scaled and name == "sum" else x)


NETWORKS = [DecidesBySize, NoiseInTraining, MakesZeros, Defaults]
ROUTES = {
    "trace": lambda model: torch.jit.trace(model, IMAGES),
    "script": torch.jit.script,
    "export": lambda model: torch.export.export(
        model, (IMAGES,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    ).module(),
}


@pytest.mark.filterwarnings("ignore")  # torch's own, that tracing and scripting are no longer developed
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_compact_model_goes_where_the_full_one_goes(kind, route):
    small = compact(kind(), IMAGES).eval()
    runs = ROUTES[route](small)
    for batch in (IMAGES, torch.cat([IMAGES, IMAGES, IMAGES])):
        torch.testing.assert_close(runs(batch), small(batch))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_exporter_that_traces(kind, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    torch.onnx.export(compact(kind(), IMAGES).eval(), (IMAGES,), tmp_path / "small.onnx", dynamo=False)


@pytest.mark.filterwarnings("ignore")
def test_the_exporter_that_traces_with_dynamic_axes(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    batch = {"x": {0: "batch"}, "y": {0: "batch"}}
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": batch}
    torch.onnx.export(compact(NETWORKS[0](), IMAGES).eval(), (IMAGES,), tmp_path / "small.onnx", dynamo=False, **names)
    found = onnx.load(tmp_path / "small.onnx").graph
    assert [one.type.tensor_type.shape.dim[0].dim_param for one in (*found.input, *found.output)] == ["batch"] * 2


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_model_refuses_what_the_graph_refuses():
    scripted = torch.jit.script(compact(DecidesBySize(), IMAGES).eval())
    with pytest.raises(torch.jit.Error, match="the graph was captured where this was True"):
        scripted(torch.randn(2, 3, 12, 8))


@pytest.mark.parametrize(
    "other", [{"mask": torch.ones(1)}, {"causal": True}, {"scaled": False}, {"factor": 3.0}, {"power": 2}, {"name": ""}]
)
def test_arguments_that_were_left_out_are_checked(other):
    small = compact(Defaults(), IMAGES).eval()
    (name,) = other
    with pytest.raises(AssertionError, match=f"the graph was captured where {name} was"):
        small(IMAGES, **other)


def test_a_decision_is_checked_as_it_is_spelled():
    checks = [node for node in compact(DecidesBySize(), IMAGES).graph.nodes if node.target is torch._assert]
    assert len(checks) >= 3
    assert not any(isinstance(arg, bool) for check in checks for arg in check.args[0].args)
