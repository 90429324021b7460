"""Users' own checkpointing, as in guided diffusion: a ``torch.autograd.Function`` that calls a function, and again.

Nobody can prove that of code: it is given a function whose outputs and gradients are known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fx_oto.capture.modes import without_modes
from fx_oto.capture.recorder import Recorder
from fx_oto.capture.whole import bound_in

__all__ = ["NOTE", "checkpointed"]

NOTE = "torch.utils.checkpoint is left out of the graph, which keeps all activations: train the model itself"

_TENSOR, _FUNCTION = "a tensor", "a function"  # in forms of arguments
_GIVEN = (Tensor, int, float, type(None))


def checkpointed(run: Recorder, custom: Any, args: Sequence[Any]) -> Callable[[], Any] | None:
    """What a function computes that is applied to a function, if it checkpoints that one; else None."""
    functions = [one for one in args if callable(one) and not isinstance(one, Tensor | type)]
    form = tuple(_TENSOR if isinstance(one, Tensor) else _FUNCTION if callable(one) else one for one in args)
    if len(functions) != 1 or not all(isinstance(one, _GIVEN) or one is functions[0] for one in args):
        return None
    given = {id(run.fakes.of(one)) for one in args if isinstance(one, Tensor)}
    if any(id(run.fakes.of(one)) not in given for one in _learning(functions[0])):  # which get no gradient through it
        return None
    with run.unseen():
        places = _passed_on(custom, form)
    return None if places is None else lambda: functions[0](*(args[place] for place in places))


def _learning(function: Any) -> Iterator[Tensor]:
    """The tensors that a function may use without being given them, and that learn."""
    for value in tree_leaves([getattr(function, "__self__", function), *bound_in(function)]):
        found = value.parameters() if isinstance(value, nn.Module) else [value] if isinstance(value, Tensor) else []
        yield from (one for one in found if one.requires_grad)


@functools.cache
def _passed_on(custom: Any, form: tuple[Any, ...]) -> list[int] | None:
    """Which of its arguments a function gives to the one that it is applied to; None if it does not checkpoint."""
    try:
        with without_modes(), torch.random.fork_rng(devices=[]), torch.enable_grad():
            mine, theirs = _drawn(form), _drawn(form)
            called: list[Sequence[Any]] = []
            found = custom.apply(*(_probe(theirs, called) if one is _FUNCTION else one for one in theirs))
            places = [one.numel() - 2 for one in called[0]]  # no two have as many elements
            expected = _probe(mine, [])(*(mine[place] for place in places))
            pairs = zip(_with_gradients(found, theirs), _with_gradients(expected, mine), strict=True)
            return places if all(torch.allclose(one, other, rtol=1e-10, atol=1e-12) for one, other in pairs) else None
    except Exception:  # whatever code raises that is applied to something else
        return None


def _drawn(form: tuple[Any, ...]) -> list[Any]:
    generator = torch.Generator().manual_seed(0)

    def drawn(place: int, one: Any) -> Any:
        if one is not _TENSOR:
            return one
        return torch.randn(place + 2, generator=generator, dtype=torch.float64).requires_grad_()

    return [drawn(place, one) for place, one in enumerate(form)]


def _probe(drawn: Sequence[Any], called: list[Sequence[Any]]) -> Callable[..., Tensor]:
    """A function of what it is given and, as of parameters, of all else that was drawn."""

    def probe(*given: Tensor) -> Tensor:
        called.append(given)
        passed = {one.numel() for one in given}
        others = [one for one in drawn if isinstance(one, Tensor) and one.numel() not in passed]
        scale = torch.stack([torch.ones((), dtype=torch.float64), *(one.sin().sum() for one in others)]).sum()
        return torch.cat(given).square() * scale

    return probe


def _with_gradients(output: Tensor, drawn: Sequence[Any]) -> Iterator[Tensor]:
    tensors = [one for one in drawn if isinstance(one, Tensor)]
    direction = torch.randn(len(output), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    yield output
    for tensor, gradient in zip(
        tensors, torch.autograd.grad(output, tensors, direction, allow_unused=True), strict=True
    ):
        yield torch.zeros_like(tensor) if gradient is None else gradient
