"""A compact norm goes where torch's own goes: ``torch.jit.trace``, ``torch.jit.script``, the exporter that traces."""

from __future__ import annotations

import io

import pytest
import torch
from support.saved import compact
from torch import nn

ROWS, IMAGES = torch.randn(2, 6), torch.randn(2, 3, 8, 8)
NETWORKS = {
    "layer": lambda: (nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 3)), ROWS),
    "rms": lambda: (nn.Sequential(nn.Linear(6, 16), nn.RMSNorm(16), nn.Linear(16, 3)), ROWS),
    "rms without weight": lambda: (
        nn.Sequential(nn.Linear(6, 16), nn.RMSNorm(16, elementwise_affine=False, eps=1e-5), nn.Linear(16, 3)),
        ROWS,
    ),
    "group": lambda: (nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(1, 16), nn.Conv2d(16, 3, 1)), IMAGES),
}
ROUTES = {"trace": torch.jit.trace, "script": lambda model, x: torch.jit.script(model)}


@pytest.mark.filterwarnings("ignore")  # torch's own, that both are no longer developed
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_compact_model_goes_where_the_full_one_goes(name, route):
    model, x = NETWORKS[name]()
    small = compact(model, x).eval()
    assert any("Over" in type(module).__name__ for module in small.modules())
    scripted = ROUTES[route](small, x)
    for batch in (x, torch.cat([x, x, x])):
        torch.testing.assert_close(scripted(batch), small(batch))
        with torch.no_grad():
            torch.testing.assert_close(scripted(batch), small(batch))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["layer", "group"])  # torch has no rms norm there
def test_the_exporter_that_traces(name):
    pytest.importorskip("onnx", reason="onnx is not installed")
    model, x = NETWORKS[name]()
    torch.onnx.export(compact(model, x).eval(), (x,), io.BytesIO(), dynamo=False)
