"""Random, non-trivial numbers in every parameter, and the comparison that every promise of exactness rests on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map_only

import fx_oto
import fx_oto.testing
from fx_oto.framework.context import ExampleInputs
from passes.verification import relative_error

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


# Buffers that are no statistics are as good as any other: a graph must read them, not remember them.
randomise = partial(fx_oto.testing.randomise, constants=True)


def to_double(inputs: object) -> object:
    """Floating-point tensors in float64."""
    return tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, inputs)


@torch.no_grad()
def calibrate(model: nn.Module, args: tuple, kwargs: dict) -> nn.Module:
    """Take running statistics from data, then perturb them: signals keep their scale through deep networks.

    Only what has running statistics is in training mode meanwhile: others may ask for more in it, such as targets.
    """
    model.eval()
    norms = [m for m in model.modules() if getattr(m, "running_var", None) is not None and hasattr(m, "momentum")]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(*args, **kwargs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_mean += 0.1 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
        norm.running_var *= 0.8 + 0.4 * torch.rand_like(norm.running_var)
        norm.running_var += 1e-3
    return model.eval()


def _rebatch(value: Tensor, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    if not value.is_floating_point():
        return torch.randint(0, int(value.max()) + 1, (size, *value.shape[1:]), generator=generator)
    return torch.randn((size, *value.shape[1:]), generator=generator, dtype=torch.float64).to(value.dtype)


@dataclass(frozen=True)
class Compressed:
    """A model before and after."""

    gm: GraphModule
    small: GraphModule
    zigs: int
    error: float
    params_left: float


def compress_half(
    model: nn.Module, inputs: object, dtype: torch.dtype = torch.float64, sensitive: bool = True, **options: object
) -> Compressed:
    """Set half of each family to zero, compress, and compare at the traced batch size and another.

    Asserts exactness, that the group-sparse eager model agrees, that the output depends on the input (unless not
    ``sensitive``), and that the compact model trains. The model is changed; ``options`` are those of ``prepare``.
    """
    model = randomise(model.to(dtype))
    given = ExampleInputs.of(tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs))
    calibrate(model, given.args, given.kwargs)
    gm = fx_oto.prepare(model, given, **options)
    zigs = fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    small = fx_oto.compress(gm)
    errors = []
    for batch in (2, 3):
        args, kwargs = tree_map_only(Tensor, lambda t, n=batch: _rebatch(t, n), (given.args, given.kwargs))
        with torch.no_grad():
            sparse, masked, compact = (m(*args, **kwargs) for m in (model, gm, small))
        errors += [relative_error(sparse, compact), relative_error(masked, compact)]
        leaves = [leaf for leaf in tree_leaves(compact) if isinstance(leaf, Tensor)]
        assert not sensitive or any((leaf[0] - leaf[1]).abs().max() > 1e-4 * leaf.abs().max() for leaf in leaves), (
            "constant output"
        )
    assert max(errors) <= TOLERANCE[dtype], f"relative error {max(errors):.1e}"
    _train_once(small, args, kwargs)
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    return Compressed(gm, small, zigs.num_zigs, max(errors), left)


def _train_once(model: nn.Module, args: tuple, kwargs: dict) -> None:
    model.train()
    outputs = [leaf for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]
    sum(leaf.square().mean() for leaf in outputs).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    model.eval()
