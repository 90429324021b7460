"""What a graph checks while it runs: conditions that code decided by when it was captured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import has_side_effect

__all__ = ["has_truth", "is_check", "name_of_error", "raise_unless"]

_KINDS: tuple[type[Exception], ...] = (
    *(AssertionError, IndexError, KeyError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError),
    *(ArithmeticError, FloatingPointError, OverflowError, ZeroDivisionError),
)
_ERRORS = {kind.__name__: kind for kind in _KINDS}


def has_truth(condition: Any, answer: bool, text: str) -> bool:
    """Whether a condition, or a tensor of one element, is true or not, as the answer says.

    Compiled code, which does not know, asserts it.
    """
    if isinstance(condition, Tensor) and torch.compiler.is_compiling():
        torch._assert_async(condition if answer else condition.logical_not(), text)
        return True
    return bool(condition) == answer


@has_side_effect
def raise_unless(condition: bool, text: str, error: str) -> None:
    """Do as ``torch._assert``, but raise an error of a class that ``name_of_error`` names.

    Raises:
        Exception: the condition does not hold.
    """
    if not condition:
        raise _ERRORS.get(error, AssertionError)(text)


def name_of_error(error: Exception) -> str:
    """The class of Python's own that an error is of, or inherits from; of others ``"AssertionError"``."""
    return next((kind.__name__ for kind in type(error).__mro__ if kind in _KINDS), AssertionError.__name__)


def is_check(node: Node) -> bool:
    """Whether a node raises an error unless its first argument holds; the second says which."""
    return node.target in (torch._assert, raise_unless)
