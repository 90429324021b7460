"""What users teach the analysis: rules for ops, and for module classes that are called as a whole."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils.flop_counter import flop_registry

from fx_oto.analysis.engine import Propagation, Rule, Said
from fx_oto.analysis.labels import Layer
from fx_oto.analysis.tape import OpCall
from fx_oto.core.errors import FxOtoError, RuleError
from fx_oto.core.fx_utils import file_shown
from fx_oto.nn.leaves import Attribute, Leaf, LeafOp, leaves
from fx_oto.ops import refusals

__all__ = [
    "register_leaf",
    "register_rule",
    "registered_rules",
    "rule_of",
    "taught",
    "temporary_rules",
    "unregister_rule",
]

_rules: dict[Any, Taught] = {}


def register_rule(op: Any, rule: Rule | None = None, *, replace: bool = False) -> Any:
    """Teach the analysis what an operator does to channels, in front of what it knows by itself.

    Args:
        op: ``torch.ops.mylib.scale`` with all its overloads, one of them, such as ``torch.ops.mylib.scale.default``, or
            what ``torch.library.custom_op`` returned. An op that writes into its arguments cannot be taught.
        rule: one of ``fx_oto.kinds``, or a function of the call (``fx_oto.analysis.tape.OpCall``) and the engine
            (``fx_oto.analysis.engine.Propagation``). Without it, a decorator is returned.
        replace: whether another rule for the op may be replaced. The function or kind of the same name always may, so
            that a notebook's cell can be run again.

    Returns:
        The rule, or a decorator that returns it.

    Raises:
        RuleError: ``op`` or ``rule`` is something else, or the op has another rule.

    Example:
        >>> import torch, fx_oto
        >>> with fx_oto.temporary_rules():
        ...     fx_oto.register_rule(torch.ops.aten.erfinv, fx_oto.kinds.elementwise())
        ...
        ...     @fx_oto.register_rule(torch.ops.aten.lgamma.default)
        ...     def lgamma(call, p):
        ...         p.freeze_value(call.args[0], "lgamma is kept whole here")
        elementwise()
    """
    overloads = _overloads(op)
    if rule is None:
        return lambda given: register_rule(op, given, replace=replace)
    _check_callable(rule, f"the rule of {overloads[0]}")
    for overload in overloads:
        _check_free(str(overload), _rules.get(overload), rule, replace)
    for overload in overloads:
        _forget(overload)
        _rules[overload] = Taught(rule)
        _count(overload)
    return rule


def register_leaf(
    kind: Any, rule: Rule | None = None, *, attributes: Mapping[str, Attribute] | None = None, replace: bool = False
) -> Any:
    """Teach the analysis a module class: it is called as a whole, whatever its ``forward`` does inside.

    Tracing makes one ``call_module`` of it, the analysis sees one call whose arguments are those of ``forward`` by
    name, then its parameters and buffers, and slicing cuts those and sets the attributes. A class stands for itself
    and not for its subclasses; a module with hooks of the user's, and any in a graph of ``torch.export``, is seen
    through all the same. ``forward`` must not write into what it is given.

    Args:
        kind: the class.
        rule: as for ``register_rule``. Without it, a decorator is returned.
        attributes: attributes of the module that follow its parameters: the name of a parameter and the dimension whose
            size they are, or a function of the module once it is cut. Names may have dots.
        replace: as for ``register_rule``.

    Returns:
        The rule, or a decorator that returns it.

    Raises:
        RuleError: ``kind`` or ``rule`` is something else, or the class has another rule.

    Example:
        >>> import torch, fx_oto
        >>> class Gain(torch.nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.channels, self.weight = channels, torch.nn.Parameter(torch.ones(channels))
        ...     def forward(self, x):
        ...         return x * self.weight if x.sum() > 0 else x * self.weight * 2
        >>> with fx_oto.temporary_rules():
        ...     rule = fx_oto.kinds.elementwise("...c,c->...c")
        ...     fx_oto.register_leaf(Gain, rule, attributes={"channels": ("weight", 0)})
        elementwise('...c,c->...c')
    """
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)) or kind is nn.Module:
        raise RuleError(f"register_leaf expects a class of modules, found {kind!r}; for an op, register_rule")
    if rule is None:
        return lambda given: register_leaf(kind, given, attributes=attributes, replace=replace)
    _check_callable(rule, f"the rule of {kind.__name__}")
    for name, source in (attributes or {}).items():
        if not callable(source) and not (isinstance(source, tuple) and list(map(type, source)) == [str, int]):
            raise RuleError(
                f"the attribute {name!r} of {kind.__name__}: expected a parameter and a dimension, such as "
                f"('weight', 0), or a function of the module, found {source!r}"
            )
    _check_free(kind.__name__, leaves[kind].rule if kind in leaves else None, rule, replace)
    leaves[kind] = Leaf(Taught(rule), dict(attributes or {}))
    return rule


def unregister_rule(subject: Any) -> None:
    """Forget what ``register_rule`` or ``register_leaf`` was told about an op or a module class.

    Args:
        subject: what was given to them.

    Raises:
        RuleError: nothing is registered for it.

    Example:
        >>> import torch, fx_oto
        >>> rule = fx_oto.register_rule(torch.ops.aten.erfinv, fx_oto.kinds.elementwise())
        >>> fx_oto.unregister_rule(torch.ops.aten.erfinv)
    """
    if inspect.isclass(subject) and issubclass(subject, nn.Module):
        found = leaves.pop(subject, None) is not None
    else:
        registered = [overload for overload in _overloads(subject) if overload in _rules]
        found = bool(registered)
        for overload in registered:
            _forget(overload)
    if not found:
        raise RuleError(
            f"{subject} has no rule that could be forgotten: {', '.join(registered_rules()) or 'none'} have"
        )


def _forget(overload: OpOverload) -> None:
    """Drop an op's rule, and the formula for its multiply-adds that came with it, unless another overload has one."""
    _rules.pop(overload, None)
    packet = overload._overloadpacket
    if hasattr(flop_registry.get(packet), "contraction"):
        del flop_registry[packet]
        for other in [one for one in _rules if one._overloadpacket is packet]:
            _count(other)


def _count(overload: OpOverload) -> None:
    """Let torch count what an op with a rule multiplies, if the rule says so."""
    rule = _rules[overload].rule
    if hasattr(rule, "registered_for"):
        rule.registered_for(overload)


def registered_rules() -> dict[str, str]:
    """What is registered: for each op and module class by name, its rule.

    Example:
        >>> import torch, fx_oto
        >>> with fx_oto.temporary_rules():
        ...     rule = fx_oto.register_rule(torch.ops.aten.erfinv.default, fx_oto.kinds.elementwise())
        ...     fx_oto.registered_rules()["aten.erfinv.default"]
        'elementwise()'
    """
    return {str(op): _described(taught.rule) for op, taught in _rules.items()} | {
        ".".join(_name(kind)): _described(leaf.rule.rule) for kind, leaf in leaves.items()
    }


@contextmanager
def temporary_rules() -> Iterator[None]:
    """What is registered inside is forgotten at the end, and what was registered before is as it was.

    Example:
        >>> import torch, fx_oto
        >>> with fx_oto.temporary_rules():
        ...     rule = fx_oto.register_rule(torch.ops.aten.erfinv, fx_oto.kinds.elementwise())
    """
    rules, modules = dict(_rules), dict(leaves)
    try:
        yield
    finally:
        for overload in list(_rules):
            _forget(overload)
        _rules.update(rules)
        for overload in rules:
            _count(overload)
        leaves.clear()
        leaves.update(modules)


def rule_of(op: Any) -> Rule | None:
    """The rule that a user has registered for what stands on the tape."""
    if isinstance(op, LeafOp):
        leaf = leaves.get(type(op.module))
        return refusals.opaque if leaf is None else leaf.rule  # it was registered when the model was traced
    return _rules.get(op)


def taught(call: OpCall) -> str:
    """The rule that a user has registered for what a call calls, as errors name it; empty if there is none."""
    rule = rule_of(call.func)
    return f"the rule {_described(rule.rule)} of {call.name}" if isinstance(rule, Taught) else ""


@dataclass(frozen=True)
class Taught:
    """A rule of the user's: what it says is checked, and its errors name it."""

    rule: Any

    def __call__(self, call: OpCall, p: Propagation) -> None:
        """The rule."""
        tracked = [layer for value in call.inputs for layer in p.layers(value)]
        with p.watched() as said:
            try:
                self.rule(call, p)
            except FxOtoError as error:
                raise RuleError(f"{self._at(call, p)}: {error}") from error
            except Exception as error:
                frame = _own_frame(error, self.rule)
                where = f"{file_shown(frame.filename)}:{frame.lineno}"
                raise RuleError(f"{self._at(call, p)} failed at {where}: {type(error).__name__}: {error}") from error
        if problem := _problem(call, p, said, tracked):
            raise RuleError(f"{self._at(call, p)} {problem}")
        if getattr(self.rule, "mixing", True):
            p.mixes()

    def contracted(self, call: OpCall, p: Propagation) -> list[Layer]:
        """Layers along the axes that a call's multiply-adds grow with, as far as the rule says."""
        return list(self.rule.contracted(call, p)) if hasattr(self.rule, "contracted") else []

    def _at(self, call: OpCall, p: Propagation) -> str:
        reason = p.reason("")
        where = f"node {reason.node!r}" + (f" at {reason.source}" if reason.source else "")
        return f"the rule {_described(self.rule)} of {call.name} ({where})"


def _own_frame(error: Exception, rule: Any) -> traceback.FrameSummary:
    """Where in a rule it failed; where it is no plain function, where the error came up."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(getattr(rule, "__code__", None), "co_filename", None)
    return next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])


def _problem(call: OpCall, p: Propagation, said: Said, tracked: list[Layer]) -> str:
    """What a rule has said that cannot be, or has not said; empty if all is well."""
    mine = {id(out) for out in call.outputs}
    if any(id(value) not in mine for value in said.put):
        return "gave layers to a tensor that the op does not return: p.put(…) is for call.out and call.outputs"
    for out in call.outputs:
        for layer in p.layers(out):
            if not (_broadcasts(layer.labels, out) and _broadcasts(layer.removed, out)):
                return (
                    f"gave a result of shape {tuple(out.shape)} labels of shape {tuple(layer.labels.shape)} and "
                    f"removed values of shape {tuple(layer.removed.shape)}: expected {out.ndim} dimensions, each of "
                    "size 1 or the result's; layer.map(…) moves both alike"
                )
    if len({id(value) for value in said.put}) == len(mine):
        return ""
    frozen = torch.cat([torch.zeros(0, dtype=torch.int64), *said.frozen])
    if all(torch.isin(layer.labels[layer.labels > 0], frozen).all() for layer in tracked):
        return ""
    return (
        "said nothing about a result, nor kept whole what enters: expected p.put(call.out, layers) for each result, or "
        'p.freeze_value(value, "why") for each input'
    )


def _broadcasts(labels: Tensor, value: Tensor) -> bool:
    return labels.ndim == value.ndim and all(n in (1, size) for n, size in zip(labels.shape, value.shape, strict=True))


def _overloads(op: Any) -> list[OpOverload]:
    """Every overload of an op, in whichever form it is given."""
    if isinstance(op, CustomOpDef):
        found = [op._opoverload]
    elif isinstance(op, OpOverloadPacket):
        found = [getattr(op, name) for name in op.overloads()]
    elif isinstance(op, OpOverload):
        found = [op]
    else:
        raise RuleError(f"register_rule expects an op such as torch.ops.mylib.scale, found {_instead_of_op(op)}")
    written = [one for one in found if one._schema.is_mutable]
    if written and (len(written) == len(found) or found[0].namespace != "aten"):
        raise RuleError(
            f"{written[0]} writes into its arguments, which a rule cannot tell of: register an op that returns its "
            "result"
        )
    return [one for one in found if one not in written]


def _instead_of_op(op: Any) -> str:
    if inspect.isclass(op) and issubclass(op, torch.autograd.Function):
        return (
            f"the autograd.Function {op.__name__}, which leaves no trace of its own: wrap what its forward does as "
            f"{_WRAP} and its backward with .register_autograd, or register the module that calls it with register_leaf"
        )
    if isinstance(op, nn.Module) or (inspect.isclass(op) and issubclass(op, nn.Module)):
        name = op.__name__ if inspect.isclass(op) else type(op).__name__
        return f"the module {name}: give its class to register_leaf"
    if inspect.isfunction(op) or inspect.isbuiltin(op):
        return (
            f"the Python function {op.__name__}, whose ops are seen one by one: if it is a kernel that they do not "
            f"tell, wrap it as {_WRAP}"
        )
    return f"{op!r} ({type(op).__name__}): a name is looked up as getattr(torch.ops.mylib, name)"


_WRAP = '@torch.library.custom_op("mylib::name", mutates_args=()) with .register_fake for its shapes'


def _check_callable(rule: Any, whose: str) -> None:
    try:
        inspect.signature(rule).bind(None, None)
    except (TypeError, ValueError) as error:
        shown = _described(rule) if callable(rule) else repr(rule)
        raise RuleError(
            f"{whose}: expected a function of (call, p), or a kind such as fx_oto.kinds.elementwise(), with its "
            f"parentheses; found {shown}"
        ) from error


def _check_free(subject: str, earlier: Taught | None, rule: Any, replace: bool) -> None:
    if earlier is not None and not replace and _name(earlier.rule) != _name(rule):
        raise RuleError(
            f"{subject} already has the rule {_described(earlier.rule)}; pass replace=True to replace it by "
            f"{_described(rule)}, or call unregister_rule first"
        )


def _name(thing: Callable[..., Any]) -> tuple[str, str]:
    """What tells rules, and classes, apart: those of a cell that was run again have the same."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return named.__module__, named.__qualname__


def _described(rule: Any) -> str:
    if not hasattr(rule, "__qualname__"):
        return repr(rule)
    code = getattr(rule, "__code__", None)
    return f"{rule.__qualname__}" + (f" at {file_shown(code.co_filename)}:{code.co_firstlineno}" if code else "")
