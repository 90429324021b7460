"""Passes and pipelines.

A pass is a small immutable object, called with a GraphModule, that returns a ``PassResult``; so it runs
alone, in our ``Pipeline`` or in any torch.fx pass manager. An ``Analysis`` reads and provides a typed result;
a ``Pass`` transforms, and drops every result that it does not say it preserves.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassResult

from fx_oto.context import Context
from fx_oto.errors import FxOtoError, PassError
from fx_oto.graph import graph_copy

__all__ = ["Analysis", "Pass", "PassRecord", "Pipeline", "register_pass", "registered_passes"]


@dataclass(frozen=True)
class PassRecord:
    """What one run of one pass did: its configuration, seconds, and nodes and parameters before and after."""

    name: str
    options: str
    seconds: float
    nodes: tuple[int, int]
    params: tuple[int, int]
    modified: bool


@dataclass(frozen=True)
class _Stage(ABC):
    name: ClassVar[str]

    def __call__(self, graph_module: GraphModule) -> PassResult:
        """Run on a GraphModule, whose graph and modules are never changed; results and record go to its ``meta``."""
        before = Context.of(graph_module)
        start = time.perf_counter()
        with torch.inference_mode(False):  # what is made is to be trained
            result = self._run(graph_module)
        seconds = time.perf_counter() - start
        gm = result.graph_module
        record = PassRecord(
            name=self.name,
            options=repr(self),
            seconds=seconds,
            nodes=(len(graph_module.graph.nodes), len(gm.graph.nodes)),
            params=(_params(graph_module), _params(gm)),
            modified=result.modified,
        )
        after = Context.of(gm)
        replace(after, records=(*before.records, record)).attach(gm)
        return result

    @abstractmethod
    def _run(self, gm: GraphModule) -> PassResult: ...


class Analysis(_Stage):
    """A read-only pass: implement ``analyse``, which returns an immutable result.

    Example:
        >>> from dataclasses import dataclass
        >>> import fx_oto
        >>> @dataclass(frozen=True)
        ... class NodeCount:
        ...     count: int
        >>> class CountNodes(fx_oto.Analysis):
        ...     name = "count-nodes"
        ...     def analyse(self, gm, context):
        ...         return NodeCount(len(gm.graph.nodes))
    """

    @abstractmethod
    def analyse(self, gm: GraphModule, context: Context) -> object:
        """Look at ``gm`` and return a result; it is then found by its type in the context."""

    def _run(self, gm: GraphModule) -> PassResult:
        context = Context.of(gm)
        context.provide(self.analyse(gm, context)).attach(gm)
        return PassResult(gm, False)


class Pass(_Stage):
    """A transformation: implement ``transform``, which changes the copy it is given and says whether it did.

    ``preserves`` names the types of results that stay true; every other one is dropped when something changed.
    """

    preserves: ClassVar[tuple[type, ...]] = ()

    @abstractmethod
    def transform(self, gm: GraphModule, context: Context) -> GraphModule | None:
        """Change ``gm``, a copy that shares its leaf modules with the input, and return it; None for no change."""

    def _run(self, gm: GraphModule) -> PassResult:
        context = Context.of(gm)
        changed = self.transform(graph_copy(gm), context)
        if changed is None:
            return PassResult(gm, False)
        changed.graph.lint()
        changed.recompile()
        now = Context.of(changed)
        fresh = [kind for kind, result in now.results.items() if result is not context.results.get(kind)]
        now.keep((*self.preserves, *fresh)).attach(changed)
        return PassResult(changed, True)


@dataclass(frozen=True)
class Pipeline:
    """An immutable sequence of passes.

    Args:
        stages: the passes, in order.
        on_pass: called with each ``PassRecord`` after its pass.
    """

    stages: tuple[_Stage, ...]
    on_pass: Callable[[PassRecord], None] | None = None

    def __iter__(self) -> Iterator[_Stage]:
        return iter(self.stages)

    def __call__(self, gm: GraphModule) -> PassResult:
        """Run every pass on the result of the one before.

        Raises:
            PassError: a pass failed with an error that is not ours; names the pass.
        """
        modified = False
        for stage in self.stages:
            try:
                result = stage(gm)
            except FxOtoError:
                raise
            except Exception as error:
                raise PassError(
                    f"the pass {stage.name!r} ({stage!r}) failed: {type(error).__name__}: {error}"
                ) from error
            gm, modified = result.graph_module, modified or result.modified
            if self.on_pass is not None:
                self.on_pass(Context.of(gm).records[-1])
        return PassResult(gm, modified)

    def run(self, gm: GraphModule) -> GraphModule:
        """Run every pass and return the GraphModule that comes out."""
        result: GraphModule = self(gm).graph_module
        return result

    def insert_after(self, name: str, *stages: _Stage) -> Pipeline:
        """A pipeline with ``stages`` after the pass called ``name``."""
        at = self._position(name) + 1
        return replace(self, stages=(*self.stages[:at], *stages, *self.stages[at:]))

    def without(self, name: str) -> Pipeline:
        """A pipeline without the pass called ``name``."""
        at = self._position(name)
        return replace(self, stages=(*self.stages[:at], *self.stages[at + 1 :]))

    def _position(self, name: str) -> int:
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise PassError(f"no pass is called {name!r}; this pipeline has {', '.join(names)}")
        return names.index(name)


_Kind = TypeVar("_Kind", bound=type[_Stage])
_registered: dict[str, type[_Stage]] = {}


def register_pass(kind: _Kind) -> _Kind:
    """Class decorator: list a pass by its name.

    Raises:
        PassError: the class has no name, or another pass has it.
    """
    name = getattr(kind, "name", None)
    if not name:
        raise PassError(f"{kind.__name__} needs a class attribute name, such as name = 'my-pass'")
    if _registered.get(name, kind) is not kind:
        raise PassError(f"a pass called {name!r} is registered already: {_registered[name].__name__}")
    _registered[name] = kind
    return kind


def registered_passes() -> dict[str, type[_Stage]]:
    """The passes that users registered, by name."""
    return dict(_registered)


def _params(gm: GraphModule) -> int:
    return sum(parameter.numel() for parameter in gm.parameters())
