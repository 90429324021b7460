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
