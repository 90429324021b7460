"""Modules that are called as a whole: their attributes follow their parameters."""

from __future__ import annotations

from torch import nn
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd

from fx_oto.core.errors import SlicingError
from fx_oto.core.fx_utils import described, tensor_names
from fx_oto.nn.leaves import leaf_of
from fx_oto.nn.modules import resize
from fx_oto.ops.convolution import channel_dim
from fx_oto.ops.editor import Editor

__all__ = ["check_whole", "resize_leaf", "resize_module"]


def resize_module(edit: Editor, node: Node) -> None:
    """Let a leaf module's attributes follow its parameters."""
    module = edit.gm.get_submodule(str(node.target))
    dim = channel_dim(edit, node, module.weight.ndim) if isinstance(module, _ConvNd) else 1
    resize(module, edit.channels(node.args[0], dim), edit.channels(node, dim))
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        names = (name for name, tensor in tensor_names(edit.gm).items() if tensor is module.weight)
        kept = edit.cuts.axes.get((next(names), 0))
        module.padding_idx = module.padding_idx if kept is None else int((kept < module.padding_idx).sum())


def check_whole(edit: Editor, node: Node) -> None:
    """Refuse a module that nobody can resize: it was a leaf of the user's when the model was analysed."""
    module = edit.gm.get_submodule(str(node.target))
    names = {f"{node.target}.{name}" for name, _ in module.named_parameters()}
    if any(name in names for name, _ in edit.cuts.axes):
        raise SlicingError(
            f"{described(node)} has lost channels, but {type(module).__name__} has no rule any more: register it "
            "again with fx_oto.register_leaf, and keep it registered until the model is compressed"
        )


def resize_leaf(edit: Editor, node: Node) -> None:
    """Let the attributes of a module of the user's follow its parameters, as it was registered."""
    module = edit.gm.get_submodule(str(node.target))
    if leaf := leaf_of(module):
        leaf.resize(module)
