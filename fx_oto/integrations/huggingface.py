"""A callback for the ``Trainer`` of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from fx_oto.integrations.compression import Compression

__all__ = ["CompressionCallback"]


class CompressionCallback(Compression, TrainerCallback):  # type: ignore[misc]
    """Keep the losses that the trainer logs in the report, and compress the model when the training has ended.

    The trainer needs nothing else: it takes the optimizer in ``optimizers=(optimizer, scheduler)``, and saves and
    resumes it with its checkpoints. The weights that ``load_best_model_at_end=True`` loads may be from before the end
    of the pruning: then there is less to cut, or nothing, unless ``project=True``. Arguments and attributes are those
    of ``Compression``.
    """

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Note the loss for the report."""
        if logs is not None and "loss" in logs:
            self.optimizer.note_loss(float(logs["loss"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compress the model; the trainer has loaded the best weights by then, if it was asked to."""
        self.finish()
