"""What calls return, on its way to the code that called: it remembers its node, and whether a gradient reaches it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from fx_oto.analysis.disguises import disguise, undisguise
from fx_oto.analysis.fakes import ValuesAskedError, asks_values
from fx_oto.analysis.recording import laid_out
from fx_oto.capture.arguments import check_same
from fx_oto.capture.branches import Branching
from fx_oto.capture.calls import INTEGERS, LISTS, without_memory
from fx_oto.capture.counted import may_have_more_parts
from fx_oto.capture.modes import without_modes
from fx_oto.capture.numbers import Float, Int, Origin
from fx_oto.capture.refusals import ON_VALUES
from fx_oto.capture.seen import SeenList, SeenTuple
from fx_oto.capture.sheet import Item
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import op_name, source_line, tensor_leaves
from fx_oto.core.preserve import Dice

__all__ = ["Handing"]

_SIZES = ("size", "numel", "nelement", "stride")


class Handing(Branching):
    """Computes what the calls of a model return, and hands it to its code."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._learning: dict[int, bool] = {}

    def compute_node(
        self,
        node: Node,
        args: Any,
        kwargs: Any,
        compute: Callable[[Any, Any], Any],
        last: Node | None,
        module: nn.Module | None = None,
        anything: bool = False,
        again: Callable[[Any, Any], Any] | None = None,
    ) -> Any:
        """The value of a node, to be handed to the user's code.

        Args:
            node: the last one.
            args: what is called with.
            kwargs: the same, by name.
            compute: calls it.
            last: the node before those that were made for it.
            module: what is called, if it is one.
            anything: whether it may do anything.
            again: makes another node, of the same call with other arguments.
        """
        given = (args, kwargs)
        args, kwargs = without_memory(self.fakes.faked(tuple(args))), without_memory(self.fakes.faked(dict(kwargs)))
        self.fakes.node, self.fakes.calls = node.name, []
        dice = Dice(torchs=False) if anything else None
        disguised = undisguise(tensor_leaves((args, kwargs)))
        try:
            if anything and self.options.untold:  # which way it goes now tells nothing of the other
                raise ValuesAskedError("code that is called as a whole asks how it is called")
            with _by_products():
                value = compute(args, kwargs)
        except Exception as error:
            if again is not None and asks_values(error) and (whole := self._whole_numbers_in(given)):
                self.forget_after(last)
                return again(*_mapped(given, lambda one: self._number_in(one, whole)))
            if not (anything or (self.options.op_level and asks_values(error))):
                self.forget_after(last)
                self.handed = True  # code may catch it, and so decide by a size
                raise
            value = self.really(node, module, (args, kwargs), error, last)
        finally:
            disguise(disguised)
            if dice is not None:  # the graph draws the numbers
                dice.put_back()
        return self._handed_over(node, args, kwargs, value, module)

    def _whole_numbers_in(self, given: Any) -> dict[int, Tensor | None]:
        """Integers in tensors, as of ``x.permute(*torch.tensor([1, 0]))``, by ``id``; None of what inputs decide.

        There are none where such are not to be read.
        """
        whole: list[Tensor] = []
        _mapped(given, lambda one: whole.append(one) if not one.ndim and one.dtype in INTEGERS else None)
        real = {id(one): self.constant(one) for one in whole}
        return real if self.options.op_level or None not in real.values() else {}

    def _number_in(self, tensor: Tensor, whole: dict[int, Tensor | None]) -> Any:
        if id(tensor) not in whole:
            return tensor
        real, node = whole[id(tensor)], self.node_of_tensor(tensor)
        if real is None:
            return self.number_by_values(tensor)
        with without_modes():
            plain = int(real)
        written_out = all(one.op == "call_function" and "is_number" not in one.meta for one in self.needed_by(node))
        return plain if written_out else self.number(plain, Origin("item", (node,)))

    def _handed_over(self, node: Node, args: Any, kwargs: Any, value: Any, module: nn.Module | None) -> Any:
        given = {id(tensor) for tensor in tensor_leaves((args, kwargs))}
        value = laid_out(node, value) if isinstance(value, Tensor) and node.op != "call_module" else value
        if any(callable(leaf) and not isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            raise TraceError(
                "what is called as a whole returns a module, or a function, which it may choose by numbers"
            )
        if not torch.is_grad_enabled() and self._learns_from_these(given, module):
            node.meta["detached"] = True
        value = self._bound(value, node, given)
        node.meta["val"] = without_memory(value)
        self.calls[node] = self.fakes.calls
        tensors = tensor_leaves(node.meta["val"])
        if not tensors and isinstance(value, Int | Float | torch.Size):
            node.meta["is_number"] = True
        if torch.is_grad_enabled():
            self._note_gradients(tensors, given, module)
        elif isinstance(value, Tensor) and value.is_floating_point() and not self._is_written(value):
            value = self._detached(value, node)
        return value

    def _note_gradients(self, tensors: list[Tensor], given: set[int], module: nn.Module | None) -> None:
        if self._learns_from_these(given, module):
            self.gets_gradient.update(id(tensor) for tensor in tensors if tensor.is_floating_point())

    def _learns_from_these(self, given: set[int], module: nn.Module | None) -> bool:
        return not self.gets_gradient.isdisjoint(given) or (module is not None and self._learns(module))

    def _learns(self, module: nn.Module) -> bool:
        if id(module) not in self._learning:
            held = {id(self.fakes.of(parameter)) for parameter in module.parameters()}
            self._learning[id(module)] = not self.gets_gradient.isdisjoint(held)
        return self._learning[id(module)]

    def _detached(self, value: Tensor, node: Node) -> Tensor:
        """Under ``torch.no_grad`` a value is without gradient."""
        detached = self.create("call_method", "detach", (node,))
        self.fakes.node, self.fakes.calls = detached.name, []
        fresh = self._view(torch.ops.aten.detach.default, value)
        detached.meta["val"] = fresh
        self.calls[detached] = self.fakes.calls
        self.put(fresh, detached)
        return fresh

    def alias(self, value: Tensor) -> Tensor:
        """Another tensor in the same memory."""
        return self._view(torch.ops.aten.alias.default, value)

    def _view(self, op: Any, value: Tensor) -> Tensor:
        with without_modes():  # which would take what the stand-in itself is made of for a tensor of the user's
            view: Tensor = self.fakes.call(op, (self.fakes.of(value),), {})
        return view

    def _is_written(self, tensor: Tensor) -> bool:
        return any(written is tensor for call in self.fakes.calls for written in call.written)

    def _bound(self, value: Any, node: Node, given: set[int]) -> Any:
        """Remember which node a value comes from; numbers in it remember it."""
        if isinstance(value, Tensor):
            value = self.fakes.of(value)
            if id(value) in given and not self._is_written(value):  # in another mode it may be another tensor
                value = self.alias(value)
            self.put(value, node)
            return value
        if isinstance(value, torch.Size):
            self.handed = True
            return torch.Size([self.size(n, Origin(operator.getitem, (node, i))) for i, n in enumerate(value)])
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.handed = True
            number = self.size if node.op != "call_module" and op_name(node) in _SIZES else self.number
            return number(self.as_read(value, node), Origin(_itself, (node,), node))
        if isinstance(value, tuple | list):
            return self._bound_parts(value, node, given)
        if isinstance(value, dict):
            for key, one in value.items():
                self._bound_part(one, node, operator.getitem, key, given)
        elif node.meta.get("asks_values"):
            self._check_choice(value, node, node)
        return value

    def _bound_parts(self, value: Any, node: Node, given: set[int]) -> Any:
        parts = [self._bound_part(one, node, operator.getitem, i, given) for i, one in enumerate(value)]
        if type(value) not in LISTS:
            return value
        opaque = bool(node.meta.get("asks_values"))
        self.handed |= not opaque  # perhaps as many as an input is long
        # Of one part, code may read the first, or all.
        is_seen = opaque or (len(parts) == 1 and node.op != "call_module") or self.has_other_lengths(node) is not False
        sees_others = self.options.other_size is not None and not is_seen
        is_noted = sees_others and may_have_more_parts(node, len(parts))
        if is_seen or is_noted:
            return (SeenList if isinstance(value, list) else SeenTuple).of(self, node, parts, is_noted)
        return type(value)(parts)

    def _bound_part(self, value: Any, parent: Node, read: Callable[..., Any], key: Any, given: set[int]) -> Any:
        if isinstance(value, Tensor):
            value = self.fakes.of(value)
            if id(value) in given:
                value = self.alias(value)
            self._show(value, Item(parent, read, key, bool(parent.meta.get("detached")) and value.is_floating_point()))
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self.number(self.as_read(value, parent, key), Origin(read, (parent, key)))
        if isinstance(value, tuple | list | dict) and tensor_leaves(value):
            node = self.create("call_function", read, (parent, key))
            node.meta.update(val=value, detached=parent.meta.get("detached"))
            return self._bound(value, node, given)
        if parent.meta.get("asks_values"):
            part = self.create("call_function", read, (parent, key))
            part.meta["val"] = value
            self._check_choice(value, part, parent)
        return value

    def _check_choice(self, value: Any, node: Node, call: Node) -> None:
        """Let the graph check what a call returns that may choose it by numbers, and is neither a tensor nor a number.

        Raises:
            TraceError: it cannot be compared, or a larger piece that is called as a whole may go either way.
        """
        if isinstance(value, torch.dtype | torch.device | torch.layout):
            return
        if value is not None and (not isinstance(value, bool | str) or call in self.by_values):
            raise TraceError(ON_VALUES)
        check_same(self, node, value, f"{node.name} ({source_line(call)})")


def _by_products() -> AbstractContextManager[Any]:
    """Attention of products and a softmax also where code has chosen other kernels, of which no rule knows."""
    kernels = torch.backends.cuda
    chosen = (kernels.flash_sdp_enabled(), kernels.mem_efficient_sdp_enabled(), kernels.cudnn_sdp_enabled())
    return sdpa_kernel(SDPBackend.MATH) if any(chosen) else nullcontext()


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same with something else for each tensor, also in slices."""
    if type(value) is slice:
        return slice(*(_mapped(one, change) for one in (value.start, value.stop, value.step)))
    if type(value) in LISTS:
        return type(value)(_mapped(one, change) for one in value)
    if type(value) is dict:
        return {key: _mapped(one, change) for key, one in value.items()}
    return change(value) if isinstance(value, Tensor) else value


def _itself(value: Any) -> Any:
    return value
