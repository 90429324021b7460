"""One graph for both training modes.

Python code may read ``self.training`` while it is traced, and a trace sees only one answer. ``merge_modes``
joins the graph traced in training mode with the one traced in evaluation mode: what both have occurs once,
and where they differ ``by_mode`` chooses when the graph runs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from difflib import SequenceMatcher
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import bare_name, op_name, source_line
from fx_oto.nn.checks import is_check

__all__ = ["FLAG", "IN_PLACE", "TrainingFlag"]
__all__ += ["by_mode", "called", "holds_in", "merge_modes", "says_in_place", "written_in"]

FLAG = "fx_oto_training_mode"


def by_mode(training: bool, in_training: Tensor, in_evaluation: Tensor) -> Tensor:
    """Choose between what the two modes compute: mostly tensors, and TorchScript believes what is written here."""
    return in_training if training else in_evaluation


def written_in(wanted: bool, training: bool, write: Any, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Write into a tensor in one mode only.

    Args:
        wanted: the mode in which to write.
        training: the mode.
        write: an operator that writes into its first argument, or the name of such a method.
        target: that argument.
        *args: the others.
        **kwargs: the others, by name.
    """
    if training is not wanted:
        return target
    result: Tensor = (
        getattr(target, write)(*args, **kwargs) if isinstance(write, str) else write(target, *args, **kwargs)
    )
    return result


def holds_in(wanted: bool, training: bool, condition: bool) -> bool:
    """Whether a condition holds, of which one mode alone asks."""
    return condition or training != wanted


def called(node: Node) -> tuple[str, tuple[Any, ...]]:
    """The name of what a node calls, and its positional arguments; of ``written_in``, those of the write."""
    if node.target is not written_in:
        return op_name(node), node.args
    write = node.args[2]
    name = write if isinstance(write, str) else bare_name(str(write._schema.name))  # type: ignore[union-attr]
    return name.removeprefix("__").removesuffix("__"), node.args[3:]


class TrainingFlag(nn.Module):
    """Tells a graph which mode it runs in: ``.train()`` and ``.eval()`` reach it like any submodule."""

    def forward(self) -> bool:
        """The mode, True in training."""
        return self.training


def merge_modes(train: Graph, evaluation: Graph, model: nn.Module, reaches: Reaches) -> Graph:
    """Join two graphs of one model; the result asks the submodule ``FLAG`` for the mode if they differ.

    Nodes that one mode has alone run in both, and ``by_mode`` drops their result; what they write, they write in
    their mode only.

    Args:
        train: the graph in training mode.
        evaluation: the graph in evaluation mode.
        model: holds the modules that they call.
        reaches: whether a node may write into a parameter, a buffer, or a value of another node than those given.

    Raises:
        TraceError: such a node writes into what the other mode reads, in a way that cannot be switched off.
    """
    # A graph has no branches: what one mode has alone runs in both, and by_mode takes the one value or the other, so
    # gradients and outputs are those of the mode. That costs time, so the stretches are kept short: code before and
    # after ``if self.training: h = h + noise`` is aligned by its lines and stands in the graph once, with its modules.
    if _equal(train, evaluation):
        return train
    return _Merger(train, evaluation, model, reaches).merge()


def _key(node: Node) -> tuple[Any, ...]:
    """What nodes of both modes must have in common to be one: what is called, and which part of a container is read.

    Or which size of a tensor: once a size is read it is known, so the modes may read others at the same line.
    """
    if node.target is not operator.getitem:
        sizes = node.args[1:] if node.target == "size" else ()
        return (node.op, node.target, *("" if isinstance(one, Node) else one for one in sizes))
    part = node.args[1]
    return node.op, node.target, "" if isinstance(part, Node) else str(part), type(node.meta.get("val"))


def _equal(left: Graph, right: Graph) -> bool:
    if len(left.nodes) != len(right.nodes):
        return False
    twin = dict(zip(right.nodes, left.nodes, strict=True))
    return all(
        _key(a) == _key(b) and _same((a.args, a.kwargs), map_arg((b.args, b.kwargs), twin.__getitem__))
        for b, a in twin.items()
    )


def _same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, slice):
        return _same((left.start, left.stop, left.step), (right.start, right.stop, right.step))
    return left is right or bool(left == right)


# Python's operators that write into their left operand.
IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")


def says_in_place(node: Node) -> bool:
    """Return whether the name or an option of a node's target says that it changes its first argument."""
    name = op_name(node)
    if node.op == "call_module":
        assert node.graph.owning_module is not None
        return getattr(node.graph.owning_module.get_submodule(str(node.target)), "inplace", False) is True
    if node.op not in ("call_method", "call_function"):
        return False
    named = (name.endswith("_") and not name.startswith("_")) or name in (*IN_PLACE, "setitem")
    return named or node.kwargs.get("inplace") is True


