"""What the callbacks of all trainers do when a training has ended."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule

from fx_oto.api import compress
from fx_oto.core.warn import warn
from fx_oto.optim.sparsifier import GroupSparseOptimizer

__all__ = ["Compression"]


class Compression:
    """Compresses the model that a trainer has trained.

    Args:
        gm: the prepared model that the trainer trains, or whose model it trains.
        optimizer: the one that trains it.
        project: whether what the optimizer has made zero is set to zero, at the end, in the weights of the model.
        into: the model that was given to ``prepare``, to get a copy of it, of its own class, as ``compress`` does.

    """

    def __init__(
        self,
        gm: GraphModule,
        optimizer: GroupSparseOptimizer,
        project: bool = False,
        into: nn.Module | None = None,
    ) -> None:
        self.gm, self.optimizer, self.project, self.into = gm, optimizer, project, into
        self._compact: nn.Module | None = None
        self._failure: Exception | None = None

    @property
    def compact(self) -> nn.Module | None:
        """The compact model, once the training has ended; raises what has kept it from being made."""
        if self._failure is not None:
            raise self._failure
        return self._compact

    def finish(self) -> None:
        """Compress the model; where that fails, warn, so that the trainer goes on to what saves the trained weights."""
        self._failure = None
        try:
            if self.project:
                self.optimizer.project(self.gm)
            self._compact = compress(self.gm) if self.into is None else compress(self.gm, into=self.into)
        except Exception as error:
            self._failure = error
            warn(
                f"the training has ended, but its model was not compressed: {error}. Its weights are as they were "
                "trained: save them, and call finish() of this callback, or fx_oto.compress(gm), once that is mended"
            )
