"""Modules whose own ``train`` leaves parts of them in evaluation, such as norms that are frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fx_oto.core.fx_utils import clone_module

__all__ = ["left_in_evaluation", "overrides_train"]


def overrides_train(module: nn.Module) -> bool:
    """Whether a module, or one of its children, has a ``train`` of its own, as where norms are frozen."""
    plain = nn.Module.train
    return any(type(one).train is not plain or "train" in vars(one) for one in module.modules())


def left_in_evaluation(module: nn.Module) -> list[str]:
    """The children that are in evaluation once the module was told to train, by name.

    What its ``train`` does besides, such as to freeze parameters or to add adapters to weights, happens to a copy that
    has no numbers.
    """
    if not overrides_train(module):
        return []

    def without_numbers(tensor: Tensor) -> Tensor:
        empty = torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)
        return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

    try:
        copy = clone_module(module, without_numbers)
        copy.train()
    except Exception:  # of the user's code, such as one that reads numbers
        return []
    return [name for name, child in copy.named_modules() if not child.training]
