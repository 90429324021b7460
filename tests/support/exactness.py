"""Random, non-trivial numbers in every parameter, and the comparison that every promise of exactness rests on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map_only

import fx_oto
import fx_oto.testing
from fx_oto.core.context import ExampleInputs
from fx_oto.core.differences import relative_error
from fx_oto.core.preserve import without_fast_paths
from support.seen import apart, is_random, never_drop, see, tensors_in
from support.sizes import Sized, beside, fresh, rebatched, resized, takes, tensors_of

CHECK = "the graph was captured where "
SLICED = ("spells out", "stays the last")
WAYS = ((0.75, 3),)  # what is zero besides: a fraction of each family, and the seed by which it is chosen
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


@dataclass(frozen=True)
class Compressed:
    """A model before and after.

    Attributes:
        gm: the prepared model.
        small: the compact one.
        zigs: how many groups were set to zero.
        error: the largest relative error.
        params_left: the share of the parameters that is left.
        equal: the other sizes at which it is the same as the eager model.
        checked: those at which its graph says that it was captured at others.
    """

    gm: GraphModule
    small: GraphModule
    zigs: int
    error: float
    params_left: float
    equal: tuple[Sized, ...] = ()
    checked: tuple[Sized, ...] = ()


def compress_half(
    model: nn.Module,
    inputs: object,
    dtype: torch.dtype = torch.float64,
    sensitive: bool = True,
    *,
    others: Sequence[object] = (),
    any_size: bool = False,
    sizes: int = 5,
    **options: object,
) -> Compressed:
    """Set half of each family to zero, compress, and compare with the group-sparse eager model at many sizes.

    Before, it is cut in other ways, and compared on the example: padding may go or stay, a first channel or a last.

    Those are the example's, other batches, and other lengths, heights and widths that the eager model takes; in
    evaluation and in training mode, where that is not random; outputs, gradients of what was kept, and buffers. At a
    size at which the graph was not captured it may say so, if ``Capture.sizes`` does. Asserts as well that the output
    depends on the input (unless not ``sensitive``) and that the compact model trains. The model is changed.

    Args:
        model: any module.
        inputs: the example, as for ``prepare``.
        dtype: of parameters and inputs; gradients are compared in float64 only.
        sensitive: whether its output depends on its input.
        others: inputs of other sizes, all of which the model takes.
        any_size: whether the compact model must take them all as well.
        sizes: at most so many other lengths, heights and widths are tried; 1 compares less of a large network.
        options: those of ``prepare``.
    """
    model = never_drop(randomise(model.to(dtype)))
    given = ExampleInputs.of(_in(dtype, inputs))
    calibrate(model, given.args, given.kwargs)
    gm = fx_oto.prepare(model, given, **options)
    for way in WAYS[: max(sizes - 1, 0)]:
        _cut(gm, given, TOLERANCE[dtype], *way)
    zigs = fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1))
    small = fx_oto.compress(gm)
    found = Comparison(model, gm, small, TOLERANCE[dtype], min(sizes, 3))
    length = next((t.size(0) for t in tensors_of(given) if t.ndim), 1)
    batches = [resized(given, {})] + [rebatched(given, size) for size in {2, 3, length + 1} - {length}]
    batches = [batch for batch in batches if takes(model, batch.inputs)]
    assert len(batches) > 1
    for batch in batches[: 2 if sizes < 2 else 3]:
        found.compare(batch, masked=True)
        assert not sensitive or _depends(small, batch.inputs), "constant output"
    for other in (beside(given, ExampleInputs.of(_in(dtype, other))) for other in others):
        assert takes(model, other.inputs)
        found.compare(other)
    for other in fresh(model, given, sizes):
        found.compare(other)
    assert not (any_size and found.checked), [str(sized) for sized in found.checked]
    refused = {sized.places for sized in found.checked}
    _train_once(small, next(batch for batch in reversed(batches) if batch.places not in refused).inputs)
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    return Compressed(gm, small, zigs.num_zigs, found.error, left, tuple(found.equal), tuple(found.checked))


def _cut(gm: GraphModule, given: ExampleInputs, tolerance: float, fraction: float, seed: int) -> None:
    """Compare outputs on the example once other groups of a copy are zero."""
    full = deepcopy(gm)
    fx_oto.partition(full).zero_(fraction, torch.Generator().manual_seed(seed))
    with warnings.catch_warnings():  # a part may be zero altogether, by chance
        warnings.filterwarnings("ignore", "every channel of node", fx_oto.FxOtoWarning)
        small = fx_oto.compress(full)
    with without_fast_paths():
        seen = [see(one, given, training=False, gradients=False).outputs for one in (full, small)]
    error = relative_error(*seen)
    assert error <= tolerance, f"outputs: {error:.1e}, cut by {fraction} with seed {seed}"


def _in(dtype: torch.dtype, inputs: object) -> object:
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)


class Comparison:
    """The compact model beside the eager one, size after size."""

    def __init__(self, model: nn.Module, gm: GraphModule, small: GraphModule, tolerance: float, often: int):
        self.model, self.gm, self.small, self.tolerance, self.often = model, gm, small, tolerance, often
        self.error, self.equal, self.checked, self.trained = 0.0, [], [], 0

    def compare(self, sized: Sized, masked: bool = False) -> None:
        """Both modes; training mode if it is not random, takes these inputs and was not compared often."""
        for training in (False, True):
            if training and not self._trains(sized):
                continue
            self.trained += training
            gradients = self.tolerance < 1e-6 and (self.often > 1 or training or not self.repeats)
            eager = see(self.model, sized.inputs, training, gradients)
            try:
                compact = see(self.small, sized.inputs, training, gradients)
            except AssertionError as refusal:
                self._must_be_fixed(sized, refusal)
                self.checked.append(sized)
                return
            errors = apart(self.model, self.small, eager, compact)
            if masked and not training:
                masks = see(self.gm, sized.inputs, training=False, gradients=False)
                errors["outputs of the masked graph"] = relative_error(eager.outputs, masks.outputs)
            wrong = [f"{name}: {error:.1e}" for name, error in errors.items() if not error <= self.tolerance]
            mode = "training" if training else "evaluation"
            assert not wrong, f"{', '.join(wrong)} at {sized}, in {mode} mode"
            self.error = max(self.error, *errors.values())
        if sized.places:
            self.equal.append(sized)

    def _trains(self, sized: Sized) -> bool:
        """In float32, statistics of few examples differ by more than rounding elsewhere."""
        wanted = self.trained < self.often and self.tolerance < 1e-6 and self.repeats
        return wanted and (not sized.places or takes(self.model, sized.inputs, training=True))

    @cached_property
    def repeats(self) -> bool:
        """Whether training mode takes the example's size and returns the same each time."""
        example = fx_oto.Context.of(self.gm).inputs
        try:
            return not is_random(self.model, example, training=True)
        except Exception:  # whatever a model raises in training, such as for want of targets
            return False

    def _must_be_fixed(self, sized: Sized, refusal: AssertionError) -> None:
        """The graph may refuse a size only by the check, and where it was said to be fixed."""
        if CHECK not in str(refusal) or not sized.places:
            raise refusal
        if any(text in str(refusal) for text in SLICED):  # what only slicing needs to know
            return
        sizes = fx_oto.Context.of(self.gm).capture.sizes
        fixed = {dim for size in sizes if size.fixed or size.decided for _, dim in size.dims}
        changed = {dim for _, dim in sized.places}
        assert changed & fixed, f"refused at {sized}, but fixed or decided by code are only {sorted(fixed)}: {refusal}"


def _depends(small: nn.Module, inputs: ExampleInputs) -> bool:
    """Whether an output of the first example is another than that of the second."""
    leaves = [leaf for leaf in see(small, inputs, training=False, gradients=False).outputs if leaf.ndim]
    return any(len(leaf) < 2 or (leaf[0] - leaf[1]).abs().max() > 1e-4 * leaf.abs().max() for leaf in leaves)


def _train_once(model: nn.Module, inputs: ExampleInputs) -> None:
    model.train()
    outputs = [output for output in tensors_in(model(*inputs.args, **inputs.kwargs)) if output.requires_grad]
    sum(leaf.square().mean() for leaf in outputs).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    model.eval()
