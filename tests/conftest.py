"""Settings for every test."""

from __future__ import annotations

import os

import pytest
import torch

import fx_oto

os.environ.setdefault("FX_OTO_VERIFY", "all")  # what passes of our own note without a run is checked by one
torch.manual_seed(0)  # test modules make inputs when they are imported
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _as_before():
    torch.default_generator.manual_seed(0)  # torch.manual_seed writes down the stack for each kind of device
    with fx_oto.temporary_rules():
        yield


# What takes a minute or more: begun first, so that no worker is left alone with it at the end.
_LONG = ("test_notebooks.py", "test_random_networks.py::test_exact", "test_prices_are_those_of_the_compact_model")


# Whole networks, every spelling of a kind, pictures, processes: nine tenths of the time.
_NOT_QUICK = ("zoo/", "notebooks/", "viz/", "cli/", "capture/", "demo/", "paper/", "test_imports")
_NOT_QUICK += ("ops/test_recurrent", "ops/test_norms", "ops/test_attention", "optim/test_targets", "optim/test_state")


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out what takes long: minutes become seconds")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: not any(name in item.nodeid for name in _LONG))
    if config.getoption("--quick"):
        left = [item for item in items if item.nodeid.startswith(tuple(f"tests/{name}" for name in _NOT_QUICK))]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]
