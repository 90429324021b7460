"""What ``forward`` assigns to a module's attributes: a graph writes it where the next call reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from fx_oto.analysis.disguises import is_fake
from fx_oto.capture.recorder import Recorder
from fx_oto.capture.refusals import BEFORE
from fx_oto.capture.subject import Subject
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import op_name
from fx_oto.nn.modes import IN_PLACE

__all__ = ["Assigned", "tensors_kept"]

_REGISTRIES = frozenset(vars(nn.Module()))  # what every module has
_COPYING = frozenset({"to", "type", "type_as", "float", "double", "cpu", "cuda", "contiguous", "clone", "detach"})


class Assigned:
    """The tensors and numbers in the attributes of a model's modules, as they are now.

    Args:
        subject: the model.
    """

    def __init__(self, subject: Subject) -> None:
        self._buffers: set[str] = set()
        self._before: dict[str, tuple[dict[str, Any], str, Any]] = {}
        self._parameters = [(path, module, dict(module._parameters)) for path, module in subject.modules.items()]
        for path, module in subject.modules.items():
            if id(module) in subject.leaves:  # what torch's own layers set, they set when the graph calls them
                continue
            self._buffers.update(f"{path}.{name}".lstrip(".") for name in module._buffers)
            for owner in (module.__dict__, module._buffers):
                for name, value in owner.items() if isinstance(owner, dict) else ():
                    if name not in _REGISTRIES and isinstance(value, Tensor | bool | int | float):
                        self._before[f"{path}.{name}".lstrip(".")] = (owner, name, value)

    def write(self, run: Recorder) -> None:
        """Let the graph of a run write the buffers that were assigned, as its last steps.

        What was read before is a copy then, as it was another tensor. Other tensors, and numbers, that change are
        reported, for what is computed from them stays in the graph.

        Raises:
            TraceError: a module was given another parameter, which is to be trained from here on.
        """
        self._check_parameters()
        changes: dict[str, tuple[Node, Tensor]] = {}
        for path, (owner, name, value) in self._before.items():
            new = owner.get(name)
            if new is value:
                continue
            if is_fake(new) and isinstance(value, Tensor):
                alike = (new.shape, new.dtype) == (value.shape, value.dtype)
                if alike and path not in self._buffers and run.reads(path):
                    if _is_copy(run.node_of_tensor(new), path):  # such as a mask that code moves to where the input is
                        continue
                    run.notes.append(_note(path, "one tensor", "another"))
                elif alike and path in self._buffers and _written(node := run.node_of_tensor(new)).target != path:
                    changes[path] = node, value
            elif isinstance(new, int | float) and not isinstance(value, Tensor) and not _same(new, value):
                run.notes.append(_note(path, value, new))
        if changes:
            run.is_plain = False
            _write(run, changes)

    def _check_parameters(self) -> None:
        for path, module, before in self._parameters:
            for name, new in module._parameters.items():
                if isinstance(new, nn.Parameter) and new is not before.get(name):
                    raise TraceError(
                        f"code gives the module {path!r} another parameter {name!r}, as module.to(dtype) does, or "
                        f"module.weight = nn.Parameter(…): {BEFORE}"
                    )


def _same(new: Any, value: Any) -> bool:
    plain: type = int if isinstance(new, int) else float
    return type(new) is plain and bool(new == value)


def _write(run: Recorder, changes: dict[str, tuple[Node, Tensor]]) -> None:
    reads = [node for node in run.graph.nodes if node.op == "get_attr" and node.target in changes]
    kept = {node: _copied(run, node) for node in reads}
    for path, (node, tensor) in changes.items():
        new = run.create("call_method", "detach", (kept.get(node, node),))
        new.meta["val"] = node.meta["val"]
        buffer = run.attribute(path, tensor)
        run.create("call_method", "copy_", (buffer, new)).meta["val"] = buffer.meta["val"]


def _is_copy(node: Node, path: str) -> bool:
    """Whether a node returns the numbers of an attribute."""
    kind = node.meta["val"].dtype
    while op_name(node) in _COPYING and node.meta["val"].dtype == kind:
        node = node.all_input_nodes[0]
    return node.op == "get_attr" and node.target == path and node.meta["val"].dtype == kind


def _written(node: Node) -> Node:
    """What ``self.x += y`` writes into."""
    while node.op == "call_function" and op_name(node) in IN_PLACE:
        node = node.all_input_nodes[0]
    return node


def _copied(run: Recorder, node: Node) -> Node:
    with run.graph.inserting_after(node):
        copied = run.graph.call_method("clone", (node,))
    copied.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(copied, lambda user: user is not copied)
    return copied


def _note(path: str, before: Any, after: Any) -> str:
    return (
        f"the model sets {path} from {before} to {after} when it is called, which its graph does not: what depends "
        "on that stays as it is now. A buffer that is added to keeps its value"
    )


def tensors_kept(subject: Subject) -> Iterator[str]:
    """The attributes in which a run has left tensors that it has made."""
    for path, module in subject.modules.items():
        if id(module) in subject.leaves:
            continue
        for name, value in vars(module).items():
            if name not in _REGISTRIES and any(is_fake(leaf) for leaf in tree_leaves(value)):
                yield f"{path}.{name}".lstrip(".")
