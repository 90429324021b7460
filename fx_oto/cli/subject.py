"""The model that a command is about: how it is named, built, filled with weights and called."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fx_oto.api import prepare
from fx_oto.cli.locating import failed, locate
from fx_oto.cli.values import FORM, assignments, read_inputs
from fx_oto.core.context import ExampleInputs
from fx_oto.core.errors import InputError

__all__ = ["prepared"]


def prepared(options: argparse.Namespace) -> tuple[nn.Module, ExampleInputs, GraphModule]:
    """The model that the options name, its example inputs, and the model prepared on them.

    Raises:
        InputError: one of them cannot be made; where the inputs do not fit, a note says how they are given.
    """
    model, inputs = _build_model(options), _build_inputs(options)
    try:
        return model, inputs, prepare(model, inputs, unprunable=options.unprunable, attention=options.attention)
    except InputError as error:
        if options.input:
            error.add_note(f"--input: {FORM}; integers, such as token ids, are below HIGH")
        raise


def _build_model(options: argparse.Namespace) -> nn.Module:
    """The model that the options name, on its device, with its weights.

    Raises:
        InputError: there is none, or it cannot be built.
    """
    torch.manual_seed(options.seed)
    device = _device(options.device)
    factory = locate(options.model, "the model")
    kwargs = assignments(options.kwargs, "--kwargs")
    if isinstance(factory, nn.Module):
        if kwargs:
            raise InputError(f"{options.model} is an instance, so --kwargs cannot be used: name its class or factory")
        model = factory
    else:
        with device:
            model = _called(factory, kwargs, options.model)
    if options.state_dict is not None:
        _load_state(model, options.state_dict)
    return model if device.type == "meta" else model.to(device)


def _build_inputs(options: argparse.Namespace) -> ExampleInputs:
    """The example inputs that the options describe, on the model's device.

    Raises:
        InputError: they cannot be made.
    """
    if options.inputs is None:
        inputs = read_inputs(options.input)
    else:
        function = locate(options.inputs, "the example inputs")
        inputs = ExampleInputs.of(_call(function, options.inputs) if callable(function) else function)
    device = _device(options.device)
    return inputs.mapped(lambda tensor: tensor.to(device))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def _called(factory: Any, kwargs: dict[str, Any], name: str) -> nn.Module:
    if not callable(factory):
        raise InputError(
            f"{name} is of type {type(factory).__name__}: expected a function or class that returns a torch.nn.Module, "
            "or a module"
        )
    _check_arguments(factory, kwargs, name)
    model = _call(factory, name, **kwargs)
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} returned {type(model).__name__}: expected a torch.nn.Module")
    return model


def _check_arguments(factory: Callable[..., Any], kwargs: dict[str, Any], name: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # builtins have none
        return
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        raise InputError(
            f"{name} cannot be called with these arguments: {error}; it takes {signature}. Give arguments with "
            "--kwargs NAME=VALUE"
        ) from error


def _call(function: Callable[..., Any], name: str, **kwargs: Any) -> Any:
    try:
        return function(**kwargs)
    except (Exception, SystemExit) as error:
        raise failed(name, error, "arguments are given with --kwargs NAME=VALUE" if kwargs else "") from error


def _load_state(model: nn.Module, path: Path) -> None:
    state = _unwrapped(_read_state(path))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"{path} does not fit {type(model).__name__}:{_few_lines(str(error))}; give FACTORY the arguments that the "
            "weights were trained with (--kwargs NAME=VALUE)"
        ) from error


def _few_lines(text: str, most: int = 400) -> str:
    joined = " ".join(text.split(":", 1)[-1].split())
    return f" {joined if len(joined) <= most else joined[:most] + ' …'}"


def _read_state(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"--state-dict {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise InputError(f"reading {path} needs safetensors: pip install safetensors") from error
    except Exception as error:  # a damaged file can fail in any way
        raise InputError(
            f"{path} cannot be loaded with torch.load(weights_only=True): write it with "
            "torch.save(model.state_dict(), FILE), or as .safetensors"
        ) from error


def _unwrapped(state: Any) -> dict[str, Tensor]:
    """The tensors by name, also out of a checkpoint that has more, or that a data-parallel wrapper saved."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state:
        raise InputError(f"expected a state_dict, tensors by name; found {type(state).__name__} in --state-dict")
    prefix = "module."
    wrapped = all(key.startswith(prefix) for key in state)
    return {key.removeprefix(prefix) if wrapped else key: value for key, value in state.items()}
