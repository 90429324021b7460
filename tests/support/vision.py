"""torchvision's models, importable where only its pure Python part can be installed."""

from __future__ import annotations

import sys
import types

import pytest

sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

from torchvision import models  # noqa: E402
from torchvision.models import segmentation  # noqa: E402

__all__ = ["build"]


def build(name: str, **options: object):
    """A torchvision model with random weights."""
    if hasattr(segmentation, name):
        return getattr(segmentation, name)(weights=None, weights_backbone=None, **options)
    if name in ("googlenet", "inception_v3"):
        options.setdefault("init_weights", False)
    return getattr(models, name)(weights=None, **options)
