"""What to say where a model does not run on its example inputs."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils._pytree import tree_leaves

from fx_oto.core.context import ExampleInputs
from fx_oto.core.errors import InputError
from fx_oto.core.fx_utils import tensor_leaves, tensor_names

__all__ = ["misfit"]


def _in_words(error: Exception) -> str:
    """What an error says, with its kind where the text alone tells little, or is empty."""
    text, kind = str(error).split("\n\nWhile executing")[0].strip(), type(error).__name__
    if not text:
        return kind
    return f"{kind}: {text}" if isinstance(error, AssertionError | KeyError) else text


def misfit(error: Exception, where: str, model: nn.Module, inputs: ExampleInputs) -> InputError:
    """The error that a model does not run on its example inputs: where, why, what they are, and what to give."""
    given = tensor_leaves((inputs.args, inputs.kwargs))
    shapes = ", ".join(f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in given) or _kinds(inputs)
    mine, theirs = {t.device for t in tensor_names(model).values()}, {t.device for t in given}
    hint = "give inputs of the shape and type that model(*inputs) accepts"
    if mine and theirs and mine != theirs:
        hint = f"the model is on {_list(mine)}, the inputs are on {_list(theirs)}: move one to the other's device"
    elif numbers := inputs.numbers:
        hint = f"give tensors such as torch.randn{numbers}"
    elif isinstance(error, TypeError) and "missing" in str(error):
        hint = "give every argument of forward: a tuple of them, or a dict by name"
    reason = _in_words(error)
    return InputError(f"the model does not run on the example inputs{where}: {reason}; found {shapes}; {hint}")


def _kinds(inputs: ExampleInputs) -> str:
    return ", ".join(sorted({f"{type(leaf).__name__}s" for leaf in tree_leaves(inputs.args)})) or "no tensor"


def _list(devices: set[Any]) -> str:
    return ", ".join(sorted(map(str, devices)))
