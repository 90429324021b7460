"""The editor of a graph that every rewriting uses, to change nodes and to ask what is cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map_only

from fx_oto.analysis.labels import Layer
from fx_oto.core.errors import SlicingError
from fx_oto.core.fx_utils import described, tensor_leaves
from fx_oto.zigs.cuts import Cuts

__all__ = ["Cut", "Editor", "Handler"]

Cut = dict[int, Tensor]


class Editor:
    """A graph that is being rewritten.

    Attributes:
        gm: the GraphModule to change; its parameters are sliced already.
        graph: its graph.
        cuts: what is kept.
        nodes: the node that now stands for each node of the analysed graph, by the latter's name.
    """

    def __init__(self, gm: GraphModule, cuts: Cuts) -> None:
        self.gm, self.graph, self.cuts = gm, gm.graph, cuts
        self.nodes = {node.name: node for node in gm.graph.nodes}
        self._origins: dict[Node, str] = {}
        self._constants = _constant_nodes(gm.graph)
        self._devices = _moved_to(gm)

    def cut(self, node: Any) -> Cut:
        """Kept indices, by dimension, of a node's tensor value."""
        return self.cuts.of_tensor(self._origins.get(node, node.name)) if isinstance(node, Node) else {}

    def layers(self, node: Node) -> Sequence[Layer]:
        """The layers of a node's tensor value."""
        values = self.cuts.found.values.get(self._origins.get(node, node.name), ())
        return values[0] if len(values) == 1 else ()

    def is_lost(self, node: Any) -> bool:
        """Return whether what is left of a node's tensor value is not a rectangle."""
        return None in self.cuts.of_value(self._origins.get(node, node.name))

    def cut_dims(self, node: Any) -> set[int]:
        """The dimensions whose size is, or may be, no longer what it was."""
        if not isinstance(node, Node):
            return set()
        if not self.is_lost(node):
            return set(self.cut(node))
        layers = self.cuts.found.values[self._origins.get(node, node.name)][0]
        return {dim for layer in layers if not self.cuts.kept_labels(layer.labels).all() for dim in layer.dims}

    def shape(self, node: Node) -> torch.Size:
        """The full shape of a node's tensor value, as it was traced."""
        value: Tensor = node.meta["val"]
        return value.shape

    def replace(self, node: Node, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """Put a call of ``function`` in the place of a node."""
        with self.graph.inserting_before(node):
            return self.put(self.graph.call_function(function, args, kwargs), node)

    def put(self, new: Node, node: Node) -> Node:
        """Put another node, which was inserted for it, in the place of a node."""
        self.adopt(new, node)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)
        return new

    def append(self, node: Node, function: Callable[..., Any], *args: Any) -> Node:
        """Let all that reads a node read ``function(node, *args)``, which is of the same form."""
        readers, last = list(node.users), [node, *(one for one in args if isinstance(one, Node))][-1]
        with self.graph.inserting_after(last):
            new = self.graph.call_function(function, (node, *args))
        for reader in readers:
            reader.replace_input_with(node, new)
        return new

    def adopt(self, new: Node, node: Node) -> None:
        """Let a node stand for one of the analysed graph."""
        new.meta = dict(node.meta)
        self._origins[new] = name = self._origins.get(node, node.name)
        self.nodes[name] = new

    def analysed(self, node: Node) -> str | None:
        """The name of the node of the analysed graph whose value this one returns, None if it stands for none."""
        name = self._origins.get(node, node.name)
        return name if self.nodes.get(name) is node else None

    def constant(self, name: str, tensor: Tensor, before: Node, beside: Node) -> Node:
        """A buffer of the compact module, on the device where the value of the node ``beside`` is now."""
        device = next((leaf.device for leaf in tensor_leaves(beside.meta.get("val"))), None)
        target = f"_{name}_{before.name}"
        while hasattr(self.gm, target):  # from an earlier round
            target += "_"
        self.gm.register_buffer(target, tensor.to(self._devices.get(device, device)))
        with self.graph.inserting_before(before):
            return self.graph.get_attr(target)

    def argument(self, node: Node, position: int, name: str, default: Any = None) -> Any:
        """An argument, given by position or by name."""
        return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)

    def set_argument(self, node: Node, position: int, name: str, value: Any) -> None:
        """Change an argument where it was given."""
        if len(node.args) > position:
            node.update_arg(position, value)
        else:
            node.update_kwarg(name, value)

    def substitute(self, node: Node, value: Any) -> None:
        """Put a value, such as a tuple of sizes, where a node was read."""
        for user in list(node.users):
            user.args = map_arg(user.args, lambda n: value if n is node else n)
            user.kwargs = map_arg(user.kwargs, lambda n: value if n is node else n)
        del self.nodes[node.name]
        self.graph.erase_node(node)

    def refuse(self, node: Node, why: str) -> SlicingError:
        """The error for a node that cannot be rewritten."""
        return SlicingError(
            f"{described(node)} cannot be rewritten for fewer channels: {why}; keep what feeds it whole with "
            "unprunable=…, and please report it"
        )

    def plain(self, value: Any) -> Any:
        """Arguments with the sizes they were traced with, and the constants they name."""
        return map_arg(value, self._content)

    def run(self, node: Node, tensor: Tensor) -> Any:
        """Run a node on another tensor in the place of its first argument; indices that depend on data are zero."""
        given = self.plain((node.args[1:], node.kwargs))
        args, kwargs = tree_map_only(FakeTensor, lambda fake: torch.zeros(fake.shape, dtype=fake.dtype), given)
        return self._call(node, (tensor, *args), kwargs)

    def _content(self, node: Node) -> Any:
        """The value of a node that reads no input: what analysis takes for constant is computed from buffers."""
        if node.op == "get_attr":
            return attrgetter(str(node.target))(self.gm)
        if node not in self._constants:
            return node.meta["val"]
        return self._call(node, *self.plain((node.args, node.kwargs)))

    def _call(self, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if node.op == "call_module":
            return self.gm.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def channels(self, node: Any, dim: int = 1) -> int:
        """Return the size that is left of a dimension; 0 where there is none."""
        if not isinstance(node.meta["val"], Tensor):
            return 0
        shape = self.shape(node)
        return len(self.cut(node)[dim]) if dim in self.cut(node) else shape[dim] if len(shape) > dim else 0


def _moved_to(gm: GraphModule) -> dict[torch.device | None, torch.device]:
    """For each device on which values were when the graph was captured, the one on which they are now."""
    # Captured on the CPU and trained on a GPU: the value of a layer's node says "cpu", its parameters say "cuda:0".
    found: dict[torch.device | None, torch.device] = {}
    for node in gm.graph.nodes:
        values = tensor_leaves(node.meta.get("val"))
        if node.op == "call_module":
            held = [*gm.get_submodule(str(node.target)).parameters(), *gm.get_submodule(str(node.target)).buffers()]
        else:
            held = tensor_leaves(attrgetter(str(node.target))(gm)) if node.op == "get_attr" else []
        if values and held:
            found.setdefault(values[0].device, held[0].device)
    return found


def _constant_nodes(graph: Graph) -> set[Node]:
    """Nodes that compute tensors, one or several, from buffers, parameters and traced sizes alone."""
    found: set[Node] = set()
    for node in graph.nodes:
        calls = node.op in ("call_function", "call_method") and tensor_leaves(node.meta.get("val"))
        read = [one for one in node.all_input_nodes if tensor_leaves(one.meta.get("val"))]
        if calls and all(one.op == "get_attr" or one in found for one in read):
            found.add(node)
    return found


Handler = Callable[[Editor, Node], None]