def _writes_first_only(op: OpOverload) -> bool:
    aliases = [argument.alias_info for argument in op._schema.arguments]
    return [info is not None and info.is_write for info in aliases] == [True] + [False] * (len(aliases) - 1)


# Whether a node may write into what lies outside of a set of nodes.
Reaches = Callable[[Node, Collection[Node]], bool]
_Block = tuple[bool, int, int, int, int]


def _alignment(train: list[Node], evaluation: list[Node]) -> Iterator[_Block]:
    """Blocks of nodes that are the same in both modes, or not: first by source line, then whatever the line."""
    by_line = [[(*_key(node), source_line(node)) for node in nodes] for nodes in (train, evaluation)]
    for same, i, i_end, j, j_end in _matching(*by_line):
        if same:
            yield same, i, i_end, j, j_end
            continue
        left, right = train[i:i_end], evaluation[j:j_end]
        for alike, k, k_end, m, m_end in _matching(list(map(_key, left)), list(map(_key, right))):
            yield alike, i + k, i + k_end, j + m, j + m_end


def _matching(left: list[Any], right: list[Any]) -> list[_Block]:
    if left == right:
        return [(True, 0, len(left), 0, len(right))]
    blocks = SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    return [(kind == "equal", *places) for kind, *places in blocks]  # type: ignore[misc]


def _form(value: Any) -> Any:
    """The shape of a tensor, which a node may return; None of anything else."""
    value = value.meta.get("val") if isinstance(value, Node) else value
    return tuple(value.shape) if isinstance(value, Tensor) else None


