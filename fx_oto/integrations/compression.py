"""What the callbacks of all trainers do when a training has ended."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule

from fx_oto.api import compress
from fx_oto.optim.sparsifier import GroupSparseOptimizer

__all__ = ["Compression"]


class Compression:
    """Compresses the model that a trainer has trained.

    Args:
        gm: the prepared model that the trainer trains, or whose model it trains.
        optimizer: the one that trains it.
        project: whether what the optimizer has made zero is set to zero, at the end, in the weights of the model.
        into: the model that was given to ``prepare``, to get a copy of it, of its own class, as ``compress`` does.

    Attributes:
        compact: the compact model, once the training has ended.
    """

    def __init__(
        self,
        gm: GraphModule,
        optimizer: GroupSparseOptimizer,
        project: bool = False,
        into: nn.Module | None = None,
    ) -> None:
        self.gm, self.optimizer, self.project, self.into = gm, optimizer, project, into
        self.compact: nn.Module | None = None

    def finish(self) -> None:
        """Compress the model."""
        if self.project:
            self.optimizer.project(self.gm)
        self.compact = compress(self.gm) if self.into is None else compress(self.gm, into=self.into)
