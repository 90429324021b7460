"""Ready-made rules for the common kinds of ops and leaf modules: ``fx_oto.kinds``.

Each is given to ``fx_oto.register_rule`` or ``fx_oto.register_leaf`` and says in its docstring what it takes for
granted. What is taken for granted and does not hold shows in ``Verification``, which compares outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_map_only

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.tape import OpCall
from fx_oto.core.errors import RuleError
from fx_oto.nn.leaves import LeafOp
from fx_oto.ops.custom.elements import Elementwise
from fx_oto.ops.custom.equations import Equation, keep_others
from fx_oto.ops.custom.shifting import Movement
from fx_oto.ops.custom.sums import Sum
from fx_oto.ops.refusals import KeepWhole

__all__ = ["contraction", "elementwise", "keep_whole", "like", "movement"]


def elementwise(equation: str | None = None, *, zero_if: str | Sequence[str] = ()) -> Elementwise:
    """Each element of the result depends on one element of each tensor, and on nothing else.

    Taken for granted: the value at an index depends only on the tensors' elements at that index. No other argument
    holds a size of a dimension that may shrink. What a removed channel is worth in the result is not declared but
    found by running the op on a few numbers; where it cannot be run (a kernel for another device), and wherever a
    tensor is involved of which nothing is known, it counts as unknown, and what sums over it keeps the channel.

    Args:
        equation: how the dimensions belong together, such as ``"bc...,c->bc..."`` for a parameter for each channel;
            one term for each tensor, for a leaf its inputs first, then its parameters and buffers. By default tensors
            are broadcast as by ``torch.add``.
        zero_if: arguments of which one zero makes the result zero, whatever the others hold, as in ``x * gate``.

    Returns:
        A rule for ``fx_oto.register_rule`` or ``fx_oto.register_leaf``.

    Raises:
        RuleError: the equation cannot be read.

    Example:
        >>> import fx_oto
        >>> fx_oto.kinds.elementwise("bc...,c->bc...", zero_if="x")
        elementwise('bc...,c->bc...', zero_if=('x',))
    """
    names = (zero_if,) if isinstance(zero_if, str) else tuple(zero_if)
    return Elementwise(None if equation is None else Equation.read(equation), names)


def movement(move: Callable[..., Any] | None = None) -> Movement:
    """The op only moves elements of one tensor: permutes, shuffles, repeats, leaves some out.

    Taken for granted: where an element goes depends on shapes and on arguments that are no tensors, never on values;
    the order along one dimension does not depend on the size of the others. The op is run on numbered elements, on
    int64 or else on the type that the model gives it; along a dimension that may shrink it must do to a smaller
    tensor what it does to the larger one, which is tried out; a shuffle of one dimension that does not becomes an
    ``index_select`` in the compact model; anything else is kept whole.

    Args:
        move: computes the same, from the same arguments, on int64 tensors on the CPU; for an op that cannot.

    Returns:
        A rule for ``fx_oto.register_rule`` or ``fx_oto.register_leaf``.

    Example:
        >>> import torch, fx_oto
        >>> rule = fx_oto.kinds.movement(lambda x, groups: torch.channel_shuffle(x, groups))
    """
    return Movement(move)


def contraction(equation: str, *, of: Sequence[str] = (), activation: Callable[[Tensor], Tensor] | None = None) -> Sum:
    """The op multiplies tensors and sums over dimensions, as ``torch.einsum``; some are added, a function follows.

    Taken for granted: the result is ``activation(einsum(…) + …)``, and each dimension means what its letter says.
    Parameters and buffers among the operands are weights: their rows, the letters that are in the result, can be
    driven to zero, their columns are cut with what they are multiplied with. No other argument holds a size.

    For an op, a formula for ``torch.utils.flop_counter`` is registered unless it has one: register one of yours
    first. Of a leaf, MACs are those of the ops that torch counts in it.

    Args:
        equation: as for ``torch.einsum``, one term for each tensor, ``+`` before those that are added, which may also
            be None: ``"...i,oi,+o->...o"`` is a linear layer with a bias. The first term is the input. Letters that
            are not in the result must be in the first term.
        of: names of the tensors that the terms stand for; by default all of them in order, for a leaf the arguments of
            ``forward`` first, then its parameters and buffers. Tensors that are not named are kept whole.
        activation: the elementwise function that follows, such as ``torch.relu``.

    Returns:
        A rule for ``fx_oto.register_rule`` or ``fx_oto.register_leaf``.

    Raises:
        RuleError: the equation cannot be read.

    Example:
        >>> import torch, fx_oto
        >>> fx_oto.kinds.contraction("...i,oi,+o->...o", activation=torch.relu)
        contraction('...i,oi,+o->...o', activation=relu)
    """
    return Sum(Equation.read(equation), tuple(of), activation)


def like(op: Any, arguments: Callable[..., Sequence[Any]] | None = None) -> Like:
    """The op does what an ATen op does: for reductions, softmax, norms by channel, convolutions.

    Taken for granted: the result is that of the ATen op on these arguments. What slicing would have to rewrite in the
    ATen op (sizes, groups, a count that a mean divides by) it cannot rewrite in another: there, it is kept whole.

    Args:
        op: the overload, such as ``torch.ops.aten.sum.dim_IntList``.
        arguments: computes its arguments from those of the call, given by name, for a leaf with its parameters and
            buffers; by default they are the same.

    Returns:
        A rule for ``fx_oto.register_rule`` or ``fx_oto.register_leaf``.

    Raises:
        RuleError: ``op`` is no overload of an ATen op.

    Example:
        >>> import torch, fx_oto
        >>> fx_oto.kinds.like(torch.ops.aten.sum.dim_IntList, lambda x: (x, [-1]))
        like(aten.sum.dim_IntList)
    """
    if not isinstance(op, OpOverload) or op.namespace != "aten":
        raise RuleError(f"like expects an overload of an ATen op, such as torch.ops.aten.sum.dim_IntList; found {op!r}")
    return Like(op, arguments)


def keep_whole(reason: str) -> KeepWhole:
    """All inputs of the op are kept whole, and nothing is known about its result.

    Args:
        reason: the text that tables and explanations show.

    Returns:
        A rule for ``fx_oto.register_rule`` or ``fx_oto.register_leaf``.

    Example:
        >>> import fx_oto
        >>> fx_oto.kinds.keep_whole("the codebook has a fixed width")
        keep_whole('the codebook has a fixed width')
    """
    return KeepWhole(reason)


@dataclass(frozen=True)
class Like:
    """The rule that ``fx_oto.kinds.like`` makes."""

    op: Any
    arguments: Callable[..., Sequence[Any]] | None

    mixing = True

    def __call__(self, call: OpCall, p: Propagation) -> None:
        """Follow a call."""
        args = self._arguments(call)
        expected = self._shape(args)
        if expected != call.out.shape:
            raise RuleError(
                f"{self!r} returns shape {tuple(expected)} for these arguments, but {call.name} returns "
                f"{tuple(call.out.shape)}; pass arguments=… that give the same shape"
            )
        known = {id(tensor) for tensor in call.inputs}
        stand_in = OpCall(call.node, self.op, args, {}, call.outputs)
        if any(id(tensor) not in known for tensor in stand_in.inputs):
            raise RuleError(
                f"{self!r}: arguments=… must return tensors of the call as they are, without computing new ones"
            )
        p.as_whole = True
        try:
            p.rule_for(self.op)(stand_in, p)
        finally:
            p.as_whole = False
        keep_others(call, p, stand_in.inputs)

    def _arguments(self, call: OpCall) -> tuple[Any, ...]:
        named = isinstance(call.func, LeafOp)
        names = call.func.names if named else [argument.name for argument in call.func._schema.arguments]
        if self.arguments is None:
            return tuple((dict(zip(names, call.args, strict=False)) | call.kwargs).values())
        return tuple(self.arguments(**{name: call.arg(name) for name in names}))

    def _shape(self, args: Sequence[Any]) -> torch.Size:
        """Of the ATen op's first result."""
        try:
            result = self.op(*tree_map_only(Tensor, lambda t: torch.empty_like(t, device="meta"), tuple(args)))
        except Exception as error:
            raise RuleError(
                f"{self.op} does not accept the arguments of this call ({error}); pass like(…) a function that "
                "computes its arguments from those of the call, by name"
            ) from error
        first: Tensor = result if isinstance(result, Tensor) else result[0]
        return first.shape

    def __repr__(self) -> str:
        return f"like({self.op})"