class _Merger:
    def __init__(self, train: Graph, evaluation: Graph, model: nn.Module, reaches: Reaches) -> None:
        self.model, self.reaches = model, reaches
        self.sources = (list(train.nodes), list(evaluation.nodes))
        self.merged: tuple[dict[Node, Node], dict[Node, Node]] = ({}, {})
        self.graph = Graph(tracer_cls=train._tracer_cls)
        self.flag: Node | None = None
        self.alone: set[Node] = set()

    def merge(self) -> Graph:
        train, evaluation = self.sources
        for same, i, i_end, j, j_end in _alignment(train, evaluation):
            if same:
                for left, right in zip(train[i:i_end], evaluation[j:j_end], strict=True):
                    if self._reads_unlike(left, right):
                        self._copy_one([left], self.merged[0], stateful=False)
                        self._copy_one([right], self.merged[1], stateful=True)
                    else:
                        self._copy_both(left, right)
            else:
                self._copy_one(train[i:i_end], self.merged[0], stateful=False)
                self._copy_one(evaluation[j:j_end], self.merged[1], stateful=True)
        return self.graph

    def _reads_unlike(self, left: Node, right: Node) -> bool:
        """Return whether two calls have operands that no ``by_mode`` can stand for: ``alpha * x`` and ``x * 0.5``.

        Or more of them in one mode, such as an object of outputs that holds a cache in evaluation alone.

        Both are then in the graph, and ``by_mode`` chooses between what they return, which is of one form. Of layers
        that have a bias in one mode alone this would cost a second product: there it chooses between the biases. And
        what is of another form in each mode, such as fewer tokens, meets nothing that is of one mode alone.
        """
        if left.op not in ("call_function", "call_method") or says_in_place(left):
            return False
        if len(left.args) != len(right.args) or left.kwargs.keys() != right.kwargs.keys():
            return True
        pairs = [(a, b) for a, b in zip(left.args, right.args, strict=True) if a is not None and b is not None]
        unlike = [self._is_merged(one, other) for one, other in pairs if _form(one) != _form(other)]
        return bool(unlike) and not any(unlike)

    def _is_merged(self, left: Any, right: Any) -> bool:
        nodes = isinstance(left, Node) and isinstance(right, Node)
        return nodes and self.merged[0][left] is self.merged[1][right]

    def _copy_one(self, nodes: list[Node], merged: dict[Node, Node], stateful: bool) -> None:
        for node in nodes:
            self.alone.add(node)
            if self._reaches_other_mode(node, stateful):
                if copied := self._copy_write(node, merged, wanted=not stateful):
                    merged[node] = copied
                    continue
                raise TraceError(
                    f"{source_line(node) or node.name}: code that runs in one training mode only changes a tensor, or "
                    "a module's running statistics, that the other mode reads; write it without a change in place"
                )
            merged[node] = self.graph.node_copy(node, merged.__getitem__)
            if is_check(node):
                self._ask_in(not stateful, merged[node])

    def _ask_in(self, mode: bool, check: Node) -> None:
        """Let a check refuse nothing in the other mode."""
        with self.graph.inserting_before(check):
            asked = self.graph.call_function(holds_in, (mode, self._mode(), check.args[0]))
        asked.meta["val"], asked.meta["is_number"] = True, True
        check.args = (asked, *check.args[1:])

    def _copy_write(self, node: Node, merged: dict[Node, Node], wanted: bool) -> Node | None:
        """A write that happens in its mode only, where the node is nothing but a write into its first argument."""
        write = node.target
        if node.op == "call_module":
            return self._copy_norm(node, merged)
        if wanted and op_name(node) in ("batch_norm", "native_batch_norm"):
            return self._copy_learning(node, merged)
        if node.op == "call_function" and (op_name(node) in IN_PLACE or write is operator.setitem):
            write = f"__{op_name(node)}__"
        if not isinstance(write, str) and not (isinstance(write, OpOverload) and _writes_first_only(write)):
            return None
        args, kwargs = map_arg((node.args, node.kwargs), merged.__getitem__)
        copied = self._call(written_in, (wanted, self._mode(), write, *args), kwargs)
        copied.meta |= node.meta
        return copied

    def _copy_norm(self, node: Node, merged: dict[Node, Node]) -> Node | None:
        """A copy of batch norm in evaluation that does not update its statistics when the graph runs in training."""
        name, norm = str(node.target), self.model.get_submodule(str(node.target))
        if not isinstance(norm, _BatchNorm) or norm._forward_hooks or norm._forward_pre_hooks or node.kwargs:
            return None
        held = ("running_mean", "running_var", "weight", "bias")
        tensors = [None if getattr(norm, key) is None else self.graph.get_attr(f"{name}.{key}") for key in held]
        args = (*map_arg(node.args, merged.__getitem__), *tensors, False, 0.0, norm.eps)
        copied = self.graph.call_function(functional.batch_norm, args)
        copied.meta |= node.meta
        return copied

    def _copy_learning(self, node: Node, merged: dict[Node, Node]) -> Node | None:
        """A copy of a batch norm that learns its running statistics in training, and in evaluation goes by them."""
        is_named = "training" in node.kwargs
        if (node.kwargs["training"] if is_named else node.args[5] if len(node.args) > 5 else False) is not True:
            return None
        mode, copied = self._mode(), self.graph.node_copy(node, merged.__getitem__)
        if is_named:
            copied.update_kwarg("training", mode)
        else:
            copied.update_arg(5, mode)
        return copied

    def _reaches_other_mode(self, node: Node, stateful: bool) -> bool:
        """Return whether a node writes into something that the other mode sees."""
        if stateful and node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            if getattr(module, "running_mean", None) is not None:  # would learn in training
                return True
        return self.reaches(node, self.alone)

    def _copy_both(self, left: Node, right: Node) -> None:
        args, kwargs = self._join((left.args, left.kwargs), (right.args, right.kwargs))
        copy = self.graph.create_node(left.op, left.target, args, kwargs, left.name, left.type)
        copy.meta = dict(left.meta)
        self.merged[0][left] = self.merged[1][right] = copy

    def _join(self, left: Any, right: Any) -> Any:
        if isinstance(left, Node) and isinstance(right, Node) and self.merged[0][left] is self.merged[1][right]:
            return self.merged[0][left]
        alike = type(left) is type(right)
        if alike and isinstance(left, dict) and left.keys() == right.keys():
            return {key: self._join(left[key], right[key]) for key in left}
        if alike and isinstance(left, tuple | list) and len(left) == len(right):
            parts = [self._join(a, b) for a, b in zip(left, right, strict=True)]
            return type(left)(*parts) if hasattr(left, "_fields") else type(left)(parts)
        if alike and isinstance(left, slice):
            return slice(*(self._join(getattr(left, key), getattr(right, key)) for key in ("start", "stop", "step")))
        if not isinstance(left, Node) and alike and _same(left, right):
            return left
        return self._choose(left, right)

    def _mode(self) -> Node:
        if self.flag is None:
            last = [node for node in self.graph.nodes if node.op == "placeholder"][-1]
            with self.graph.inserting_after(last):
                self.flag = self.graph.call_module(FLAG)
        return self.flag

    def _choose(self, left: Any, right: Any) -> Node:
        if left is True and right is False:
            return self._mode()
        choice = (map_arg(left, self.merged[0].__getitem__), map_arg(right, self.merged[1].__getitem__))
        return self._call(by_mode, (self._mode(), *choice), {})

    def _call(self, function: Any, args: Any, kwargs: Any) -> Node:
        node = self.graph.call_function(function, args, kwargs)
        node.meta["is_wrapped"] = True  # what traces the code anew must not look inside
        return node
