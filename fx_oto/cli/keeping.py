"""The weights of a training, on the disk until what was made of them is: a failure after it must not lose it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from fx_oto.cli.saving import write_tensors
from fx_oto.core.errors import FileError
from fx_oto.core.paths import free_path
from fx_oto.core.tables import counted
from fx_oto.core.warn import warn
from fx_oto.optim.sparsifier import GroupSparseOptimizer

__all__ = ["Trained", "how_to_go_on", "kept"]


class Trained:
    """A file for the weights of a model that is being trained.

    Args:
        model: that the user named, which a state dict is loaded into.
        path: where its weights are to be written; where something is there, beside it.
    """

    def __init__(self, model: nn.Module, path: Path) -> None:
        self._model, self._wanted = model, path
        self.path: Path | None = None

    def write(self) -> None:
        """Write the weights as they are now; where that fails, warn: they are still in memory."""
        path = free_path(self._wanted)
        try:
            write_tensors(self._model.state_dict(), path)
        except FileError as error:
            warn(f"the trained weights are not saved: {error}")
        else:
            self.path = path

    def remove(self) -> None:
        """Remove the file: what was made of the weights is on the disk."""
        if self.path is not None:
            self.path.unlink()


@contextmanager
def kept(model: nn.Module, optimizer: GroupSparseOptimizer, path: Path) -> Iterator[Trained]:
    """Train in this block, and let its errors say where the weights are; if the training fails, write them."""
    trained = Trained(model, path)
    try:
        yield trained
    except BaseException as error:
        steps = optimizer.trajectory.steps
        if trained.path is None and steps:
            trained.write()
        if trained.path is not None:
            after = counted(steps, "step", "steps")
            error.add_note(f"The weights after {after} are in {trained.path}; {how_to_go_on(trained.path)}")
        raise


def how_to_go_on(path: Path) -> str:
    """What to do with the file, as the end of a sentence."""
    return f"go on with --state-dict {path}: without --train, to cut them, or with it, to train them further"
