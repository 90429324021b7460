"""Passes of your own: made of a class or of a function, and listed by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase

from fx_oto.core.context import Context
from fx_oto.core.errors import PassError
from fx_oto.framework.stages import Analysis, Pass, Stage

_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_OPTIONS = (inspect.Parameter.KEYWORD_ONLY, *_OPEN)

__all__ = ["analysis_pass", "as_stage", "register_pass", "registered_passes", "transformation_pass"]


def transformation_pass(
    function: Callable[..., GraphModule | None] | None = None,
    *,
    name: str | None = None,
    requires: tuple[type, ...] = (),
    provides: tuple[type, ...] = (),
    preserves: tuple[type, ...] = (),
) -> Any:
    """Decorator: make a ``Pass`` of a function ``(gm)`` or ``(gm, context)``; see ``Pass.transform``.

    Args:
        function: changes the copy it is given and returns it, or None if there was nothing to change.
        name: of the pass; by default the function's, with hyphens.
        requires: types of the results that it asks the context for.
        provides: types of the results that it adds to the context.
        preserves: types of the results that stay true.

    Raises:
        PassError: the function takes something else.

    Example:
        >>> import torch, fx_oto
        >>> @fx_oto.transformation_pass
        ... def relu_to_silu(gm):
        ...     found = gm.graph.find_nodes(op="call_function", target=torch.relu)
        ...     for node in found:
        ...         node.target = torch.nn.functional.silu
        ...     return gm if found else None
        >>> relu_to_silu.name
        'relu-to-silu'
    """
    return _made_of(function, Pass, "transform", name, requires=requires, provides=provides, preserves=preserves)


def analysis_pass(
    function: Callable[..., object] | None = None,
    *,
    name: str | None = None,
    requires: tuple[type, ...] = (),
) -> Any:
    """Decorator: make an ``Analysis`` of a function ``(gm)`` or ``(gm, context)`` that returns its result.

    Args:
        function: reads the GraphModule and returns an object of a class of its own, which its annotation names.
        name: of the pass; by default the function's, with hyphens.
        requires: types of the results that it asks the context for.

    Raises:
        PassError: the function takes something else, or does not say what it returns.

    Example:
        >>> from dataclasses import dataclass
        >>> import fx_oto
        >>> @dataclass(frozen=True)
        ... class Depth:
        ...     nodes: int
        >>> @fx_oto.analysis_pass
        ... def depth(gm) -> Depth:
        ...     return Depth(len(gm.graph.nodes))
        >>> depth.provides
        (<class 'fx_oto.framework.authoring.Depth'>,)
    """

    def made(function: Callable[..., object]) -> Any:
        result = _returned(function)
        if not isinstance(result, type):
            raise PassError(
                f"the analysis {function.__name__!r} needs a return annotation, a class of its own by which its result "
                f"is looked up, such as def {function.__name__}(gm) -> MyResult; found {result}"
            )
        return _made_of(function, Analysis, "analyse", name, requires=requires, provides=(result,))

    return made if function is None else made(function)


def _returned(function: Callable[..., object]) -> Any:
    """The class that a function says it returns; as text, it is looked up where the function would find it."""
    named = inspect.get_annotations(function).get("return")
    if not isinstance(named, str):
        return named
    try:
        return eval(named, function.__globals__, dict(inspect.getclosurevars(function).nonlocals))
    except Exception:  # whatever it is, it names no class
        return named


def _made_of(function: Any, base: Any, method: str, name: str | None, **attributes: Any) -> Any:
    def made(function: Any) -> Stage:
        parameters = inspect.signature(function).parameters.values()
        takes = len(parameters)
        if takes not in (1, 2) or any(one.default is not one.empty or one.kind in _OPTIONS for one in parameters):
            raise PassError(
                f"a pass can be made from a function of (gm) or (gm, context); {function.__name__!r} takes "
                f"{inspect.signature(function)}. For options, write a class with fields"
            )

        def run(_: Stage, gm: GraphModule, context: Context) -> Any:
            return function(gm, context) if takes == 2 else function(gm)

        body = {"name": name or function.__name__.replace("_", "-"), method: run, **attributes}
        body |= {"__module__": function.__module__, "__qualname__": function.__qualname__, "__doc__": function.__doc__}
        stage: Stage = type(function.__name__, (base,), body)()
        return stage

    return made if function is None else made(function)


_registered: dict[str, type[Stage]] = {}


@dataclass(frozen=True)
class _OfTorch(Pass):
    torchs: PassBase

    @property
    def name(self) -> str:  # type: ignore[override]
        """That of its class, with hyphens."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", type(self.torchs).__name__).lower()

    def transform(self, gm: GraphModule, context: Context) -> GraphModule | None:
        """Run the pass of torch.fx."""
        result = self.torchs(gm)
        return result.graph_module if result is not None and result.modified else None


