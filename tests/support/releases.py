"""What the oldest release of torch that is supported lacks."""

from __future__ import annotations

import pytest
import torch
from torch.torch_version import TorchVersion

__all__ = ["after_2_10"]


def after_2_10(reason: str) -> pytest.MarkDecorator:
    """Skip a test on torch 2.10."""
    return pytest.mark.skipif(TorchVersion(torch.__version__) < "2.11", reason=f"torch 2.10 {reason}")
