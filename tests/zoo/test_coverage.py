"""What the coverage benchmark found exact stays exact: hours for all, so choose, as in -m slow -k timm-resnet."""

from __future__ import annotations

import json
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

COVERAGE = Path(__file__).parents[2] / "benchmarks" / "coverage"
ZOOS = ("torchvision", "timm", "transformers", "peers")
LIBRARIES = {"peers": ("torchvision", "timm", "transformers")}


def exact(zoo):
    path = COVERAGE / f"{zoo}.json"
    records = json.loads(path.read_text()) if path.exists() else {}
    return [pytest.param(zoo, name, id=f"{zoo}-{name}") for name in records if records[name].get("status") == "exact"]


@pytest.mark.slow
@pytest.mark.parametrize(("zoo", "name"), [parameter for zoo in ZOOS for parameter in exact(zoo)])
def test_stays_exact(zoo, name, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(COVERAGE), *sys.path])
    if any(find_spec(library) is None for library in LIBRARIES.get(zoo, (zoo,))):
        pytest.skip("a library of networks is not installed")
    from measure import measure
    from networks import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries warn of themselves
        record = measure(lambda: load(zoo).build(name), lambda stage: None)
    assert record["status"] == "exact", record["reason"]
