"""torchvision's models, importable where only its pure Python part can be installed."""

from __future__ import annotations

import importlib
import sys
import types
from contextlib import suppress

import pytest
from torch import nn


def without_compiled_library() -> None:
    """Let torchvision be imported without its operators, by itself or by transformers and timm."""
    with suppress(ImportError):  # where it is not installed
        try:
            importlib.import_module("torchvision")
        except RuntimeError:  # it registers forms of operators that are not there
            sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")


def torchvision_models():
    """``torchvision.models``; skips the test where torchvision is not installed."""
    without_compiled_library()
    return pytest.importorskip("torchvision.models", reason="torchvision is not installed")


def build(name: str, **options: object):
    """A torchvision model with random weights."""
    models = torchvision_models()
    if hasattr(models.segmentation, name):
        return getattr(models.segmentation, name)(weights=None, weights_backbone=None, **options)
    if name in ("googlenet", "inception_v3"):
        options.setdefault("init_weights", False)
    return getattr(models, name)(weights=None, **options)


def small_vit():
    """A vision transformer of ViT-S's size: 12 blocks, width 384, 6 heads."""
    size = {"num_layers": 12, "num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536}
    model = torchvision_models().VisionTransformer(image_size=224, patch_size=16, **size)
    nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision's zeros would leave all others without gradients
    return model
