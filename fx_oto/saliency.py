"""How redundant each ZIG is, and which ones to make zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "redundancy", "select_redundant"]


@dataclass(frozen=True)
class Moments:
    """Inner products of each ZIG's variables x with a direction d: tensors of shape ``(zigs,)``.

    Attributes:
        square: ‖x‖².
        dot: ⟨x, d⟩.
        gradient: ‖d‖².
        step_dot: ⟨x, α d⟩, α being each variable's learning rate.
        scaled_square: Σ α x².
    """

    square: Tensor
    dot: Tensor
    gradient: Tensor
    step_dot: Tensor
    scaled_square: Tensor

    @classmethod
    def zeros(cls, count: int, like: Tensor) -> Moments:
        """No variables yet; at least float32, on the device of ``like``."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        zero = torch.zeros(count, dtype=dtype, device=like.device)
        return cls(zero, zero, zero, zero, zero)

    def add(self, x: Tensor, d: Tensor, rate: Tensor | float) -> Moments:
        """Include variables ``x`` with direction ``d``, both of shape ``(zigs, n)``."""
        x, d = x.to(self.square), d.to(self.square)
        square, dot = x.square().sum(1), (x * d).sum(1)
        return Moments(
            self.square + square,
            self.dot + dot,
            self.gradient + d.square().sum(1),
            self.step_dot + rate * dot,
            self.scaled_square + rate * square,
        )


def redundancy(moments: Sequence[Moments], sizes: Sequence[int]) -> list[Tensor]:
    """The authors' redundancy score of every ZIG, larger = more redundant.

    ½ · n(cos(−x, −∇f)) + ½ · n(1/(‖x‖/size + 1e-6)), n dividing by the L2 norm over all ZIGs of the network.

    Args:
        moments: for each family, inner products with the gradient.
        sizes: for each family, the number of variables of one ZIG.

    Returns:
        For each family a tensor of shape ``(num_zigs,)``, on the CPU.
    """
    cosine, small = [], []
    for family, size in zip(moments, sizes, strict=True):
        norm, gradient = family.square.sqrt(), family.gradient.sqrt()
        cosine.append((family.dot / (norm * gradient).clamp_min(1e-12)).cpu())
        small.append((1 / (norm / size + 1e-6)).cpu())
    total_cosine = torch.cat(cosine).norm().clamp_min(1e-12)
    total_small = torch.cat(small).norm().clamp_min(1e-12)
    return [0.5 * c / total_cosine + 0.5 * s / total_small for c, s in zip(cosine, small, strict=True)]


def select_redundant(scores: Sequence[Tensor], count: int, most: Sequence[int]) -> list[Tensor]:
    """Positions, for each family, of the ``count`` most redundant ZIGs, at most ``most[i]`` of family i."""
    rank = [torch.argsort(score, descending=True, stable=True) for score in scores]
    family = torch.cat([torch.full((limit,), i) for i, limit in enumerate(most)])
    position = torch.cat([order[:limit] for order, limit in zip(rank, most, strict=True)])
    value = torch.cat([score[order[:limit]] for score, order, limit in zip(scores, rank, most, strict=True)])
    best = torch.argsort(value, descending=True, stable=True)[:count]
    return [position[best[family[best] == i]].sort().values for i in range(len(scores))]
