"""Settings for every test."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("FX_OTO_VERIFY", "all")  # what passes of our own note without a run is checked by one
torch.manual_seed(0)  # test modules make inputs when they are imported
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# What takes a minute or more: begun first, so that no worker is left alone with it at the end.
_LONG = ("test_notebooks.py", "test_random_networks.py::test_exact", "test_prices_are_those_of_the_compact_model")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not any(name in item.nodeid for name in _LONG))
