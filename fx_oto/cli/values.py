"""Values of options: ``name=value``, and the shapes of example inputs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fx_oto.cli.locating import did_you_mean
from fx_oto.core.context import ExampleInputs
from fx_oto.core.errors import InputError, SettingsError

__all__ = ["FORM", "assignments", "read_inputs"]

_WORD = re.compile(r"[A-Za-z_][\w./-]*")
_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})-({_NUMBER})")
_SPEC = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>[^:=]+)(?::(?P<dtype>[^:]*))?(?::(?P<range>[^:]*))?")
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
FORM = "expected [NAME=]SIZES[:DTYPE[:LOW-HIGH]], such as 1,3,224,224 or input_ids=1,128:int64:0-30522"


def assignments(texts: Iterable[str], option: str) -> dict[str, Any]:
    """Read ``name=value`` pairs; values are Python literals, and words stand for themselves.

    Raises:
        SettingsError: one is not of this form, or a name is given twice.

    Example:
        >>> assignments(["width=32", "weights=None", "act=gelu", "sizes=[1,2]"], "--kwargs")
        {'width': 32, 'weights': None, 'act': 'gelu', 'sizes': [1, 2]}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise SettingsError(f"{option} expects NAME=VALUE, such as num_classes=10; found {text!r}")
        if name in found:
            raise SettingsError(f"{option} gives {name} twice")
        found[name] = _literal(value, f"{option} {name}")
    return found


def _literal(text: str, where: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        if _WORD.fullmatch(text):
            return text
        raise SettingsError(
            f"{where}: expected a Python literal, such as 3, 0.1, None, [1,2] or 'text' (quote it for the shell: "
            f"\"name='a text'\"); found {text!r}"
        ) from error


def read_inputs(specs: Iterable[str]) -> ExampleInputs:
    """Random tensors of the shapes that were given: positional ones in order, named ones as keyword arguments.

    Floating-point numbers are standard normal, or uniform in LOW-HIGH; integers are in [LOW, HIGH), or 0 and 1.

    Raises:
        InputError: one is not of the form ``[NAME=]SIZES[:DTYPE[:LOW-HIGH]]``.

    Example:
        >>> inputs = read_inputs(["2,3", "ids=1,4:int64:0-100"])
        >>> [tuple(tensor.shape) for tensor in inputs.args], inputs.kwargs["ids"].dtype
        ([(2, 3)], torch.int64)
    """
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise InputError(f"--input {spec}: {FORM}")
        value = _random(_shape(match["shape"], spec), _dtype(match["dtype"], spec), match["range"], spec)
        name = match["name"]
        if name is None:
            args.append(value)
        elif name in kwargs:
            raise InputError(f"--input gives {name} twice")
        else:
            kwargs[name] = value
    return ExampleInputs(tuple(args), kwargs)


def _shape(text: str, spec: str) -> list[int]:
    sizes = [size.strip() for size in text.removesuffix(",").split(",")]
    for size in sizes:
        if not size.isdecimal() or int(size) == 0:
            raise InputError(f"--input {spec}: a size must be a positive integer, found {size!r}; {FORM}")
    return list(map(int, sizes))


def _dtype(name: str | None, spec: str) -> torch.dtype:
    if name is None:
        return torch.get_default_dtype()
    if name not in _DTYPES:
        raise InputError(f"--input {spec}: torch has no dtype {name!r}{did_you_mean(name, _DTYPES)}")
    return _DTYPES[name]


def _random(shape: list[int], dtype: torch.dtype, bounds: str | None, spec: str) -> Tensor:
    low, high = _bounds(bounds, spec) if bounds is not None else (0.0, 2.0)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype) if bounds is None else low + (high - low) * torch.rand(shape).to(dtype)
    return torch.randint(int(low), max(int(high), int(low) + 1), shape).to(dtype)


def _bounds(text: str, spec: str) -> tuple[float, float]:
    match = _RANGE.fullmatch(text)
    if match is None or float(match[1]) >= float(match[2]):
        raise InputError(f"--input {spec}: expected LOW-HIGH with LOW < HIGH, such as 0-30522 or -1-1; found {text!r}")
    return float(match[1]), float(match[2])
