"""Attention over fewer heads, or a narrower width; its products have the rules of contractions."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from fx_oto.core.fx_utils import tensor_names
from fx_oto.nn.attention import FewerHeads
from fx_oto.nn.modules import resize
from fx_oto.ops.editor import Editor

__all__ = ["fewer_heads", "original_scale"]


def original_scale(edit: Editor, node: Node) -> None:
    """Attention whose default scale, 1 / √width, would follow the width that is left."""
    query = edit.argument(node, 0, "query")
    shape = edit.shape(query)
    if len(shape) - 1 in edit.cut(query) and node.kwargs.get("scale") is None:
        node.update_kwarg("scale", shape[-1] ** -0.5)


def fewer_heads(edit: Editor, node: Node) -> None:
    """Attention over sliced parameters is another module, and remains it in a second round."""
    calls = [one for one in edit.graph.nodes if one.op == "call_module" and one.target == node.target]
    module: Any = edit.gm.get_submodule(str(node.target))
    names = {id(tensor): name for name, tensor in tensor_names(edit.gm).items()}
    mine = {names[id(parameter)] for parameter in module.parameters()}
    if node is not calls[0] or not any(name in mine for name, _ in edit.cuts.axes):
        return
    heads = _heads_left(edit, names[id(module.out_proj.weight)], module.num_heads)
    if isinstance(module, FewerHeads):
        module.num_heads = heads
        resize(module.out_proj, 0, 0)
    else:
        edit.gm.set_submodule(str(node.target), FewerHeads(module, heads))


def _heads_left(edit: Editor, projection: str, heads: int) -> int:
    """Of how many heads something is left in the columns of the output's projection."""
    kept = edit.cuts.axes.get((projection, 1))
    if kept is None:
        return heads
    size = next(axis.size for axis in edit.cuts.found.axes if (axis.tensor, axis.dim) == (projection, 1))
    return len((kept // (size // heads)).unique())