def as_stage(given: Any) -> Stage:
    """Return a given pass, the registered one of a name, or a wrapped one of torch.fx.

    Raises:
        PassError: it is none of these.
    """
    if isinstance(given, str):
        if given not in _registered:
            raise PassError(
                f"no registered pass is called {given!r}; registered are: {', '.join(_registered) or 'none'}. Decorate "
                "its class with @fx_oto.register_pass, or give the pass itself"
            )
        return _registered[given]()
    if isinstance(given, PassBase):
        return _OfTorch(given)
    if isinstance(given, Stage):
        if not getattr(given, "name", None):
            raise PassError(_nameless(type(given)))
        return given
    hint = f"an object of the class, {given.__name__}(…)" if isinstance(given, type) else "one"
    hint = (
        "@fx_oto.transformation_pass or @fx_oto.analysis_pass to make a pass of a function"
        if _is_function(given)
        else hint
    )
    raise PassError(f"a pipeline holds passes, found {given!r}: give {hint}")


def _is_function(given: Any) -> bool:
    return callable(given) and not isinstance(given, type)


def _nameless(kind: type[Stage]) -> str:
    return f"{kind.__name__} needs a class attribute name, such as name = 'my-pass'"


def register_pass(kind: Any) -> Any:
    """Decorator: list a pass by its name, under which pipelines then take it.

    Args:
        kind: a class whose options all have defaults, or what ``fx_oto.transformation_pass`` and
            ``fx_oto.analysis_pass`` make.

    Raises:
        PassError: it is not a pass, has no name, or another pass has that name.

    Example:
        >>> import fx_oto
        >>> @fx_oto.register_pass
        ... @fx_oto.transformation_pass
        ... def drop_dead_code(gm):
        ...     return gm if gm.graph.eliminate_dead_code() else None
        >>> pipeline = fx_oto.default_pipeline().insert_before("dependency-analysis", "drop-dead-code")
        >>> [stage.name for stage in pipeline][:2]
        ['drop-dead-code', 'dependency-analysis']
    """
    stage = kind if isinstance(kind, type) else type(kind)
    if not issubclass(stage, Stage):
        raise PassError(
            f"register_pass takes a subclass of fx_oto.Pass or fx_oto.Analysis, found {kind!r}. Below it, "
            "@fx_oto.transformation_pass or @fx_oto.analysis_pass makes a pass of a function"
        )
    name = getattr(stage, "name", None)
    if not name:
        raise PassError(_nameless(stage))
    _check_by_name(kind, stage)
    other = _registered.get(name, stage)
    if (other.__module__, other.__qualname__) != (stage.__module__, stage.__qualname__):  # else a cell was run again
        raise PassError(
            f"a pass called {name!r} is already registered: {other.__module__}.{other.__qualname__}. Give this one "
            "another name"
        )
    _registered[name] = stage
    return kind


def _check_by_name(kind: Any, stage: type[Stage]) -> None:
    """Refuse a pass that cannot be made again from its class alone."""
    parameters = inspect.signature(stage).parameters.values()
    if needed := [one.name for one in parameters if one.default is one.empty and one.kind not in _OPEN]:
        raise PassError(
            f"{stage.__name__} cannot be registered, because {', '.join(needed)} has no default: give every option a "
            "default, or put the pass itself into pipelines"
        )
    if isinstance(kind, Stage) and kind != stage():
        raise PassError(
            f"{kind!r} has options, but only its class {stage.__name__} can be registered, and its options would be "
            "lost: put the pass itself into pipelines"
        )


def registered_passes() -> dict[str, type[Stage]]:
    """The passes that were registered, by name.

    Example:
        >>> import fx_oto
        >>> isinstance(fx_oto.registered_passes(), dict)
        True
    """
    return dict(_registered)
