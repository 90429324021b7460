"""The size of a model's file."""

from __future__ import annotations

import io

import torch
from torch import nn

__all__ = ["file_size"]


def file_size(model: nn.Module) -> int:
    """Bytes of the saved state_dict."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()
