"""What a model returns, learns and remembers in one call, and how far two models are apart in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

import fx_oto
from fx_oto.core.context import ExampleInputs
from fx_oto.core.differences import relative_error

RARE = 1e-300  # a probability that never happens, of a dropout that is still there


@dataclass(frozen=True)
class Seen:
    """Of one call: outputs, gradients by parameter, and the buffers after it."""

    outputs: list[Tensor]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def see(module: nn.Module, inputs: ExampleInputs, training: bool, gradients: bool = True, seed: int = 0) -> Seen:
    """Call a module, which is afterwards as it was: the same random numbers, and the same random loss, each time."""
    given = inputs.copied()
    with _as_it_was(module), torch.random.fork_rng(devices=[]), torch.set_grad_enabled(gradients):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed writes down the stack for each kind of device
        found = module.train(training)(*given.args, **given.kwargs)
        outputs = list(tensors_in(found))
        roots = [output for output in outputs if output.requires_grad]
        if gradients and roots:
            torch.autograd.backward(roots, [_direction(root, place) for place, root in enumerate(roots)])
        learnt = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        return Seen([output.detach() for output in outputs], learnt, {n: b.clone() for n, b in module.named_buffers()})


def tensors_in(output: object) -> Iterator[Tensor]:
    """Also those in mappings and dataclasses that torch has not been told of."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_in(value)
    elif is_dataclass(output):
        for part in fields(output):
            yield from tensors_in(getattr(output, part.name))
    else:
        yield from (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _direction(root: Tensor, place: int) -> Tensor:
    return torch.randn(root.shape, generator=torch.Generator().manual_seed(place), dtype=torch.float64).to(root)


@contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    buffers = [(part, dict(part._buffers)) for part in module.modules()]
    values = [(buffer, buffer.clone()) for buffer in module.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for part, training in modes.items():
            part.training = training
        for part, own in buffers:
            part._buffers.update(own)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


_MAY_DROP = ("Drop", "Stochastic", "RNN", "LSTM", "GRU", "MultiheadAttention", "TransformerEncoderLayer")


def never_drop(model: nn.Module) -> nn.Module:
    """Keep every dropout, and let it drop nothing."""
    for module in model.modules():
        if any(part in type(module).__name__ for part in _MAY_DROP):
            for name in ("p", "dropout", "drop_prob"):
                if isinstance(getattr(module, name, None), float) and getattr(module, name) > 0:
                    setattr(module, name, RARE)
    return model


def is_random(model: nn.Module, inputs: ExampleInputs, training: bool) -> bool:
    """Whether the model draws numbers that change what it returns."""
    first, second = (see(model, inputs, training, gradients=False, seed=seed).outputs for seed in (0, 1))
    return not relative_error(first, second) <= 1e-12


def apart(model: nn.Module, small: GraphModule, eager: Seen, compact: Seen) -> dict[str, float]:
    """How far the compact model is from the eager one: in outputs, gradients of what was kept, and written buffers."""
    errors = {"outputs": relative_error(eager.outputs, compact.outputs)}
    largest = max((g.abs().max().item() for g in eager.gradients.values() if g.numel()), default=0.0)
    least = max(1e-3 * largest, 1e-6)
    parameters, cut = dict(model.named_parameters()), dict(small.named_parameters())
    for name, gradient in eager.gradients.items():
        if name in cut and gradient.isfinite().all():
            found = compact.gradients.get(name, torch.zeros_like(cut[name]))
            times = _times(kept(small, name, parameters[name]), cut[name])
            errors[f"the gradient of {name}"] = _beside(kept(small, name, gradient), found * times, least)
    for name in compact.gradients.keys() - eager.gradients.keys() & parameters.keys():
        if compact.gradients[name].any():  # of no rows, as where the model skips what nothing was chosen for, it is 0
            errors[f"the gradient of {name}, which has none in the model"] = float("inf")
    before = dict(model.named_buffers())
    for name, buffer in eager.buffers.items():
        if name in compact.buffers and not torch.equal(buffer, before[name]):
            errors[f"the buffer {name}"] = relative_error(kept(small, name, buffer), compact.buffers[name])
    return errors


def kept(small: GraphModule, name: str, tensor: Tensor) -> Tensor:
    """What of a tensor of the eager model is left in the compact one."""
    for (cut, dim), indices in fx_oto.Context.of(small).get(fx_oto.SlicingPlan).kept.items():
        if cut == name:
            tensor = tensor.index_select(dim, indices.to(tensor.device))
    return tensor.detach()


def _times(full: Tensor, cut: Tensor) -> float:
    """The factor that was folded into a weight, such as that of a norm over fewer channels: its gradient is less."""
    if full.shape != cut.shape or not full.numel() or not full.all():
        return 1.0
    ratio = cut.detach() / full
    one = ratio.reshape(-1)[0]
    return float(one) if torch.allclose(ratio, one.expand_as(ratio), rtol=1e-9, atol=0) else 1.0


def _beside(expected: Tensor, found: Tensor, least: float) -> float:
    """The largest difference, relative to what is expected, or to ``least`` where that is nothing but rounding."""
    if expected.shape != found.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    return float((expected - found).abs().max() / max(expected.abs().max().item(), least, 1e-300))
