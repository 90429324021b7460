"""Saliency: how redundant each ZIG is, from its variables and their gradients over some mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fx_oto.core.errors import SettingsError
from fx_oto.zigs.families import Family

__all__ = ["CRITERIA", "MEANS", "Criterion", "ZIGStatistics", "criterion", "magnitude", "scores_of"]


@dataclass(frozen=True, eq=False)
class ZIGStatistics:
    """What is known of one family's ZIGs: means over the observed mini-batches, float tensors of shape ``(zigs,)``.

    x are a ZIG's variables and g their gradient; of a loss that is maximised, g is its negative. ``HESSO`` scores its
    base's step instead: there g is the direction in which the base goes, momentum and weight decay included.

    Attributes:
        square: ‖x‖².
        gradient: ‖g‖².
        cosine: cos(x, g); positive where a descent step shrinks ‖x‖.
        dot: ⟨x, g⟩, the first-order drop of the loss if the ZIG is removed.
        dot_abs: |⟨x, g⟩|.
        dot_square: ⟨x, g⟩².
        alive: whether a ZIG is not zero for good; of those that are, scores do not matter. Bool.
        family: the family itself.

    Example:
        >>> import torch, fx_oto
        >>> def largest_gradient(zigs: list[fx_oto.ZIGStatistics]) -> list[torch.Tensor]:
        ...     return [-family.gradient for family in zigs]  # larger = more redundant
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> optimizer = fx_oto.DHSPG(gm, target_macs=0.5, total_steps=20, saliency=largest_gradient, lr=0.1)
    """

    square: Tensor
    gradient: Tensor
    cosine: Tensor
    dot: Tensor
    dot_abs: Tensor
    dot_square: Tensor
    alive: Tensor
    family: Family

    @classmethod
    def of(cls, square: Tensor, dot: Tensor, gradient: Tensor, alive: Tensor, family: Family) -> ZIGStatistics:
        """Statistics of one mini-batch, from inner products.

        Args:
            square: ‖x‖², shape ``(zigs,)``.
            dot: ⟨x, g⟩, shape ``(zigs,)``.
            gradient: ‖g‖², shape ``(zigs,)``.
            alive: bool, shape ``(zigs,)``.
            family: the family.
        """
        cosine = dot / (square * gradient).sqrt().clamp_min(torch.finfo(dot.dtype).tiny)
        return cls(square, gradient, cosine, dot, dot.abs(), dot.square(), alive, family)

    @property
    def size(self) -> int:
        """Variables of one ZIG."""
        return sum(slot.index.shape[1] * slot.numel for slot in self.family.variables)

    @property
    def norm(self) -> Tensor:
        """‖x‖ (root mean square over the mini-batches), shape ``(zigs,)``."""
        return self.square.sqrt()

    def means(self) -> Tensor:
        """The means, one above the other in the order of the attributes: shape ``(6, zigs)``."""
        return torch.stack([getattr(self, name) for name in MEANS])


# Of a ``ZIGStatistics``, in the order of its attributes.
MEANS = tuple(field.name for field in fields(ZIGStatistics) if field.name not in ("alive", "family"))

Criterion = Callable[[Sequence[ZIGStatistics]], Sequence[Tensor]]


def otov2(zigs: Sequence[ZIGStatistics]) -> list[Tensor]:
    """The authors' score: ½ · n(cos(−x, −g)) + ½ · n(1/(‖x‖/size + 1e-6)), n dividing by the L2 norm over all ZIGs."""
    small = _normalised([family.alive / (family.norm / family.size + 1e-6) for family in zigs])
    return _mean(_normalised([family.cosine for family in zigs]), small)


def magnitude(zigs: Sequence[ZIGStatistics]) -> list[Tensor]:
    """−‖x‖/√size, the root mean square of the variables."""
    return [-family.norm / family.size**0.5 for family in zigs]


def taylor1(zigs: Sequence[ZIGStatistics]) -> list[Tensor]:
    """−E|⟨x, g⟩|: the change of the loss to first order (Molchanov et al. 2017)."""
    return [-family.dot_abs for family in zigs]


def taylor2(zigs: Sequence[ZIGStatistics]) -> list[Tensor]:
    """−E⟨x, g⟩²: the curvature along x, E ggᵀ standing for the Hessian (Molchanov et al. 2019; Theis et al. 2018)."""
    return [-family.dot_square for family in zigs]


def hesso(zigs: Sequence[ZIGStatistics]) -> list[Tensor]:
    """The score of HESSO's authors: minus the mean of ‖x‖, ‖x‖/size, cos(x, g) + 1, |⟨x, g⟩| and ½⟨x, g⟩².

    Each is divided by its L2 norm over all ZIGs.
    """
    means = _normalised([family.norm / family.size for family in zigs])
    cosines = _normalised([family.cosine + 1 for family in zigs])
    return _five_scores(zigs, means, cosines)


def blend(zigs: Sequence[ZIGStatistics]) -> list[Tensor]:
    """As ``hesso``, but with cos(x, −g), large where a descent step makes ‖x‖ larger, and with ‖x‖/√size."""
    means = _normalised([family.norm / family.size**0.5 for family in zigs])
    cosines = _normalised([-family.cosine for family in zigs])
    return _five_scores(zigs, means, cosines)


def _five_scores(zigs: Sequence[ZIGStatistics], means: list[Tensor], cosines: list[Tensor]) -> list[Tensor]:
    norms = _normalised([family.norm for family in zigs])
    first = _normalised([family.dot_abs for family in zigs])
    second = _normalised([family.dot_square / 2 for family in zigs])
    return [-score for score in _mean(norms, means, cosines, first, second)]


CRITERIA: Mapping[str, Criterion] = {
    "otov2": otov2,
    "magnitude": magnitude,
    "taylor1": taylor1,
    "taylor2": taylor2,
    "hesso": hesso,
    "blend": blend,
}


def criterion(saliency: str | Criterion) -> Criterion:
    """Look up a saliency by name; a callable is its own.

    Raises:
        SettingsError: no saliency has this name.
    """
    if callable(saliency):
        return saliency
    if saliency not in CRITERIA:
        raise SettingsError(
            f"saliency must be one of {', '.join(CRITERIA)}, or a callable that takes a sequence of ZIGStatistics and "
            f"returns a tensor of scores for each (larger = more redundant); found {saliency!r}"
        )
    return CRITERIA[saliency]


def scores_of(saliency: Callable[[Sequence[ZIGStatistics]], Any], zigs: Sequence[ZIGStatistics]) -> list[Tensor]:
    """The scores that a saliency returns: of each family a tensor of shape ``(zigs,)``.

    Raises:
        SettingsError: it returns something else.
    """
    given, sizes = saliency(zigs), [tuple(family.alive.shape) for family in zigs]
    is_one = isinstance(given, Tensor) and not given.ndim
    scores: list[Any] = list(given) if isinstance(given, Iterable) and not is_one else [given]
    found = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in scores]
    if found == sizes:
        return scores
    raise SettingsError(
        "saliency must return a tensor of scores for each family, one number for each ZIG; expected tensors of shapes "
        f"{_few(sizes)}, found {_few(found)}"
    )


def _few(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items[:4])) + (" …" if len(items) > 4 else "")


def _normalised(parts: Sequence[Tensor]) -> list[Tensor]:
    total = torch.cat(list(parts)).norm().clamp_min(1e-12)
    return [part / total for part in parts]


def _mean(*terms: Sequence[Tensor]) -> list[Tensor]:
    return [torch.stack(term).mean(0) for term in zip(*terms, strict=True)]
