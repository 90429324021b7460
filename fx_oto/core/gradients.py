"""Gradients of a model's parameters for a fixed random loss, read without leaving a trace on the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fx_oto.core.differences import largest_gap, largest_value
from fx_oto.core.errors import VerificationError
from fx_oto.core.fx_utils import clone_module
from fx_oto.core.tables import counted

__all__ = ["ReadGradient", "Unlike", "how_unlike", "perturbed", "read_gradients", "same_sizes", "sample_of"]

ReadGradient = Callable[[str, Tensor], object]

_SAMPLE = 1 << 16  # elements of a gradient that are compared
_SMALL = 1 << 16  # elements of a parameter that is changed to see what rounding does: scales, biases, small layers


def read_gradients(outputs: Sequence[Tensor], parameters: Mapping[str, Tensor], read: ReadGradient) -> None:
    """Call ``read`` with the name and the gradient of each parameter that has one.

    The loss is the sum of all elements of the outputs, each times a fixed random number. No ``.grad`` is written, hooks
    that others have put on the parameters are not called, and a gradient is freed once it was read.

    Args:
        outputs: of a model that was run with gradients; those that depend on no parameter are left out.
        parameters: by name.
        read: must keep no reference to the gradient if its memory is to be freed.
    """
    roots = {i: root for i, root in enumerate(outputs) if root.requires_grad}
    wanted = {name: p for name, p in parameters.items() if p.requires_grad and p.is_leaf}
    if not (roots and wanted):
        return
    weights = [_random(root, seed) for seed, root in roots.items()]
    with _hooked(wanted, read, _Outermost(roots.values())):
        torch.autograd.grad(list(roots.values()), list(wanted.values()), weights, allow_unused=True)


def _random(like: Tensor, seed: int) -> Tensor:
    """Numbers that draw nothing from the generators of the user's."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), device="cpu").to(like)


class _Outermost:
    """Tells the backward pass of some roots from those that functions in it start, as checkpointing does."""

    def __init__(self, roots: Iterable[Tensor]) -> None:
        self._task: int | None = None
        self._handles = [root.register_hook(self._begin) for root in roots]

    def _begin(self, gradient: Tensor) -> None:
        self._task = torch._C._current_graph_task_id() if self._task is None else self._task

    def is_here(self) -> bool:
        """Whether that is the one that runs now."""
        return bool(torch._C._current_graph_task_id() == self._task)

    def forget(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


@contextmanager
def _hooked(parameters: Mapping[str, Tensor], read: ReadGradient, outermost: _Outermost) -> Iterator[None]:
    """Let each parameter hand its gradient over instead of calling the hooks that it has."""
    before = [(parameter, parameter._backward_hooks) for parameter in parameters.values()]
    try:
        for name, parameter in parameters.items():
            parameter._backward_hooks = None
            parameter.register_hook(_handing_over(name, read, outermost))
        yield
    finally:
        outermost.forget()
        for parameter, hooks in before:
            parameter._backward_hooks = hooks


def _handing_over(name: str, read: ReadGradient, outermost: _Outermost) -> Callable[[Tensor], Tensor | None]:
    def hook(gradient: Tensor) -> Tensor | None:
        read(name, gradient)
        if not outermost.is_here():  # what has started it returns the gradient, to be read once more
            return None
        # Autograd keeps what a hook returns until all gradients are there: zeros that share one element.
        return gradient.new_zeros(()).expand_as(gradient) if gradient.layout is torch.strided else None

    return hook


def sample_of(gradient: Tensor) -> Tensor:
    """Its elements, shape ``(n,)``; of more than 65,536, so many of them, the same of tensors of one size.

    What is wrong with a gradient is wrong with whole channels of it, of which samples have some elements each.
    """
    elements = gradient.to_dense().flatten()
    if len(elements) <= _SAMPLE:
        return elements
    places = torch.randint(len(elements), (_SAMPLE,), generator=torch.Generator().manual_seed(0))
    return elements[places.to(elements.device)]


@dataclass
class Unlike:
    """How far gradients are from those expected, by parameter.

    Attributes:
        expected: samples of the gradients that are expected, by name.
        part: what of a gradient, given with its name, is to be compared.
        differences: the largest difference in each, and the largest value on either side.
    """

    expected: Mapping[str, Tensor]
    part: Callable[[str, Tensor], Tensor] = lambda name, gradient: gradient
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)

    def read(self, name: str, gradient: Tensor) -> None:
        """Compare one; a parameter for which none is expected is expected to have zeros.

        Where a gradient read is NaN, as of the root of a channel that is zero, any is as good.
        """
        self._compare(name, sample_of(self.part(name, gradient.to_dense())))

    def missing(self) -> None:
        """Compare those that were expected and have not been read with zeros."""
        for name in self.expected.keys() - self.differences.keys():
            self._compare(name, torch.zeros_like(self.expected[name]))

    def _compare(self, name: str, found: Tensor) -> None:
        wanted = self.expected.get(name)
        wanted = torch.zeros_like(found) if wanted is None else torch.where(found.isnan(), found, wanted)
        self.differences[name] = largest_gap(wanted, found), max(largest_value(found), largest_value(wanted))

    def relative(self) -> dict[str, float]:
        """Each difference, relative to the largest value; to a thousandth of the largest of all where that is more.

        Below that is rounding alone, such as in the bias in front of a batch norm, whose gradient is 0.
        """
        least = 1e-3 * max((scale for _, scale in self.differences.values()), default=0.0)
        return {name: apart / (max(scale, least) or 1.0) for name, (apart, scale) in self.differences.items()}


def perturbed(model: nn.Module) -> nn.Module:
    """A copy that shares its large parameters, and whose small ones differ by some units in the last places.

    That is more than the order of sums does to what is computed from them, and less than any fault.
    """
    changed: dict[int, Tensor] = {}

    def change(tensor: Tensor) -> Tensor:
        is_number = tensor.is_floating_point() or tensor.is_complex()
        if not (isinstance(tensor, nn.Parameter) and is_number and tensor.numel() <= _SMALL):
            return tensor
        if id(tensor) not in changed:
            factor = 1 + 64 * torch.finfo(tensor.dtype).eps * _random(tensor, len(changed)).sgn()
            changed[id(tensor)] = nn.Parameter(tensor.detach() * factor, tensor.requires_grad)
        return changed[id(tensor)]

    return clone_module(model, change)


def same_sizes(expected: Sequence[Tensor], found: Sequence[Tensor], mode: str) -> None:
    """Raise a VerificationError where outputs are not of the sizes of the full model, or not as many."""
    wanted, sizes = ([tuple(one.shape) for one in outputs] for outputs in (expected, found))
    if wanted != sizes:
        raise VerificationError(
            f"in {mode} mode the compact model returns tensors of sizes {sizes} in the place of {wanted}. Nothing was "
            "changed: please report this model"
        )


def how_unlike(wrong: Mapping[str, float], tolerance: float, mode: str) -> str:
    """What an error says of gradients that differ."""
    shown = [f"{name!r} by {apart:.1e}" for name, apart in sorted(wrong.items(), key=lambda pair: -pair[1])]
    return (
        "the compact model returns what the group-sparse one does, but would not learn what it does: in "
        f"{mode} mode the gradients of {counted(len(wrong), 'parameter differs', 'parameters differ')}, of "
        f"{', '.join(shown[:4])}{' …' if len(shown) > 4 else ''} of the largest value (allowed: {tolerance:.0e}). "
        "Nothing was changed: if a pass, a rule or a backward of your own detaches what these feed, mend it; else "
        "please report this model"
    )
