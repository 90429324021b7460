"""What a model costs: parameters and multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fx_oto.context import ExampleInputs
from fx_oto.tape import fake_run

__all__ = ["Cost", "cost"]

_FUSED_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch counts those of other devices


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds (one multiply-add = one MAC) of one forward pass on the example inputs."""

    params: int
    macs: int

    def __str__(self) -> str:
        return f"{self.params:,} parameters, {self.macs / 1e6:,.2f}M MACs"


def cost(model: nn.Module, example_inputs: Any) -> Cost:
    """Count parameters and MACs of convolutions, matrix products and attention, in eval mode, on fake tensors.

    Args:
        model: any module.
        example_inputs: as for ``fx_oto.trace``; MACs are those of this batch.

    Raises:
        InputError: the model does not run on the example inputs.

    Example:
        >>> import torch, fx_oto
        >>> fx_oto.cost(torch.nn.Linear(4, 8), torch.randn(1, 4))
        Cost(params=40, macs=32)
    """
    counter = FlopCounterMode(display=False, custom_mapping={_FUSED_ON_CPU: _attention_flops})
    fake_run(model, ExampleInputs.of(example_inputs), counter)
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of the two products, from the shapes ``(batch, heads, length, width)``."""
    return int(sdpa_flop_count(query, key, value))
