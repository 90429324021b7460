"""Sparse tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["by_way_of_dense", "dense", "is_sparse"]

_BLOCKS = (torch.sparse_bsr, torch.sparse_bsc)


def is_sparse(tensor: Tensor) -> bool:
    """Return whether a tensor is laid out in another way than by strides."""
    return tensor.layout is not torch.strided


def dense(tensor: Tensor) -> Tensor:
    """Return a tensor that is laid out by strides: few functions that compare take others."""
    return tensor.to_dense() if is_sparse(tensor) else tensor


def by_way_of_dense(change: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """``change(tensor)``, of a function for dense tensors, in the layout of the tensor."""
    if not is_sparse(tensor):
        return change(tensor)
    changed, blocks = change(tensor.detach().to_dense()), None
    if tensor.layout in _BLOCKS:
        blocks = tuple(tensor.values().shape[-2:])
        whole = all(size % block == 0 for size, block in zip(changed.shape[-2:], blocks, strict=True))
        blocks = blocks if whole else (1, 1)
    return changed.to_sparse(layout=tensor.layout, blocksize=blocks)
