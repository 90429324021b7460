"""Where tensors leave the analysis's sight: what is out of it reads them as they are, so they are kept whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from fx_oto.analysis.engine import Propagation
from fx_oto.analysis.tape import Tape
from fx_oto.core.fx_utils import tensor_leaves
from fx_oto.nn.modes import by_mode
from fx_oto.nn.modules import keeps_parameters_whole

__all__ = ["Boundaries"]

# What is no tensor and holds none.
_PLAIN: tuple[type, ...] = (Tensor, int, float, complex, str, bytes, type(None), type, slice, range, torch.SymInt)
_PLAIN += (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)


class Boundaries:
    """The outputs of a model, objects and modules that slicing does not know, and what nothing reads.

    Args:
        p: the engine, which is told what is kept whole.
        gm: the GraphModule.
        tape: its ATen calls.
    """

    def __init__(self, p: Propagation, gm: GraphModule, tape: Tape) -> None:
        self._p, self._gm, self._tape = p, gm, tape

    def keep(self, node: Node, value: Any) -> None:
        """What a node takes out of sight; ``value`` is what it returned."""
        if node.op == "output":
            for leaf in tensor_leaves(value):
                self._p.freeze_value(leaf, "it is part of the model's output")
        elif node.op.startswith("call_"):
            self._keep_inside_object(node, value)
            self._keep_what_meets_training(node, value)
            if node.op == "call_module":
                self._keep_module(str(node.target))

    def keep_unread(self) -> None:
        """Parameters that no op reads."""
        read = {id(value) for _, calls, _ in self._tape.steps for call in calls for value in call.inputs}
        for tensor in self._tape.tensors.values():
            if id(tensor) not in read:
                self._p.freeze_value(tensor, "it is not used by the traced graph")

    def _keep_inside_object(self, node: Node, value: Any) -> None:
        if all(isinstance(leaf, _PLAIN) for leaf in tree_leaves(value)):
            return
        for read in node.all_input_nodes:
            for leaf in tensor_leaves(read.meta["val"]):
                self._p.freeze_value(leaf, f"it goes into an object of class {type(value).__name__}, which is opaque")

    def _keep_what_meets_training(self, node: Node, value: Any) -> None:
        """The tape is one of evaluation: what a tensor meets that there is in training only, it does not show."""
        if alone := [leaf for read in node.all_input_nodes for leaf in _in_training_only(read)]:
            met = tensor_leaves([value, *(read.meta["val"] for read in node.all_input_nodes)])
            for leaf in (*alone, *met):
                self._p.freeze_value(leaf, "it meets a tensor that there is in training only")

    def _keep_module(self, target: str) -> None:
        module = self._gm.get_submodule(target)
        if keeps_parameters_whole(module):
            names = {id(tensor): name for name, tensor in self._gm.named_parameters()}
            for parameter in module.parameters():
                stand_in = self._tape.tensors[names[id(parameter)]]
                self._p.freeze_value(stand_in, f"slicing does not know the module class {type(module).__name__}")


def _in_training_only(node: Node) -> list[Tensor]:
    """The tensors of ``by_mode`` where training has one and evaluation has a number, or None."""
    if node.target is not by_mode:
        return []
    _, *sides = (tensor_leaves(one.meta["val"] if isinstance(one, Node) else one) for one in node.args)
    training, evaluation = sides
    return training if len(training) > len(evaluation) else []
