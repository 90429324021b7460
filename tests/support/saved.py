"""Models that go into a file and come back: what they return must be the same to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

import fx_oto
import fx_oto.testing
from fx_oto.core.context import ExampleInputs


def compact(model: nn.Module, inputs: object, zeros: float = 0.5) -> GraphModule:
    """The compact model, with random numbers in every parameter and statistic."""
    gm = fx_oto.prepare(fx_oto.testing.randomise(model), inputs)
    fx_oto.partition(gm).zero_(zeros, torch.Generator().manual_seed(0))
    return fx_oto.compress(gm, verify=False)


def saved(small: GraphModule, folder: Path, *args: object, **options: object) -> GraphModule:
    """The model, written and loaded."""
    fx_oto.save(small, folder / "small.safetensors")
    return fx_oto.load(folder / "small.safetensors", *args, **options)


def leaves(value: object) -> list[object]:
    """The leaves of an output; those of a ModelOutput and of a plain dictionary are the same."""
    return tree_leaves(dict(value) if isinstance(value, Mapping) else value)


def outputs(model: nn.Module, inputs: object, training: bool) -> list[object]:
    """The leaves that a copy of a model returns from a fixed state of the generator."""
    given = ExampleInputs.of(inputs).copied()
    model = copy.deepcopy(model).train(training)
    torch.manual_seed(0)
    return leaves(model(*given.args, **given.kwargs))


def assert_same(small: nn.Module, loaded: nn.Module, *batches: object) -> None:
    """Outputs are equal bit for bit, in evaluation, and in training from one seed; parameters are alike."""
    for inputs in batches:
        for training in (False, True):
            for one, other in zip(outputs(small, inputs, training), outputs(loaded, inputs, training), strict=True):
                if isinstance(one, Tensor):
                    assert one.dtype == other.dtype
                    assert torch.equal(one, other)
                else:
                    assert one == other
    for kind in ("parameters", "buffers"):
        mine, theirs = (dict(getattr(one, f"named_{kind}")(remove_duplicate=False)) for one in (small, loaded))
        assert list(mine) == list(theirs)
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]) or tensor.isnan().any()
            assert (tensor.dtype, tensor.stride(), tensor.requires_grad) == (
                theirs[name].dtype,
                theirs[name].stride(),
                theirs[name].requires_grad,
            ), name
    assert small.state_dict().keys() == loaded.state_dict().keys()
    assert {name: one.training for name, one in small.named_modules()} == {
        name: one.training for name, one in loaded.named_modules()
    }
