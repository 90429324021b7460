"""Passes: small immutable objects, called with a GraphModule, that return a torch.fx ``PassResult``.

So each runs alone, in our ``Pipeline`` or in any torch.fx pass manager. An ``Analysis`` reads and provides a typed
result; a ``Pass`` transforms, and drops every result that it does not say it preserves.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar

import torch
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassResult

from fx_oto.analysis.tape import Tape
from fx_oto.core.context import Context
from fx_oto.core.errors import FxOtoError, FxOtoWarning, MissingResultError, PassError
from fx_oto.core.fx_utils import graph_copy
from fx_oto.core.interrupts import interrupts_held
from fx_oto.core.memory import PeakMemory
from fx_oto.core.preserve import without_autocast
from fx_oto.core.records import PassRecord, Snapshot
from fx_oto.framework.integrity import REMEDY, check_integrity, check_notes
from fx_oto.framework.shared import Shared

__all__ = ["Analysis", "Pass", "Stage", "Verify", "missing", "provider"]

_Made = TypeVar("_Made")

# Whether the graph is checked after a pass that changed it: True leaves out the trusted ones, "all" does not.
Verify = bool | Literal["all"]


@dataclass(frozen=True)
class Stage(ABC):
    """The base of all passes: subclass ``Analysis`` or ``Pass``.

    Its options are the fields of a frozen dataclass.

    Attributes:
        name: what pipelines, records and errors call it, such as ``"fold-dropout"``.
        requires: types of the results that it asks the context for.
        provides: types of the results that it adds to the context.
        trusted: the result is right by construction, so it need not be run to be checked: the pass writes into no
            tensor, each node that it makes or changes carries its value, and ``macs`` counts without a run. True for
            the passes of fx_oto itself; subclasses do not inherit it, as they may do something else.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[type, ...]] = ()
    provides: ClassVar[tuple[type, ...]] = ()
    trusted: ClassVar[bool] = False

    def __call__(self, graph_module: GraphModule, *, verify: Verify = True) -> PassResult:
        """Run on a GraphModule, whose graph and modules are never changed; results and record go to its ``meta``.

        Args:
            graph_module: one that was traced or prepared.
            verify: check a graph that was changed: it is well formed, runs on the example inputs, and takes and
                returns what it did; and count its multiply-adds. ``"all"`` checks it after a trusted pass as well,
                as True does where the environment variable ``FX_OTO_VERIFY`` is ``all``.

        Raises:
            MissingResultError: a result that it requires is not there; names the pass that provides it.
            PassError: it failed, or left a graph that is not sound; names the pass and the node.
        """
        context = Context.of(graph_module)
        self._check_required(context)
        before = Snapshot.of(graph_module, _counted(context))
        start = time.perf_counter()
        with interrupts_held(), PeakMemory() as memory:
            gm, macs = self._safely(lambda: self._result(graph_module, context, _resolved(verify)))
        seconds = time.perf_counter() - start
        after = Snapshot.of(gm, macs) if gm is not graph_module else before
        now = Context.of(gm)
        record = PassRecord(
            name=self.name,
            options=repr(self),
            seconds=seconds,
            peak_memory=memory.bytes,
            before=before,
            after=after,
            modified=gm is not graph_module,
            refusals=self._safely(lambda: tuple(self.refusals(gm, now))),
        )
        replace(now, records=(*now.records, record)).attach(gm)
        return PassResult(gm, gm is not graph_module)

    def refusals(self, gm: GraphModule, context: Context) -> Iterable[str]:
        """List what was kept whole or left undone, each with the reason; called after each run, for the report.

        Args:
            gm: what came out of the run.
            context: its context, with the result of an analysis.
        """
        return ()

    @abstractmethod
    def _run(self, gm: GraphModule, context: Context) -> GraphModule:
        """Run on ``gm`` and return the result: ``gm`` itself if nothing changed."""

    def macs(self, before: int | None, context: Context) -> int | None:
        """Count the multiply-adds of the result of a trusted pass.

        Args:
            before: multiply-adds of the input; None if they are not known.
            context: the context of the result.
        """
        return before

    @property
    def _is_trusted(self) -> bool:
        return bool(vars(type(self)).get("trusted", False))

    def _result(self, gm: GraphModule, context: Context, verify: Verify) -> tuple[GraphModule, int | None]:
        watched = verify == "all" or not self._is_trusted
        with torch.inference_mode(False), without_autocast():  # what is made is to be trained
            with Shared(gm, self.name) if watched else nullcontext():
                made = self._run(gm, context)
            if made is gm:
                return gm, _counted(context)
            made.recompile()
            macs = self.macs(_counted(context), Context.of(made)) if self._is_trusted else None
            if not verify or not watched:
                return made, macs
            if self._is_trusted:
                check_notes(self.name, gm, made, Context.of(made).inputs, macs)
                return made, macs
            return made, check_integrity(self.name, gm, made, context.inputs).macs

    def _safely(self, work: Callable[[], _Made]) -> _Made:
        """Call the author's code; an error that it raises is raised again with the name of the pass."""
        try:
            return work()
        except (FxOtoError, FxOtoWarning):  # a warning, where the user has made errors of them
            raise
        except Exception as error:
            raise PassError(
                f"the pass {self.name!r} ({self!r}) failed: {type(error).__name__}: {error}{REMEDY}"
            ) from error

    def _check_required(self, context: Context) -> None:
        for kind in self.requires:
            if kind not in context.results:
                raise missing(self, kind, context)


