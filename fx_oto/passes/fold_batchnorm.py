"""Folding BatchNorm into the layer before it, for inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from fx_oto.core.context import Context
from fx_oto.core.errors import SettingsError
from fx_oto.framework.stages import Pass
from fx_oto.framework.trajectory import Trajectory
from fx_oto.passes.physical_slicing import SlicingPlan

__all__ = ["FoldBatchNorm"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Compute each BatchNorm that follows a convolution or a linear layer by the weights of that layer.

    The running statistics become part of the weights, so the result is for inference: trained further, it goes on with
    these statistics. Outputs differ by rounding. A norm stays where another node reads what it normalizes, where the
    layer before it is called, read or parametrized otherwise, and where it has no running statistics.

    Raises:
        SettingsError: when it runs: the model is in training mode.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
        >>> gm = fx_oto.FoldBatchNorm()(fx_oto.trace(net, torch.randn(2, 3, 8, 8))).graph_module
        >>> [type(module).__name__ for module in gm.children()]
        ['Conv2d', 'ReLU']
    """

    name: ClassVar[str] = "fold-batchnorm"
    preserves: ClassVar[tuple[type, ...]] = (SlicingPlan, Trajectory)

    def transform(self, gm: GraphModule, context: Context) -> GraphModule | None:
        """Replace each pair of nodes by one, with the name of the second.

        Raises:
            SettingsError: the model is in training mode.
        """
        if gm.training:
            raise SettingsError(
                "BatchNorm was to be folded in training mode, where it normalizes by each batch: call gm.eval() first, "
                "or compress without fold_batchnorm to train on"
            )
        modules = dict(gm.named_modules())
        folded = [node for node in list(gm.graph.nodes) if _fold(gm, node, modules)]
        return gm if folded else None


def _fold(gm: GraphModule, node: Node, modules: dict[str, nn.Module]) -> bool:
    """Fold the norm that a node calls; False if it calls none, or one that cannot be."""
    norm = _called(node, modules, _NORMS)
    before = node.args[0] if node.args else None
    if not isinstance(norm, _BatchNorm) or not isinstance(before, Node) or len(node.all_input_nodes) != 1:
        return False
    layer = _called(before, modules, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear))
    alone = layer is not None and len(before.users) == 1 and _is_used_once(gm, before)
    if layer is None or not alone or not _fits(layer, norm, before.meta["val"]):
        return False
    fused = _fused(layer, norm)
    gm.set_submodule(str(before.target), fused)
    modules[str(before.target)] = fused
    node.target, node.args, node.kwargs = before.target, before.args, before.kwargs
    gm.graph.erase_node(before)
    return True


def _fused(layer: Any, norm: _BatchNorm) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    return fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, _TRANSPOSED))  # type: ignore[no-any-return]


def _called(node: Node, modules: dict[str, nn.Module], kinds: tuple[type[nn.Module], ...]) -> nn.Module | None:
    """The module that a node calls, if it is exactly of one of these kinds, and calls nothing else."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    hooked = module is not None and (module._forward_hooks or module._forward_pre_hooks)
    return module if type(module) in kinds and not hooked else None


def _is_used_once(gm: GraphModule, caller: Node) -> bool:
    """Whether no other node calls or reads a module, under this name or another."""
    module = gm.get_submodule(str(caller.target))
    names = {name for name, one in gm.named_modules(remove_duplicate=False) if one is module}
    parts = {f"{name}.{own}" for name in names for own, _ in module.named_parameters()}
    return not any(
        (node.op == "call_module" and node.target in names) or (node.op == "get_attr" and node.target in parts)
        for node in gm.graph.nodes
        if node is not caller
    )


def _fits(layer: nn.Module, norm: _BatchNorm, value: Tensor) -> bool:
    """Whether the running statistics can become part of a layer's weights, of which this is the result."""
    if norm.training or layer.training or norm.running_mean is None:
        return False
    if isinstance(layer, nn.Linear):
        along_features = value.ndim == 2
    else:  # a transposed convolution in groups has the filters of each group in one dimension
        along_features = not isinstance(layer, _TRANSPOSED) or layer.groups == 1
    weight = layer.get_parameter("weight")
    return along_features and weight.dtype == norm.running_mean.dtype and weight.device == norm.running_mean.device
