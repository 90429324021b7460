"""What a model keeps in attributes from one call to the next: a graph begins each call as the first one began."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fx_oto.capture.check import agree, modes_of
from fx_oto.core.context import ExampleInputs
from fx_oto.core.fx_utils import tensor_leaves
from fx_oto.core.preserve import Dice, tensors_put_back, unwritten, without_fast_paths

__all__ = ["note_of_state"]


def note_of_state(names: list[str], model: nn.Module, inputs: ExampleInputs, both_modes: bool) -> list[str]:
    """What to tell if a model computes with what the call before has left in attributes.

    Args:
        names: the attributes in which it leaves tensors; most do so for others to look at.
        model: the model.
        inputs: the example inputs.
        both_modes: whether training is captured, or evaluation alone.
    """
    if not names or not any(_computes_with_it(model, inputs, mode) for mode in modes_of(model, inputs, both_modes)):
        return []
    return [
        f"the model computes with what its last call has left in {' and '.join(names[:3])}, which its graph does not: "
        "that begins each call as the first. Keep it in a buffer of its full size, or let forward be given it, and "
        "return it"
    ]


def _computes_with_it(model: nn.Module, inputs: ExampleInputs, training: bool) -> bool:
    """Whether a second call returns something else than the first, with the same random numbers and buffers."""
    dice = Dice()

    def called() -> list[Tensor]:
        copied = inputs.copied()
        dice.put_back()
        with tensors_put_back(model):
            return [one.detach().clone() for one in tensor_leaves(model(*copied.args, **copied.kwargs))]

    try:
        with torch.inference_mode(False), unwritten(model, training), without_fast_paths():
            first = called()
            return not agree(first, called())
    except Exception:  # one call after the other fails, or it cannot be run: see check_capture
        return True
    finally:
        dice.put_back()