class Analysis(Stage):
    """A read-only pass: implement ``analyse``, which returns an immutable result.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch, fx_oto
        >>> @dataclass(frozen=True)
        ... class NodeCount:
        ...     count: int
        >>> class CountNodes(fx_oto.Analysis):
        ...     name = "count-nodes"
        ...     provides = (NodeCount,)
        ...     def analyse(self, gm, context):
        ...         return NodeCount(len(gm.graph.nodes))
        >>> gm = CountNodes()(fx_oto.trace(torch.nn.ReLU(), torch.randn(2))).graph_module
        >>> fx_oto.Context.of(gm).get(NodeCount)
        NodeCount(count=3)
    """

    @abstractmethod
    def analyse(self, gm: GraphModule, context: Context) -> object:
        """Read ``gm`` and return an instance of a class of its own, by which others find it in the context.

        Args:
            gm: not to be changed.
            context: results of earlier analyses, and the example inputs.
        """

    def _run(self, gm: GraphModule, context: Context) -> GraphModule:
        result = self.analyse(gm, context)
        if type(result).__module__ == "builtins" or (self.provides and type(result) not in self.provides):
            expected = (
                " or ".join(kind.__name__ for kind in self.provides)
                or "an instance of its own class, such as a frozen dataclass"
            )
            raise PassError(
                f"the analysis {self.name!r} must return {expected} (results are looked up by type); it returned "
                f"{type(result).__name__}"
            )
        return context.provide(result).attach(gm)


class Pass(Stage):
    """A transformation: implement ``transform``, which changes the copy it is given and says whether it did.

    Attributes:
        preserves: types of the results that stay true; every other one is dropped when something changed.

    Example:
        >>> import torch, fx_oto
        >>> class DropIdentity(fx_oto.Pass):
        ...     name = "drop-identity"
        ...     def transform(self, gm, context):
        ...         modules = dict(gm.named_modules())
        ...         found = [n for n in gm.graph.nodes if isinstance(modules.get(n.target), torch.nn.Identity)]
        ...         for node in found:
        ...             node.replace_all_uses_with(node.args[0])
        ...             gm.graph.erase_node(node)
        ...         return gm if found else None
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Identity())
        >>> gm = DropIdentity()(fx_oto.trace(net, torch.randn(2, 4))).graph_module
        >>> fx_oto.report(gm).records[0].nodes
        (4, 3)
    """

    preserves: ClassVar[tuple[type, ...]] = ()

    @abstractmethod
    def transform(self, gm: GraphModule, context: Context) -> GraphModule | None:
        """Change ``gm`` and return it; None for no change.

        Args:
            gm: a copy of the graph over the same modules and parameters, which are not to be written into.
            context: results of earlier analyses, and the example inputs.
        """

    def _run(self, gm: GraphModule, context: Context) -> GraphModule:
        copy = graph_copy(gm, coded=not self._is_trusted)
        changed = self.transform(copy, context)
        if changed is None and str(copy.graph) != str(gm.graph):
            raise PassError(
                f"the pass {self.name!r} returned None, which means no change, but it has changed the graph: return "
                "the GraphModule"
            )
        if changed is None:
            return gm
        if not isinstance(changed, GraphModule):
            raise PassError(
                f"the pass {self.name!r} must return the GraphModule that it changed, or None if it changed nothing; "
                f"found {type(changed).__name__}"
            )
        if not self._is_trusted:
            changed.delete_all_unused_submodules()  # what no node calls any more is no part of the model
        now: Context = changed.meta.get("fx_oto", context)
        if now.original is not None and not self._is_trusted:  # what was captured may not be what this computes
            now = replace(now, original=now.original.without_model())
        fresh = [kind for kind, result in now.results.items() if result is not context.results.get(kind)]
        now.keep((*self.preserves, *fresh), self.name).attach(changed)
        return changed


def missing(stage: Stage, kind: type, context: Context) -> MissingResultError:
    """The error that a stage asks for a result that is not there."""
    return MissingResultError(
        f"the pass {stage.name!r} needs {kind.__name__}, which is not known for this GraphModule{context.remedy(kind)}"
    )


def provider(kind: type) -> str:
    """The name of the pass that provides a result."""
    return str(getattr(kind, "provided_by", f"an analysis that provides {kind.__name__}"))


def _resolved(verify: Verify) -> Verify:
    return "all" if verify is True and os.environ.get("FX_OTO_VERIFY") == "all" else verify


def _counted(context: Context) -> int | None:
    """The multiply-adds of a GraphModule, as far as they are known."""
    tape = context.results.get(Tape)
    if tape is not None:
        return int(tape.macs)
    return context.records[-1].after.macs if context.records else None
