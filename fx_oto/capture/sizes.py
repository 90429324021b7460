"""Which sizes of its inputs a graph takes: found by capturing the model again, at others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from fx_oto.analysis.fakes import asks_values
from fx_oto.analysis.recording import fake_run
from fx_oto.capture.arguments import Arguments
from fx_oto.capture.comparison import Comparison, Difference
from fx_oto.capture.groups import Group, groups_of, resized
from fx_oto.capture.other_sizes import OtherSizes, Shown
from fx_oto.capture.refusals import NotCapturedError, NotHashedError
from fx_oto.capture.run import CaptureRun
from fx_oto.core.context import ExampleInputs, InputSize
from fx_oto.core.errors import InputError

__all__ = ["Sizes", "names_of"]


def names_of(model: nn.Module, inputs: ExampleInputs) -> list[str]:
    """The name of each tensor among the inputs, as ``forward`` calls it."""
    given = Arguments.of(model, inputs).given
    names: dict[int, str] = {}
    for path, leaf in tree_flatten_with_path(dict(given))[0]:
        if isinstance(leaf, Tensor):
            head, *rest = path
            names.setdefault(id(leaf), f"{head.key}{keystr(tuple(rest))}")  # type: ignore[attr-defined]
    leaves = [leaf for leaf in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(leaf, Tensor)]
    return [names.get(id(leaf), f"input {number}") for number, leaf in enumerate(leaves)]


@dataclass
class _Trial:
    """What captures at other sizes of a group have shown.

    Attributes:
        taken: the size at which one was the same.
        difference: where code decides by the size, or depends on it.
        differed: the captures that were not the same, and their size.
        decides: whether those differ in what the graph checks.
        checks: all that code decides by the size: what the graph says where it is otherwise, and where that is.
        may_remember: whether code may decide by sizes that it has met before.
        largest: the largest size of a capture that was the same.
    """

    taken: int | None = None
    largest: int = 0
    difference: Difference | None = None
    differed: tuple[list[CaptureRun], int] | None = None
    decides: bool = False
    checks: dict[str, str] = field(default_factory=dict)
    may_remember: bool = True

    def note(self, differences: Collection[Difference]) -> None:
        """Remember what code decides by."""
        self.checks.update((one.check, str(one)) for one in differences)


class Sizes:
    """Which sizes of its inputs the graphs of an attempt take.

    Args:
        model: the model.
        inputs: the example inputs.
        again: captures the model on other inputs, in the modes of some runs.
        seen_as: captures it on these, as in a run, where code sees other numbers in the place of sizes.
        comparisons: of the captures on the example inputs; what code that was given no numbers made of sizes does in
            one of them, it does at any size.

    Attributes:
        found: of each size.
        doubts: sizes of which smaller ones lead elsewhere, the smallest and the largest of those, and the least that
            does not.
        notes: what their user should know, each with the size that it is about.
        larger: those of 1 that were captured larger.
        rewritten: whether numbers in the graph have become computations.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: ExampleInputs,
        again: Callable[[ExampleInputs, list[CaptureRun]], list[CaptureRun]],
        seen_as: Callable[[OtherSizes, CaptureRun], CaptureRun],
        comparisons: Mapping[CaptureRun, Comparison],
    ) -> None:
        self._model, self._inputs, self._again = model, inputs, again
        runs = list(comparisons)
        self._handed = any(run.handed for run in runs)
        self._runs = [run for run in runs if run.handed or not run.is_plain] or runs
        self._names = names_of(model, inputs)
        self._others: dict[Group, list[CaptureRun]] = {}
        self._comparisons = [comparisons[run] for run in self._runs]
        self._shown = Shown({run: comparisons[run] for run in self._runs}, seen_as)
        self._fixed: list[tuple[Group, Difference]] = []
        self._untried: list[Group] = []
        self._near: list[Group] = []
        self._free: list[Group] = []
        self._tried: dict[Group, tuple[list[CaptureRun], int]] = {}
        self.larger: dict[Group, int] = {}
        self._decided: dict[InputSize, tuple[Group, dict[str, str]]] = {}
        self.notes: list[tuple[InputSize, str]] = []
        self.doubts: dict[Group, tuple[tuple[int, int], int, Difference]] = {}
        found: list[InputSize] = []
        for group in groups_of(inputs):
            found += self._try(group) if self._handed or (group.size == 1 and len(runs) == 1) else [self._told(group)]
        self.found = tuple(sorted(self._with_untried(found), key=self._place))
        self._on_larger = self._run_on_larger()
        rewritten = [comparison.rewrite() for comparison in comparisons.values()]
        self.rewritten = any(rewritten) or bool(self._fixed)
        for run in {*runs, *filter(None, [self._on_larger])}:  # not before: captures are compared node by node
            run.forget_events()
            run.shorten_checks()
        for group, difference in self._fixed:
            for run in runs:
                run.fix(group.dims, group.size, difference)

    def _place(self, told: InputSize) -> tuple[int, int]:
        """Where the first dimension of a size is among the inputs."""
        return min((self._names.index(name), dim) for name, dim in told.dims)

    def _told(self, group: Group, fixed: str = "", decided: str = "") -> InputSize:
        return InputSize(tuple((self._names[number], dim) for number, dim in group.dims), group.size, fixed, decided)

    @property
    def decided(self) -> list[Group]:
        """Sizes that code decides by, and that are not 1."""
        return [group for group, _ in self._decided.values() if group.size != 1]

    @property
    def fixes_what_was_tried(self) -> bool:
        """Whether sizes are fixed of which the model takes others."""
        return any(group not in self._untried for group, _ in self._fixed)

    @property
    def ones(self) -> dict[Group, int]:
        """Sizes of 1 that are fixed, and others in their place."""
        return {group: group.others()[0] for group, _ in self._fixed if group.size == 1 and group not in self._untried}

    def forget(self, checks: Collection[str]) -> None:
        """Decisions that the graphs do not check any more."""
        for told, (_, decided) in self._decided.items():
            left = [where for text, where in decided.items() if text not in checks]
            new = replace(told, decided=left[0] if left else "")
            if new != told:
                self.found = tuple(new if one is told else one for one in self.found)
                self.notes = [(one, note) for one, note in self.notes if left or one is not told]

    def doubt(self, groups: Collection[Group]) -> None:
        """Sizes of which the graphs check that they are not too small."""
        dims = {self._told(group).dims: str(self.doubts[group][-1]) for group in groups}
        self.found = tuple(replace(one, decided=one.decided or dims.get(one.dims, "")) for one in self.found)

    def _try(self, group: Group) -> list[InputSize]:
        before = [comparison.places for comparison in self._comparisons]
        trial = self._trial(group)
        difference = trial.difference
        if trial.taken is not None:
            if group.size == 1:
                self.larger[group] = trial.taken
            told = self._told_of(group, trial)
            # Not what the graph checks already, but parts of which another batch may have more.
            splits = difference is not None and not difference.check
            if group.is_batch and (trial.differed is not None or splits):
                self._announce(told, "batches that the model's code treats like those", difference)
            return [told]
        if difference is not None:
            if apart := self._apart(group, trial):
                return apart
            for comparison, places in zip(self._comparisons, before, strict=True):  # which were guessed wrong
                comparison.places = places
            return [self._fix(group, difference)]
        if alone := group.apart():
            return [told for one in alone for told in self._try(one)]
        self._untried.append(group)
        return []

    def _with_untried(self, found: list[InputSize]) -> list[InputSize]:
        """And sizes of which no other was tried; those are fixed of which it shows only now that code goes by them."""
        depend = self._that_something_depends_on()
        for group in depend:
            self.doubts.pop(group, None)
            self.larger.pop(group, None)
        dims = {self._told(group).dims for group in depend}
        self.notes = [(one, note) for one, note in self.notes if one.dims not in dims]
        told = [one for one in found if one.dims not in dims]
        told += [self._told(group) for group in self._untried if group not in depend]
        return [*told, *(self._fix(group, difference) for group, difference in depend.items())]

    def _that_something_depends_on(self) -> dict[Group, Difference]:
        """Sizes in whose place code that does not let them remember sees other numbers, and then the graph is another.

        Where no other was taken, as the model wants two inputs to fit, nobody knows what becomes of them, nor where
        only near ones were, as windows leave a rest, and are as many as before. Of the rest, code may make what is the
        same at those that were tried.
        """
        unknown = [*self._untried, *self._near]
        asks = self._handed and bool(unknown) and self._may_take_others()
        if not self._handed or self._shown.is_same_with_any(are_handed=asks):
            return {}
        known = {group: tried for group, tried in self._tried.items() if group not in self._near}
        difference = self._shown.unless_known(known) if asks else None
        depend = {} if difference is None else dict.fromkeys(unknown, difference)
        for group in self._free:
            if (difference := self._shown.of_changed(group, self._tried[group][0])) is not None:
                depend[group] = difference
        return depend

    def _may_take_others(self) -> bool:
        """Whether the model may take other sizes where none was tried: two at once, or what goes by numbers."""
        alone = self._untried if len(self._untried) == 1 else []
        others = (resized(self._inputs, {group: size}) for group in alone for size in group.others())
        return len(self._untried) > 1 or bool(self._near) or any(map(self._takes, others))

    def _trial(self, group: Group) -> _Trial:
        """Capture at other sizes, until it is known what follows them."""
        trial = _Trial()
        for size in group.others():
            if (others := self._captured(group, size)) is None:
                continue
            if same := self._same(trial, others, group, size):
                self._others[group] = same
                unsure = any(one.rounds or (trial.taken is None and one.guesses) for one in self._comparisons)
                # Nobody knows what becomes of plain numbers: range(len(x) // 2) is as long for 2 examples as for 3.
                unsure = unsure or (trial.taken is None and any(run.events for run in self._runs))
                trial.taken = size
                if unsure:  # that a number follows the size, or does not, must be so at another, too
                    continue
                break
            if not trial.decides:
                break
        if trial.taken is not None and any(one.places for one in self._comparisons):
            self._tell_apart(trial, group, trial.taken)
        # Code in C, such as range(0, length, 512), returns the same for all short inputs, and otherwise for long ones.
        if trial.taken is not None and self._handed and (far := group.far(self._inputs)) is not None:
            others = self._captured(group, far)
            if others is not None:
                self._same(trial, others, group, far)
        if trial.taken is not None and group.size > 1:
            self._look_below(group)
        return trial

    def _look_below(self, group: Group) -> None:
        """Find out whether code goes another way at the smallest size that the model takes, and up to where.

        ``if len(x) == 1`` leaves no trace.
        """
        for low in sorted({size for size in (1, 2, 3, group.size // 2) if 0 < size < group.size}):
            if (others := self._captured(group, low)) is not None:
                break
        else:
            return
        if (difference := self._unlike(others, group, low)) is None:
            return
        taken, other, least = [low], low, group.size
        while least - other > 1:
            size = (other + least) // 2
            others = self._captured(group, size)
            if others is not None and self._unlike(others, group, size) is None:
                least = size
            else:
                taken, other = [*taken, size] if others is not None else taken, size
        self.doubts[group] = (low, taken[-1]), least, difference

    def _unlike(self, others: list[CaptureRun], group: Group, size: int) -> Difference | None:
        pairs = zip(self._comparisons, others, strict=False)
        return next(filter(None, (one.unlike(other, group, size) for one, other in pairs)), None)

    def _tell_apart(self, trial: _Trial, group: Group, size: int) -> None:
        """Change dimensions that are alike one by one: a plain number may follow the height, the width, or both.

        Not every size tells: a quarter of 33 is a quarter of 32 once it is whole.
        """
        for one in group.apart()[:-1]:
            for other in dict.fromkeys((size, *group.others())):
                others = self._captured(one, other)
                if others is not None and not self._same(trial, others, one, other):
                    return
                if not any(comparison.in_doubt for comparison in self._comparisons):
                    break

    def _captured(self, group: Group, size: int) -> list[CaptureRun] | None:
        """The model at another size; None if it does not take it."""
        inputs = resized(self._inputs, {group: size})
        try:
            return self._again(inputs, self._runs)
        except (NotCapturedError, InputError):
            return None
        except NotHashedError:  # it was met on the way, and need not be what stopped the run
            if self._takes(inputs):
                raise
            return None

    def _takes(self, inputs: ExampleInputs) -> bool:
        try:
            fake_run(self._model, inputs)
        except InputError as error:
            return asks_values(error.__cause__)  # nobody knows
        return True

    def _same(self, trial: _Trial, others: list[CaptureRun], group: Group, size: int) -> list[CaptureRun]:
        """Captures at another size, if they are the same; none if something differs, which is noted."""
        found = self._compare(others, group, size)
        # Code that decides by a size may remember what it decided, as plans of contractions are kept by their sizes: of
        # two sizes, the model may have met one before. By the second capture it has met both. What has remembered
        # nothing of one size remembers none.
        if found is not None and trial.may_remember and self._lengths(others) != self._lengths(self._runs):
            again = self._captured(group, size)
            trial.may_remember = again is None or self._lengths(again) != self._lengths(others)
            if again is not None and trial.may_remember:
                others, found = again, self._compare(again, group, size)
        if group not in self._tried or (found is None and size > trial.largest):  # where most is of another size
            self._tried[group] = others, size
        if found is None:
            trial.largest = max(trial.largest, size)
            decisions = [decision for one in self._comparisons for decision in one.decisions]
            trial.difference = decisions[0] if decisions else trial.difference
            trial.note(decisions)
            return others
        trial.difference, trial.differed = trial.difference or found, (others, size)
        trial.note([found])
        trial.decides = found.is_checked  # perhaps otherwise at another size
        if not trial.decides:
            trial.taken = None
        return []

    @staticmethod
    def _lengths(runs: list[CaptureRun]) -> list[int]:
        return [len(run.graph.nodes) for run in runs]

    def _apart(self, group: Group, trial: _Trial) -> list[InputSize]:
        """Each dimension alone, where that explains how all together differ, as areas do; else nothing."""
        told = []
        for one in group.apart():
            alone = self._trial(one)
            if alone.taken is None:
                return []
            told.append(self._told_of(one, alone))
        if not told or trial.differed is None or self._compare(trial.differed[0], group, trial.differed[1]) is not None:
            return []
        return told

    def _compare(self, others: list[CaptureRun], group: Group, size: int) -> Difference | None:
        for comparison, other in zip(self._comparisons, others, strict=False):
            if (difference := comparison.with_other(other, group, size)) is not None:
                return difference
        return None

    def _fix(self, group: Group, difference: Difference) -> InputSize:
        """Let the graphs check the size."""
        self._fixed.append((group, difference))
        told = self._told(group, str(difference))
        if group.is_batch:
            self._announce(told, "batches", difference)
        return told

    def _told_of(self, group: Group, trial: _Trial) -> InputSize:
        (self._free if trial.largest >= 2 * group.size else self._near).append(group)
        told = self._told(group, decided=str(trial.difference or ""))
        if told.decided:
            self._decided[told] = group, trial.checks
        return told

    def _announce(self, told: InputSize, batches: str, difference: Difference | None) -> None:
        note = (
            f"the graph takes {batches} of {told.size} only, for code makes Python numbers of the batch size, or "
            f"decides by it: see {difference}. Other batches raise an error; give example inputs of the size that you "
            "train with, or let the code leave sizes to torch, such as -1 in a reshape"
        )
        self.notes.append((told, note))

    def run_on_larger(self) -> CaptureRun | None:
        """The evaluation in which all sizes of 1 are larger; None if it is not the same."""
        return self._on_larger

    def _run_on_larger(self) -> CaptureRun | None:
        if len(self.larger) <= 1:
            return self._others[next(iter(self.larger))][0] if self.larger else None
        try:
            others = self._again(resized(self._inputs, self.larger), self._runs)
        except (NotCapturedError, InputError):
            self.larger = {}
            return None
        same = len(others[0].graph.nodes) == len(self._runs[0].graph.nodes)
        return others[0] if same else None
