"""Records the calls that a model makes of torch functions, and of what torch calls back, as nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_map_only

from fx_oto.capture.calls import (
    TURNING,
    autocast,
    holds_arrays,
    is_wrapped_by_functorch,
    target_of,
    with_dtypes,
    writes_first,
)
from fx_oto.capture.handing import Handing
from fx_oto.capture.numbers import Float, Int
from fx_oto.capture.refusals import Way
from fx_oto.capture.whole import GradientHook, bound_in
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import last_node, tensor_leaves
from fx_oto.nn.checks import has_truth, raise_unless
from fx_oto.nn.norms import WholeNorms
from fx_oto.nn.products import WholeProducts
from fx_oto.nn.recurrence import WholeRecurrence

__all__ = ["Recorder"]


class Recorder(Handing):
    """Records calls; ``depth`` is above 0 while they are made, as what they call is not the user's code.

    Args:
        training: the mode.
        *args: see ``Sheet``.

    Attributes:
        applying: the ``torch.autograd.Function`` classes whose code is becoming part of the graph, outermost first.
    """

    def __init__(self, training: bool, *args: Any) -> None:
        super().__init__(*args)
        self.training = training
        self.applying: list[Any] = []
        self.learns_now = True
        self._whole = [kind(self.fakes.whole) for kind in (WholeRecurrence, WholeNorms, WholeProducts)]
        self._autocast = autocast()

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function, some of them so that the tape has one call for it."""
        name = getattr(func, "__name__", "")
        for whole in self._whole:
            if name in whole.names and not kwargs and (shown := whole.shown(func, args)) is not None:
                return whole.run(*shown)
        return func(*args, **kwargs)

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """What torch is asked meanwhile is not the user's code."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def record(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Write a call of a torch function down; returns what it returns, for the user's code."""
        value = self._recorded(func, name, args, kwargs)
        if isinstance(value, Tensor) and writes_first(name, kwargs) and args and isinstance(args[0], nn.Parameter):
            return args[0]  # of ``self.steps += 1`` a module takes nothing else in the place of its parameter
        return value

    def _recorded(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if is_wrapped_by_functorch(args) or self.is_cast() or holds_arrays(name, (args, kwargs)):
            return self._call_by_call(func, args, kwargs)
        if name.startswith("set "):
            raise TraceError(f"code sets {name[4:]!r} of a tensor, which a graph does not")
        if name in TURNING and (turned := self._turned(func, name, args, kwargs)) is not None:
            return turned
        if not torch.is_grad_enabled() and writes_first(name, kwargs) and self._learns_from_any(args, kwargs):
            return self._written_without_gradient(func, name, args, kwargs)
        written_out = not torch.is_grad_enabled() and isinstance(kwargs.get("out"), Tensor)
        if written_out and self._learns_from_any(args, kwargs):
            self.record(func, name, *tree_map_only(Tensor, self._without_gradient, (args, kwargs)))
            return kwargs["out"]
        op, target, order = target_of(func, name)
        given = tuple(reversed(args)) if order else args
        last = last_node(self.graph)
        given, named = tuple(map(with_dtypes, given)), {key: with_dtypes(one) for key, one in kwargs.items()}
        node = self.create(op, target, self.nodes(given), self.nodes(named))
        again = partial(self.record, func, name)
        return self.compute_node(node, args, kwargs, partial(self.called, func), last, again=again)

    def asserts(self, node: Node, way: Way) -> None:
        """See ``Sheet.asserts``."""
        asked = self.create("call_function", has_truth, (node, way.answer, way.text))
        asked.meta.update(val=True, is_number=True, is_wrapped=True)
        self.create("call_function", raise_unless, (asked, way.text, way.error)).meta["val"] = None

    def _turned(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """A tensor that is turned in place is from here on a view of what it was; None where it is the model's own."""
        source, last = self.node_of_tensor(args[0]), last_node(self.graph)
        if source.op == "get_attr":
            return None
        self.fakes.calls = []
        before = source.meta["val"] = self.alias(args[0])
        self.put(before, source)
        if self.differentiable(args[0]):
            self.mark_differentiable(before)
        self.rewritten = True  # the calls that made it were written down with what has another shape now
        node = self.create("call_method", name[:-1], self.nodes(args), self.nodes(kwargs))
        return self.compute_node(node, args, kwargs, partial(self.called, func), last)

    def _learns_from(self, args: Any) -> bool:
        return bool(args) and isinstance(args[0], Tensor) and self.differentiable(self.fakes.of(args[0]))

    def _learns_from_any(self, args: Any, kwargs: Any) -> bool:
        return any(self._learns_from((one,)) for one in tensor_leaves((args, kwargs)))

    def _without_gradient(self, tensor: Tensor) -> Tensor:
        """The same memory without a gradient, if the tensor has one: functions with ``out=`` take no others."""
        if not self._learns_from((tensor,)):
            return tensor
        return self._detached(self.fakes.of(tensor), self.node_of_tensor(tensor))

    def _written_without_gradient(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Under ``torch.no_grad`` a parameter may be written, and another value keeps the gradient that it has.

        A buffer, or a parameter of a teacher, gets none from what is written into it.
        """
        self.record(func, name, *tree_map_only(Tensor, self._without_gradient, (args, kwargs)))
        return args[0]

    def is_cast(self) -> bool:
        """Whether ``torch.autocast`` has begun, or ended, inside of the model."""
        if changed := autocast() != self._autocast:
            self.asked, self.is_plain = True, False  # what layers come to is another thing in training
        return changed

    def _call_by_call(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Let what depends on its surroundings be recorded as the ATen calls that it comes to, with plain sizes."""
        self.handed = True
        depth, self.depth = self.depth, 0
        try:
            return func(*args, **kwargs)
        finally:
            self.depth = depth

    def learning(self, compute: Callable[[], Any], custom: Any) -> Any:
        """Let what a ``torch.autograd.Function`` calls become part of the graph: torch calls it without gradients."""
        learns, self.is_plain = self.learns_now, False
        self.applying.append(custom)
        try:
            with torch.set_grad_enabled(learns):
                return compute()
        finally:
            self.applying.pop()
            self.learns_now = learns  # torch has switched gradients off again

    def call_custom(self, function: Callable[..., Any], args: Any, compute: Callable[[Any, Any], Any]) -> Any:
        """A ``torch.autograd.Function`` is applied: as a node of the graph it keeps its own backward."""
        last = last_node(self.graph)
        self.is_plain = False
        node = self.create("call_function", function, self.nodes(tuple(args)))
        node.meta["is_wrapped"] = True
        with self.unseen(), torch.set_grad_enabled(self.learns_now):  # torch calls it without gradients
            return self.compute_node(node, args, {}, compute, last)

    def hook(self, hook: Callable[..., Any], tensor: Tensor) -> None:
        """The gradient of a value is hooked.

        Raises:
            TraceError: the hook uses what this very run has computed.
        """
        if any(isinstance(value, Int | Float) or id(value) in self.places for value in bound_in(hook)):
            raise TraceError("a gradient hook uses a size or a tensor of this call, which a graph does not give it")
        number = sum(isinstance(one, GradientHook) for one in self.held.values())
        name = f"gradient_hook_{'in_training_' if self.training else ''}{number}"
        self.held[name] = GradientHook(hook)
        self.is_plain = False
        node = self.create("call_module", name, (self.node_of_tensor(tensor),))
        node.meta["val"] = None
