"""Dimensions in which channels lie several times: whether they do so as often in every call."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fx_oto.analysis.tape import OpCall

__all__ = ["are_as_many", "lie_once"]

_ALIKE = ("_to_copy", "clone", "detach", "alias")


def lie_once(labels: Iterable[Tensor]) -> bool:
    """Whether each channel lies once along the first dimension of one of several labels, ``(size, …)``.

    Of ``(N, 8, H, W)``, flattened to ``(N, 8 H W)``, each of 8 lies there once for each pixel.
    """
    firsts = (one.reshape(len(one), -1)[:, 0] for one in labels)
    return any(len(one.unique()) == len(one) for one in firsts)


def are_as_many(
    value: Tensor, dim: int, maker: Callable[[Tensor], OpCall | None], keeps: Callable[[Tensor, int], bool]
) -> bool:
    """Whether code writes the copies out, as ``torch.cat((angles, angles), -1)`` of rotary embeddings does.

    Args:
        value: the tensor.
        dim: one of its dimensions.
        maker: the call that made a tensor.
        keeps: whether a dimension of what is put together is as long in every call.
    """
    call = maker(value)
    while call is not None and call.inputs:
        if call.name == "cat":
            along = int(call.arg("dim")) % value.ndim
            parts = call.inputs if along == dim else call.inputs[:1]
            return all(keeps(one, dim) for one in parts)
        if call.name == "unsqueeze":
            at = int(call.arg("dim")) % value.ndim
            if at == dim:
                return True
            source, dim = call.inputs[0], dim - (at < dim)
        elif call.name in _ALIKE or torch.Tag.pointwise in getattr(call.func, "tags", ()):
            like = [one for one in call.inputs if one.ndim == value.ndim and one.size(dim) == value.size(dim)]
            if not like:
                return False
            source = like[0]
        else:
            return False
        value, call = source, maker(source)
    return False
