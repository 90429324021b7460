"""Parameters made in the place of others."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["parameter_like"]

_PLAIN = (type(None), bool, int, float, str, torch.dtype)


def parameter_like(data: Tensor, like: nn.Parameter) -> nn.Parameter:
    """A parameter that is trained if another one is, and on which code has noted the same.

    Models say so how they want to be trained, such as ``weight._no_weight_decay = True`` in state-space models. What is
    noted in plain values is taken over; objects may hold on to the other parameter, or to its model.

    Args:
        data: the parameter's, which it shares.
        like: the other one.
    """
    new = nn.Parameter(data, requires_grad=like.requires_grad)
    new.__dict__.update((name, copy.deepcopy(value)) for name, value in vars(like).items() if _is_plain(value))
    return new


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, _PLAIN)
