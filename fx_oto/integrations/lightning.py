"""A callback for Lightning's ``Trainer``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from torch import Tensor

from fx_oto.integrations.compression import Compression

__all__ = ["CompressionCallback"]


class CompressionCallback(Compression, Callback):  # type: ignore[misc]
    """Keep every loss in the report, and compress the model when ``fit`` has ended.

    The trainer needs nothing else: ``configure_optimizers`` returns the optimizer, which is saved and resumed with the
    trainer's checkpoints. Arguments and attributes are those of ``Compression``.
    """

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Note the loss for the report."""
        self.optimizer.note_loss(loss.detach())

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Compress the model."""
        self.finish()
