"""What the coverage benchmark found exact stays exact and small: all takes hours (-m slow -k resnet), these minutes."""

from __future__ import annotations

import json
import sys
import warnings
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

import pytest

COVERAGE = Path(__file__).parents[2] / "benchmarks" / "coverage"
ZOOS = ("torchvision", "timm", "transformers", "einops", "peers")
# What is small enough to be tested always.
FAST = {
    "transformers": {
        "albert",
        "b*",
        "c*",
        "d*",
        "electra",
        "gpt*",
        "llama",
        "mamba",
        "mixtral",
        "opt",
        "qwen3",
        "r*",
        "s*",
        "t5",
    }
    | {"vit", "w*"},
    "timm": {"convnext_zepto_rms", "dla46x_c", "edgenext_xx_small", "iformer_t", "mobilenetv3_small_050", "pvt_v2_b0"}
    | {"ghostnet_050", "starnet_s050", "vit_tiny_patch16_224"},
    "torchvision": {"squeezenet1_1"},
    "einops": {"*"},
    "peers": {"oto:demonet_*"},
}
LIBRARIES = {"peers": ("torchvision", "timm", "transformers")}


def exact(zoo):
    path = COVERAGE / f"{zoo}.json"
    records = json.loads(path.read_text()) if path.exists() else {}
    for name in records:
        if records[name].get("status") == "exact":
            fast = any(fnmatchcase(name, pattern) for pattern in FAST[zoo])
            left = records[name]["params_left"]
            yield pytest.param(zoo, name, left, id=f"{zoo}-{name}", marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize(("zoo", "name", "left"), [parameter for zoo in ZOOS for parameter in exact(zoo)])
def test_stays_exact(zoo, name, left, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(COVERAGE), *sys.path])
    if any(find_spec(library) is None for library in LIBRARIES.get(zoo, (zoo,))):
        pytest.skip("a library of networks is not installed")
    from measure import measure
    from networks import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries warn of themselves
        record = measure(lambda: load(zoo).build(name), lambda stage: None)
    assert record["status"] == "exact", record["reason"]
    assert record["params_left"] <= left + 0.01  # what could go still can
    assert not record["kernel_taps"]  # along them a kernel slides: no index of theirs means the same everywhere


# Of those that were measured, what is written back into its own class always; the others are slow.
WRITTEN = ("bert", "gpt2", "phi3", "segformer", "starnet_s050", "squeezenet1_1")


def written_back():
    for zoo in ZOOS:
        path = COVERAGE / f"{zoo}.json"
        for name, record in json.loads(path.read_text()).items() if path.exists() else ():
            if "graphs" in record.get("written_back", {}):
                marks = () if name in WRITTEN else pytest.mark.slow
                yield pytest.param(zoo, name, record["written_back"], id=f"{zoo}-{name}", marks=marks)


@pytest.mark.parametrize(("zoo", "name", "before"), list(written_back()))
def test_stays_written_back(zoo, name, before, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(COVERAGE), *sys.path])
    if find_spec(zoo) is None:
        pytest.skip("a library of networks is not installed")
    from networks import load
    from writing import measure

    record = measure(lambda: load(zoo).build(name), lambda stage: None)
    assert "graphs" in record, record
    assert (record["graphs"], record["norms"]) <= (before["graphs"], before["norms"]), record["reasons"]
    assert record["error"] <= 1e-5
