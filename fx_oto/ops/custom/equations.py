"""Equations that say which dimensions of an op's operands belong together, by letters, as in ``einsum``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.tape import OpCall
from fx_oto.core.errors import RuleError
from fx_oto.nn.leaves import LeafOp

__all__ = ["Equation", "keep_others", "operands_of"]

_DOTS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Equation:
    """``"...i,oi,+o->...o"``, read.

    Attributes:
        terms: a letter for each dimension of each operand, ``...`` for any number of them.
        added: whether an operand is added, and not multiplied.
        result: the same for the result.
    """

    text: str
    terms: tuple[str, ...]
    added: tuple[bool, ...]
    result: str

    @classmethod
    def read(cls, text: str) -> Equation:
        """Parse and check an equation."""
        left, arrow, result = text.replace(" ", "").partition("->")
        if not arrow or not left:
            raise RuleError(
                f"expected an equation such as '...i,oi,+o->...o', with '->' before the result; found {text!r}"
            )
        parts = left.split(",")
        terms = tuple(part.removeprefix("+") for part in parts)
        for term in (*terms, result):
            letters = term.replace("...", "", 1)
            if not (letters == "" or (letters.isascii() and letters.isalpha() and letters.islower())):
                raise RuleError(f"{term!r} in {text!r}: expected lower-case letters, and at most one '...'")
            if len(set(letters)) < len(letters):
                raise RuleError(
                    f"{term!r} in {text!r}: a letter stands for one dimension, so it may occur only once in a term"
                )
        if lost := set(result.replace(".", "")) - set("".join(terms)):
            raise RuleError(f"{sorted(lost)[0]!r} in the result of {text!r} is in no operand: add it to one")
        return cls(text, terms, tuple(part.startswith("+") for part in parts), result)

    def fitted(self, call: OpCall, operands: Sequence[tuple[str, Tensor | None]]) -> tuple[list[str], str]:
        """The terms and the result, with a letter for every dimension of a call's tensors."""
        if len(operands) != len(self.terms):
            names = ", ".join(name for name, _ in operands) or "none"
            raise RuleError(
                f"{self.text!r} has {len(self.terms)} operands, but {call.name} has {len(operands)} tensors ({names}): "
                "write a term for each, or name those that it is about by of=(…)"
            )
        terms, sizes = [], dict[str, int]()
        for (name, tensor), term in zip(operands, self.terms, strict=True):
            terms.append(term if tensor is None else _spelt(self.text, term, tensor.ndim, name))
            for letter, size in zip(terms[-1], () if tensor is None else tensor.shape, strict=False):
                if sizes.setdefault(letter, size) != size and 1 not in (size, sizes[letter]):
                    raise RuleError(
                        f"dimension {letter!r} of {self.text!r} is {sizes[letter]}, but {size} in {name}: the equation "
                        f"does not match this call of {call.name}"
                    )
                sizes[letter] = max(size, sizes[letter])
        result = _spelt(self.text, self.result, call.out.ndim, "the result")
        for letter, size in zip(result, call.out.shape, strict=True):
            if sizes.get(letter, size) != size:
                raise RuleError(
                    f"dimension {letter!r} of {self.text!r} is {sizes[letter]}, but {size} in the result of "
                    f"{call.name}, of shape {tuple(call.out.shape)}: the equation does not match it"
                )
        return terms, result


def _spelt(text: str, term: str, ndim: int, name: str) -> str:
    """Replace the dots of a term by letters, aligned at the right as in broadcasting."""
    missing = ndim - len(term.replace("...", ""))
    if missing < 0 or (missing and "..." not in term):
        raise RuleError(f"{term!r} in {text!r} does not match {name}, which has {ndim} dimensions")
    return term.replace("...", _DOTS[len(_DOTS) - missing :])


def operands_of(call: OpCall, names: Sequence[str] = ()) -> list[tuple[str, Any]]:
    """The tensors of a call by name, or those that are named, None where one is not given.

    Raises:
        RuleError: the op has no argument of a name.
    """
    found = _all_operands(call)
    if not names:
        return found
    given = dict(found)
    if isinstance(call.func, LeafOp):  # a bias may or may not be there
        return [(name, given.get(name)) for name in names]
    if unknown := [name for name in names if name not in given]:
        raise RuleError(f"{call.name} has no tensor {unknown[0]!r}: it has {', '.join(given)}")
    return [(name, given[name]) for name in names]


def keep_others(call: OpCall, p: Propagation, operands: Sequence[Tensor | None]) -> None:
    """Keep whole the tensors of a call that are no operands, such as those in a list that a leaf is given."""
    named = set(map(id, operands))
    known = {id(tensor): f"its argument {name}" for name, tensor in _all_operands(call)}
    for tensor in call.inputs:
        if id(tensor) not in named:
            which = known.get(id(tensor), "one of its arguments")
            p.freeze_value(tensor, f"the rule of {call.name} does not say what {which} is for")


def _all_operands(call: OpCall) -> list[tuple[str, Any]]:
    if isinstance(call.func, LeafOp):
        return [
            (name, value) for name, value in zip(call.func.names, call.args, strict=True) if isinstance(value, Tensor)
        ]
    found = []
    for argument in call.func._schema.arguments:
        value = call.arg(argument.name)
        if isinstance(value, list | tuple) and "Tensor" in str(argument.type):
            found += [(f"{argument.name}[{place}]", one) for place, one in enumerate(value)]
        elif "Tensor" in str(argument.type):
            found.append((argument.name, value))
    return found
