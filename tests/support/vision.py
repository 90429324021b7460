"""torchvision's models, importable where only its pure Python part can be installed."""

from __future__ import annotations

import sys
import types

import pytest


def build(name: str, **options: object):
    """A torchvision model with random weights; skips the test where torchvision is not installed."""
    sys.modules.setdefault(
        "torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations")
    )  # registers operators of a compiled library that the models do not use
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    if hasattr(models.segmentation, name):
        return getattr(models.segmentation, name)(weights=None, weights_backbone=None, **options)
    if name in ("googlenet", "inception_v3"):
        options.setdefault("init_weights", False)
    return getattr(models, name)(weights=None, **options)
