"""What torch's own counter of floating-point operations leaves out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import sdpa_flop_count

__all__ = ["FUSED"]


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of the two products, from the shapes ``(batch, heads, length, width)``."""
    return int(sdpa_flop_count(query, key, value))


def _recurrent_flops(source: Any, *arguments: Any, **_: Any) -> int:
    """Of the matrices, each applied at every step of every sequence: two of them, or those of a list."""
    weights = arguments[:2] if isinstance(arguments[0], torch.Size) else arguments[0]
    matrices = sum(math.prod(weight) for weight in weights if len(weight) == 2)
    return int(2 * math.prod(source[:-1]) * matrices)


# Kernels that torch does not count itself.
FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops,
    torch.ops.aten._cudnn_rnn: _recurrent_flops,
}
