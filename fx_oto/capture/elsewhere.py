"""What a model remembers of the sizes of its last call, such as anchors that it makes anew when they change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fx_oto.capture.check import check_capture
from fx_oto.capture.groups import Group, groups_of, resized
from fx_oto.core.context import ExampleInputs
from fx_oto.core.errors import InputError, TraceError
from fx_oto.core.fx_utils import tensor_leaves, tensor_names
from fx_oto.core.preserve import Dice, unwritten

__all__ = ["check_memory", "forget_sizes"]

_OF_MODULES = frozenset(vars(nn.Module()))  # what torch keeps on every module


def forget_sizes(model: nn.Module, inputs: ExampleInputs) -> bool:
    """Make a model forget what depends on the sizes of its last call; returns whether there was anything.

    A detector that was called on these very sizes has its anchors for them, and code that compares the two sizes would
    be captured where they are the same. What changes in a call at other sizes gets sizes that no input has.
    """
    if any(tensor.is_meta for tensor in (*tensor_names(model).values(), *tensor_leaves((inputs.args, inputs.kwargs)))):
        return False
    changed, sizes = list[tuple[nn.Module, str]](), dict[Group, int]()
    for group in groups_of(inputs):
        other = sizes | {group: group.size + 1 if group.is_batch else max(group.size // 2, 1)}
        found = _changed(model, resized(inputs, other))
        if found is not None:
            changed, sizes = found, other
    for module, name in changed:
        value = vars(module).pop(name)
        if not hasattr(type(module), name):  # where that is as it was before the first call
            vars(module)[name] = _of_no_size(value)
    return bool(changed)


def check_memory(gm: GraphModule, model: nn.Module, inputs: ExampleInputs) -> None:
    """Check that nothing but the sizes of the present call matters to a model, as its graph has it.

    On other numbers, and at sizes a little smaller and larger, a model returns something else if it keeps a number of
    its first call, or a table for the longest one so far. A graph may say that it was captured at others.

    Raises:
        TraceError: the graph, of the model that has forgotten sizes, does not return what the model returns.
    """
    for given in (inputs, _with_other_numbers(inputs)):
        check_capture(gm, model, given, both_modes=True)
    for given in _at_other_sizes(inputs):
        try:
            check_capture(gm, model, given, both_modes=False)
        except InputError:  # the model does not take this size
            continue
        except TraceError as error:
            if not isinstance(error.__cause__, AssertionError):
                raise


def _with_other_numbers(inputs: ExampleInputs) -> ExampleInputs:
    def change(tensor: Tensor) -> Tensor:
        return tensor.detach().flip(tuple(range(tensor.ndim))) * 0.7 if tensor.is_floating_point() else tensor

    return inputs.mapped(change)


def _at_other_sizes(inputs: ExampleInputs) -> Iterator[ExampleInputs]:
    for group in groups_of(inputs):
        for size in (group.size - 1, group.size + 1):
            if size:
                yield resized(inputs, {group: size})


def _changed(model: nn.Module, inputs: ExampleInputs) -> list[tuple[nn.Module, str]] | None:
    """The attributes that a call sets; None if the model does not take the inputs. It is left as it was."""
    before, dice = _held(model), Dice()
    try:
        with torch.inference_mode(False), unwritten(model):
            model(*inputs.args, **inputs.kwargs)
            after = _held(model)
    except Exception:  # whatever code raises on sizes that it does not take
        return None
    finally:
        dice.put_back()
    return [key for key, content in before.items() if not _is_same(content, after.get(key))]


def _held(model: nn.Module) -> dict[tuple[nn.Module, str], Any]:
    """What modules hold besides parameters, buffers and modules; of containers, copies."""
    return {
        (module, name): dict(value) if type(value) is dict else list(value) if type(value) is list else value
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in _OF_MODULES
    }


def _is_same(before: Any, now: Any) -> bool:
    if isinstance(before, dict) and isinstance(now, dict):
        return before.keys() == now.keys() and all(before[key] is value for key, value in now.items())
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(one is other for one, other in zip(before, now, strict=True))
    return before is now


def _of_no_size(value: Any) -> Any:
    """The same with sizes that nothing has."""
    if isinstance(value, Tensor):
        return value.new_empty((0,) * value.ndim) if value.ndim else value
    if type(value) is int:
        return -1
    if isinstance(value, torch.Size) or type(value) in (tuple, list):
        return (list if type(value) is list else tuple)(map(_of_no_size, value))
    return {key: _of_no_size(one) for key, one in value.items()} if type(value) is dict else value
