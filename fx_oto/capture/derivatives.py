"""Which ``torch.autograd.Function`` a graph may look into: one whose backward is the derivative of its forward.

Nobody can prove that of code: both are computed on numbers of several kinds, and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fx_oto.analysis.result_forms import tensors_in
from fx_oto.capture.modes import without_modes
from fx_oto.capture.whole import bound_in
from fx_oto.core.fx_utils import tensor_leaves

__all__ = ["Applied", "Judged"]

_NUMBERS = (int, float, str, type(None), torch.device)


@dataclass(frozen=True, eq=False)
class Applied:
    """An application of a ``torch.autograd.Function``.

    Attributes:
        args: what it is applied to; of tensors, only their form counts.
        custom: its class.
        forward: the ``forward`` that it has.
        learns: the tensors that would get a gradient, by ``id``.
    """

    args: tuple[Any, ...]
    custom: Any
    forward: Callable[..., Any]
    learns: Collection[int]

    @property
    def form(self) -> tuple[Any, ...]:
        """Two that have the same are judged alike."""
        forms = [
            (one.shape, one.dtype, id(one) in self.learns) if isinstance(one, Tensor) else one for one in self.args
        ]
        return (self.custom, *map(repr, forms))

    @property
    def form_at_any_size(self) -> tuple[Any, ...]:
        """The form without sizes, and without the numbers that may be made of them."""

        def form(one: Any) -> Any:
            if isinstance(one, Tensor):
                return one.dtype, id(one) in self.learns
            return type(one) if isinstance(one, int | float) and not isinstance(one, bool) else one

        return (self.custom, *(repr(form(one)) for one in self.args))

    def may_be_seen(self) -> bool:
        """Return whether autograd would compute the same gradient, and slicing may have to rewrite what is inside.

        That is what changes shapes, such as a mean over channels. All else can lose channels as a whole.
        """
        floats = [arg for arg in self.args if isinstance(arg, Tensor) and arg.is_floating_point()]
        others = tree_leaves([arg for arg in self.args if not any(arg is one for one in floats)])
        casts = any(isinstance(one, torch.dtype) for one in bound_in(self.forward))  # by custom_fwd, under autocast
        if casts or not floats or not all(isinstance(one, _NUMBERS) for one in others):
            return False
        try:
            with without_modes(), torch.random.fork_rng(devices=[]), torch.enable_grad():
                return all(map(self._agree, _KINDS))
        except Exception:  # whatever code raises that is given other numbers, or other types
            return False

    def _agree(self, kind: Callable[[Tensor], Tensor]) -> bool:
        """Compare outputs and gradients on numbers of a kind."""
        mine, theirs = self._drawn(kind), self._drawn(kind)
        watch = _Watch()
        with watch:
            found = tensor_leaves(self.forward(*self._context(), *mine))
        if not watch.changes_shapes or watch.is_foreign:
            return False
        expected = tensor_leaves(self.custom.apply(*theirs))
        if [one.requires_grad for one in found] != [one.requires_grad for one in expected]:
            return False
        pairs = zip((*found, *_gradients(found, mine)), (*expected, *_gradients(expected, theirs)), strict=True)
        return all(_alike(one, other, watch.precision) for one, other in pairs)

    def _drawn(self, kind: Callable[[Tensor], Tensor]) -> list[Any]:
        generator, none_learns = torch.Generator().manual_seed(0), not any(id(arg) in self.learns for arg in self.args)

        def draw(arg: Any) -> Any:
            if not isinstance(arg, Tensor):
                return arg
            normal = torch.randn(list(arg.shape), generator=generator, dtype=torch.float64)
            return kind(normal).requires_grad_(none_learns or id(arg) in self.learns)

        return list(map(draw, self.args))

    def _context(self) -> Iterator[Any]:
        """What ``forward`` is given first: a context as it is while code is captured, when nothing needs a gradient."""
        if self.custom.setup_context is Function.setup_context:
            context: Any = FunctionCtx()
            context.needs_input_grad = (False,) * len(self.args)
            yield context


class Judged:
    """The answers of ``Applied.may_be_seen``, found once for all runs of a model."""

    def __init__(self) -> None:
        self._answers: dict[Any, bool] = {}
        self._at_any_size: dict[Any, set[bool]] = {}
        self._example: Any = None

    def answer(self, application: Applied, sizes: tuple[tuple[int, ...], ...]) -> bool:
        """Whether an application may be seen, in a run on inputs of these sizes; the first run has the example's.

        At other sizes, which may be a thousand times as large, nothing is computed anew that had one answer.
        """
        self._example = self._example or sizes
        form, rough = application.form, application.form_at_any_size
        if form not in self._answers:
            known = self._at_any_size.setdefault(rough, set())
            if sizes != self._example and len(known) == 1:
                return next(iter(known))
            self._answers[form] = application.may_be_seen()
            known.add(self._answers[form])
        return self._answers[form]


# Ordinary numbers; tiny and huge ones, at which a gradient may be cut off; and those at which one may be chosen.
_KINDS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda normal: normal,
    lambda normal: normal * (3 * normal.flip(tuple(range(normal.ndim)))).exp(),
    lambda normal: normal.relu(),
    torch.zeros_like,
    torch.ones_like,
)


class _Watch(TorchDispatchMode):
    """Sees what a ``forward`` calls.

    Attributes:
        changes_shapes: whether some call returns another shape than it is given, and does not broadcast.
        is_foreign: whether some call is not torch's own, or reads a parameter that is no argument.
        precision: the smallest step of the lowest precision that it computes in.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.changes_shapes = self.is_foreign = False
        self.precision = torch.finfo(torch.float64).eps

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = tensors_in(list(args)), tensors_in([result])
        shapes = {one.shape for one in given}
        self.is_foreign |= func.namespace != "aten" or any(isinstance(one, nn.Parameter) for one in given)
        self.changes_shapes |= torch.Tag.pointwise not in func.tags and any(one.shape not in shapes for one in made)
        steps = [torch.finfo(one.dtype).eps for one in made if one.is_floating_point()]
        self.precision = max([self.precision, *steps])
        return result


def _gradients(outputs: Sequence[Tensor], args: Sequence[Any]) -> Iterator[Tensor]:
    """The gradient of each argument that wants one, for random gradients of the outputs, some of them large."""
    wanted = [arg for arg in args if isinstance(arg, Tensor) and arg.requires_grad]
    roots, generator = [one for one in outputs if one.requires_grad], torch.Generator().manual_seed(1)
    normal = [torch.randn(list(root.shape), generator=generator, dtype=torch.float64) for root in roots]
    given = [(one * (3 * one).exp()).to(root.dtype) for one, root in zip(normal, roots, strict=True)]
    for arg, gradient in zip(wanted, torch.autograd.grad(roots, wanted, given, allow_unused=True), strict=True):
        yield torch.zeros_like(arg) if gradient is None else gradient


def _alike(found: Tensor, expected: Tensor, precision: float) -> bool:
    """Return whether two tensors differ by no more than rounding, beside the largest of their numbers."""
    if not found.is_floating_point():
        return torch.equal(found, expected)
    finite = expected.detach()[expected.isfinite()].abs()
    bound = float(finite.max()) * precision**0.5 if len(finite) else 0.0
    return torch.allclose(found, expected, rtol=0, atol=bound, equal_nan=True)
