"""The course of a training: group sparsity and loss along the steps, the target and what was reached."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fx_oto.core.doors import above
from fx_oto.core.picture import Picture
from fx_oto.core.tables import Tabular, counted, finite, table

__all__ = ["Trajectory"]

_MOST_POINTS, _MOST_ROWS = 512, 12


@dataclass(repr=False)
class Trajectory(Tabular):
    """A record of one training, thinned out to at most 512 points; kept by the optimizer, shown by ``report``.

    ``str()`` is a table of some of its points, a notebook shows it as HTML.

    Attributes:
        zigs: prunable ZIGs of the model.
        asked: the target, in words.
        reached: in words, once the pruning window is over.
        points: step, ZIGs that are zero, and loss where it is known, a tensor until it is read.
        stride: steps between two points.
        steps: taken so far.
        end: the step by which the target is to be reached.
        total: the length of the training, if it was given.
        done: whether all that is to go is zero.
        gone: for each family the positions of the ZIGs that were made zero for good: int64, shape ``(n,)``.
        held: families that are missing for the target, since they were frozen when it was chosen what goes.

    Example:
        >>> from fx_oto import Trajectory
        >>> training = Trajectory(zigs=8, asked="group sparsity 0.5")
        >>> for step in range(3):
        ...     training.add(step, zero=2 * step, loss=1 / (step + 1))
        >>> print(training)
        asked: group sparsity 0.5; reached: the pruning window is not over
        <BLANKLINE>
          step    group sparsity    loss
        ------  ----------------  ------
             0             0.000  1.0000
             1             0.250  0.5000
             2             0.500  0.3333
    """

    zigs: int
    asked: str
    reached: str = ""
    points: list[tuple[int, int, Any]] = field(default_factory=list)
    stride: int = 1
    steps: int = 0
    end: int = 0
    total: int | None = None
    done: bool = False
    gone: Sequence[Tensor] = ()
    held: Sequence[str] = ()

    def revived(self, zeros: Sequence[Tensor]) -> str:
        """What is to be said of ZIGs that the optimizer made zero and that are not any more; empty if there are none.

        Args:
            zeros: for each family, which ZIGs are zero now, bool.
        """
        back = sum(int((~zero[gone]).sum()) for zero, gone in zip(zeros, self.gone, strict=False))
        if not back:
            return ""
        return (
            f"{back} of the {sum(map(len, self.gone))} ZIGs that the optimizer has made zero are not zero any more, as "
            "when a checkpoint or averaged weights from before are loaded: they are kept. To cut them, too, call "
            "optimizer.project(model), which sets them to zero, and compress again"
        )

    @property
    def unfinished(self) -> str:
        """A sentence about a training that did not reach its target; empty if it did."""
        if self.held and self.steps >= self.end:
            return (
                f"the pruning window ended at step {self.end}, and the target ({self.asked}) is not reached: "
                f"{counted(len(self.held), 'family was', 'families were')} frozen (requires_grad=False in one of its "
                f"tensors) when it was to be chosen what goes, such as {self.held[0]!r}. Let the window begin, by "
                "start_step, when they are trained, or prune what is frozen: prune_frozen=True."
            )
        if self.done or self.steps >= self.end:
            return ""
        given, ask = f" (total_steps={self.total})", "is total_steps the number of optimizer.step() calls?"
        if self.total is None:
            given, ask = "", "does the training call optimizer.step() that often?"
        return (
            f"the optimizer has taken {counted(self.steps, 'step', 'steps')}, but its pruning window ends at step "
            f"{self.end}{given}, so its target ({self.asked}) is not reached: {ask}"
        )

    def add(self, step: int, zero: int, loss: Tensor | float | None) -> None:
        """Note one step; nothing is read from the device.

        Args:
            step: its number.
            zero: how many ZIGs are zero after it.
            loss: a number, a tensor of one element, or None if it is not known; anything else counts as not known.
        """
        if step % self.stride:
            return
        scalar = isinstance(loss, int | float) or (isinstance(loss, Tensor) and loss.numel() == 1)
        value = loss.detach().clone() if isinstance(loss, Tensor) else loss
        self.points.append((step, zero, value if scalar else None))
        if len(self.points) > _MOST_POINTS:
            self.stride *= 2
            self.points = [point for point in self.points if point[0] % self.stride == 0]

    def rows(self) -> list[tuple[int, float, float | None]]:
        """Step, group sparsity and loss of every point, as numbers."""
        self.points = [(step, zero, None if loss is None else float(loss)) for step, zero, loss in self.points]
        return [(step, zero / max(self.zigs, 1), loss) for step, zero, loss in self.points]

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint; the points as one text, for torch's distributed checkpoints take lists apart."""
        self.rows()
        return {"points": json.dumps(self.points), "stride": self.stride, "reached": self.reached, "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        """Load what ``state()`` has returned."""
        self.points = [(step, zero, loss) for step, zero, loss in json.loads(state["points"])]
        self.stride, self.reached = state["stride"], state["reached"]
        self.done = state.get("done", False)

    def to_dict(self) -> dict[str, Any]:
        """``asked``, ``reached``, and ``points``: of each its step, group sparsity and loss, None if unknown."""
        points = [{"step": step, "group_sparsity": zero, "loss": finite(loss)} for step, zero, loss in self.rows()]
        return {"asked": self.asked, "reached": self.reached, "points": points}

    def _tables(self, style: str) -> tuple[str]:
        """Some of the points, evenly spread, and the last."""
        rows = self.rows()
        every = max(1, -(-len(rows) // _MOST_ROWS))
        shown = rows[::every] + (rows[-1:] if (len(rows) - 1) % every else [])
        cells = [(str(step), f"{zero:.3f}", "" if loss is None else f"{loss:.4f}") for step, zero, loss in shown]
        headers = ("step", "group sparsity", "loss")
        return (table(cells, headers, style, headers),)

    def plot(self) -> Picture:
        """Loss and group sparsity along the steps, in two panels; without the loss where none was noted.

        Raises:
            SettingsError: no step was taken yet.
            MissingPackageError: matplotlib is not installed.

        Example:
            >>> import torch, fx_oto
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
            >>> optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, total_steps=10)
            >>> for _ in range(10):
            ...     loss = gm(torch.randn(2, 4)).square().mean()
            ...     loss.backward()
            ...     optimizer.note_loss(loss)
            ...     optimizer.step()
            >>> [axes.get_ylabel() for axes in fx_oto.report(gm).training.plot().figure.axes]
            ['loss', 'group sparsity']
        """
        picture: Picture = above("draw_training")(self.rows(), self.summary)
        return picture

    @property
    def _summary(self) -> str:
        return self.summary

    @property
    def summary(self) -> str:
        """The target, and what was reached."""
        return f"asked: {self.asked}; reached: {self.reached or 'the pruning window is not over'}"
