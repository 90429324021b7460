"""Pipelines: immutable sequences of passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fx_oto.core.context import Context, Untraced
from fx_oto.core.errors import FxOtoError, PassError, SettingsError
from fx_oto.core.preserve import on_cpu, uncollected
from fx_oto.core.records import PassRecord
from fx_oto.core.tables import Tabular, table
from fx_oto.core.unused import with_parameters
from fx_oto.framework.authoring import as_stage
from fx_oto.framework.stages import Pass, Stage, Verify, missing, provider
from fx_oto.zigs.partition import Partition

__all__ = ["Pipeline"]


@dataclass(frozen=True)
class Pipeline(Tabular):
    """An immutable sequence of passes: every method that changes it returns a new one.

    Iterating yields the passes; ``str()`` is a table of them, and a notebook shows it as HTML.

    Args:
        stages: the passes, in order; a registered one may be given by its name, those of another pipeline by itself,
            and passes of torch.fx (``PassBase``) as they are.
        on_pass: called with each ``PassRecord`` after its pass.
        verify: check the graph after each pass that changed it, by ``"all"`` after those of fx_oto as well; see
            ``Stage``.

    Raises:
        PassError: something is not a pass, two different passes have one name, or a method is given a name that is not
            that of exactly one pass here.
        SettingsError: ``on_pass`` cannot be called.

    Example:
        >>> import fx_oto
        >>> pipeline = fx_oto.default_pipeline().without("mask-insertion")
        >>> [stage.name for stage in pipeline]
        ['dependency-analysis', 'zig-partition']
    """

    stages: tuple[Stage, ...]
    on_pass: Callable[[PassRecord], object] | None = None
    verify: Verify = True

    def __post_init__(self) -> None:
        given: Any = self.stages
        if isinstance(given, str | type) or not isinstance(given, Iterable):
            raise PassError(f"a pipeline is made of a sequence of passes, such as ({given!r},); found {given!r} alone")
        parts = [one.stages if isinstance(one, Pipeline) else (as_stage(one),) for one in given]
        stages = tuple(stage for part in parts for stage in part)
        kinds: dict[str, type[Stage]] = {}
        for stage in stages:
            other = kinds.setdefault(stage.name, type(stage))
            if other is not type(stage):
                raise PassError(
                    f"two different passes of this pipeline are called {stage.name!r}: {other.__qualname__} and "
                    f"{type(stage).__qualname__}. Give one of them another name"
                )
        object.__setattr__(self, "stages", stages)
        if self.on_pass is not None and not callable(self.on_pass):
            raise SettingsError(f"on_pass must take a PassRecord, as print does; found {self.on_pass!r}")

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def __call__(self, gm: GraphModule) -> PassResult:
        """Run every pass on the result of the one before.

        Once it has a ``Partition``, a graph of ``trace`` also holds the parameters of its model that it does not use.

        Args:
            gm: one that was traced or prepared; its graph is not changed.

        Returns:
            What comes out, and whether any pass has modified it, as passes of torch.fx do.

        Raises:
            MissingResultError: ``gm`` carries no context, or a result is missing that no pass here provides.
            PassError: a pass failed or left a graph that is not sound, or a result would be missing where a pass
                needs it: known before the first one runs.
        """
        given = Context.of(gm)
        self._check_order(given)
        modified = False
        for stage in self.stages:
            with uncollected(), on_cpu():
                result = stage(gm, verify=self.verify)
            gm, modified = result.graph_module, modified or result.modified
            if self.on_pass is not None:
                self.on_pass(Context.of(gm).records[-1])
        return PassResult(_whole(gm, given), modified)

    def run(self, gm: GraphModule) -> GraphModule:
        """Run every pass on ``gm`` and return the GraphModule that comes out; see ``__call__``.

        Example:
            >>> import torch, fx_oto
            >>> gm = fx_oto.trace(torch.nn.Linear(4, 8), torch.randn(2, 4))
            >>> [record.name for record in fx_oto.report(fx_oto.default_pipeline().run(gm)).records]
            ['dependency-analysis', 'zig-partition', 'mask-insertion']
        """
        result: GraphModule = self(gm).graph_module
        return result

    def append(self, *stages: Given) -> Pipeline:
        """A pipeline with ``stages`` at its end."""
        return self._of(*self.stages, *stages)

    def insert_before(self, name: str, *stages: Given) -> Pipeline:
        """A pipeline with ``stages`` before the pass called ``name``."""
        return self._with(name, 0, 0, stages)

    def insert_after(self, name: str, *stages: Given) -> Pipeline:
        """A pipeline with ``stages`` after the pass called ``name``."""
        return self._with(name, 1, 1, stages)

    def replace(self, name: str, *stages: Given) -> Pipeline:
        """A pipeline with ``stages`` in the place of the pass called ``name``."""
        return self._with(name, 0, 1, stages)

    def without(self, name: str) -> Pipeline:
        """A pipeline without the pass called ``name``."""
        return self._with(name, 0, 1, ())

    def _with(self, name: str, start: int, end: int, stages: Iterable[Any]) -> Pipeline:
        names = [stage.name for stage in self.stages]
        if names.count(name) != 1:
            found = "no pass is" if name not in names else f"{names.count(name)} passes are"
            raise PassError(f"{found} called {name!r}; this pipeline has {', '.join(names) or 'no passes'}")
        at = names.index(name)
        return self._of(*self.stages[: at + start], *stages, *self.stages[at + end :])

    def _of(self, *stages: Any) -> Pipeline:
        return replace(self, stages=stages)

    def _check_order(self, context: Context) -> None:
        """Every result must be there when it is needed, whatever the passes before change."""
        known, dropped = set(context.results), dict[type, str]()
        for position, stage in enumerate(self.stages):
            for kind in stage.requires:
                if kind not in known:
                    raise self._missing(stage, kind, dropped.get(kind), position, context)
            if isinstance(stage, Pass):
                lost = known.difference(stage.preserves)
                dropped.update(dict.fromkeys(lost, stage.name))
                known -= lost
            known.update(stage.provides)

    def _missing(self, stage: Stage, kind: type, dropped_by: str | None, position: int, context: Context) -> FxOtoError:
        needs = f"the pass {stage.name!r} needs {kind.__name__}"
        if dropped_by is not None:
            return PassError(
                f"{needs}, which {dropped_by!r} before it drops when it changes the graph: move {dropped_by!r} before "
                f"{provider(kind)!r}, run that again after it, or let its class say that it stays true, preserves = "
                f"({kind.__name__},)"
            )
        later = next((other.name for other in self.stages[position:] if kind in other.provides), None)
        if later is not None:
            return PassError(f"{needs}, which {later!r} provides only after it: move {stage.name!r} after {later!r}")
        return missing(stage, kind, context)

    def to_dict(self) -> dict[str, Any]:
        """``passes``: of each its name, options, and the names of what it requires, provides and preserves."""
        return {
            "passes": [
                {
                    "name": stage.name,
                    "options": repr(stage),
                    "requires": _names(stage.requires),
                    "provides": _names(stage.provides),
                    "preserves": _names(stage.preserves) if isinstance(stage, Pass) else "everything",
                }
                for stage in self.stages
            ]
        }

    def _tables(self, style: str) -> tuple[str]:
        rows = [(stage.name, *map(_listed, (stage.requires, stage.provides)), _kept(stage)) for stage in self.stages]
        return (table(rows, ("pass", "requires", "provides", "preserves"), style),)


def _whole(gm: GraphModule, given: Context) -> GraphModule:
    """What is prepared holds the parameters that its graph does not use as well, of the model that was captured."""
    untraced = given.results.get(Untraced)
    model = None if given.original is None else given.original.model
    if untraced is None or model is None or Partition not in Context.of(gm).results:
        return gm
    return with_parameters(gm, model, untraced.shapes)


def _names(kinds: Iterable[type]) -> list[str]:
    return [kind.__name__ for kind in kinds]


def _listed(kinds: Iterable[type]) -> str:
    return ", ".join(_names(kinds))


def _kept(stage: Stage) -> str:
    return _listed(stage.preserves) if isinstance(stage, Pass) else "everything"


# A pass, the name of a registered one, a pass of torch.fx, or several of them.
Given: TypeAlias = "Stage | str | PassBase | Pipeline"
