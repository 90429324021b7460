"""What ``forward`` assigns to a module's attributes: a graph writes it where the next call reads it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy

from fx_oto.graph import op_name
from fx_oto.modes import IN_PLACE
from fx_oto.tracing.values import Values
from fx_oto.warn import warn

__all__ = ["Assigned"]


class Assigned:
    """The tensors and numbers in the attributes of a model's modules, as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = {name for name, _ in model.named_buffers()}
        self._before: dict[str, tuple[dict[str, Any], str, Any]] = {}
        for path, module in model.named_modules():
            for owner in (vars(module), module._buffers):
                for name, value in owner.items() if isinstance(owner, dict) else ():
                    if isinstance(value, Tensor | bool | int | float):
                        self._before[f"{path}.{name}".lstrip(".")] = (owner, name, value)

    def write(self, graph: Graph, values: Values) -> None:
        """Let a traced graph write the buffers that were assigned, as its last steps.

        What was read before is a copy then, as it was another tensor. Other tensors, and numbers, that change are
        reported, for what is computed from them stays in the graph.
        """
        changes: dict[str, Node] = {}
        for path, (owner, name, value) in self._before.items():
            new = owner.get(name)
            if isinstance(new, Proxy) and isinstance(value, Tensor):
                found = values.of(new.node)
                alike = isinstance(found, Tensor) and (found.shape, found.dtype) == (value.shape, value.dtype)
                if alike and path not in self._buffers:
                    _warn(path, "one tensor", "another")
                elif alike and _written(new.node).target != path:
                    changes[path] = new.node
            elif isinstance(new, int | float) and new != value and not isinstance(value, Tensor) and name != "training":
                _warn(path, value, new)
        _write(graph, changes)


def _write(graph: Graph, changes: dict[str, Node]) -> None:
    kept = {node: _copied(node) for node in list(graph.nodes) if node.op == "get_attr" and node.target in changes}
    with graph.inserting_before(next(reversed(graph.nodes))):
        for path, node in changes.items():
            new = graph.call_method("detach", (kept.get(node, node),))
            graph.call_method("copy_", (graph.get_attr(path), new))


def _written(node: Node) -> Node:
    """What ``self.x += y`` writes into."""
    while node.op == "call_function" and op_name(node) in IN_PLACE:
        node = node.all_input_nodes[0]
    return node


def _copied(node: Node) -> Node:
    with node.graph.inserting_after(node):
        copied = node.graph.call_method("clone", (node,))
    node.replace_all_uses_with(copied, lambda user: user is not copied)
    return copied


def _warn(path: str, before: Any, after: Any) -> None:
    warn(
        f"the model sets {path} from {before} to {after} when it is called, which its graph does not: what depends "
        "on that stays as it is now. A buffer that is added to keeps its value"
    )
