"""A callback for Lightning's ``Trainer``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from torch import Tensor
from torch.fx import GraphModule

from fx_oto.api import compress
from fx_oto.optim.sparsifier import GroupSparseOptimizer

__all__ = ["CompressionCallback"]


class CompressionCallback(Callback):  # type: ignore[misc]
    """Keep every loss in the report, and compress the model when ``fit`` has ended.

    The trainer needs nothing else: ``configure_optimizers`` returns the optimizer, which is saved and resumed with the
    trainer's checkpoints.

    Args:
        gm: the prepared model that is trained, or whose model is.
        optimizer: the one that ``configure_optimizers`` returns.
        project: whether what the optimizer has made zero is set to zero, at the end, in the weights of the model.

    Attributes:
        compact: the compact model, once the training has ended.
    """

    def __init__(self, gm: GraphModule, optimizer: GroupSparseOptimizer, project: bool = False) -> None:
        self.gm, self.optimizer, self.project = gm, optimizer, project
        self.compact: GraphModule | None = None

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Note the loss for the report."""
        self.optimizer.note_loss(loss.detach())

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Compress the model."""
        if self.project:
            self.optimizer.project(self.gm)
        self.compact = compress(self.gm)
