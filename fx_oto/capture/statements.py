"""Statements of a ``forward`` that cannot be captured: what comes before and after them can."""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import CellType, CodeType, FunctionType, TracebackType
from typing import Any

from torch import nn

__all__ = ["StatementCall", "failed_line", "forward_without", "statement_at"]

_CALL, _BODY, _OUTER = "__fx_oto_call__", "__fx_oto_statement_", "__fx_oto_outer__"
_STAY = (ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal, ast.Delete, ast.Import, ast.ImportFrom)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_LEAVE = (ast.Return, ast.Break, ast.Continue)


class StatementCall(nn.Module):
    """Runs a statement of a model's ``forward``, which must not use parameters.

    Args:
        kind: the model's class.
        line: where the statement begins.
        names: what it is given, in order.
        others: what it reads besides, such as ``self``.
    """

    def __init__(self, kind: type, line: int, names: tuple[str, ...], others: Mapping[str, Any]) -> None:
        super().__init__()
        self._statement = (kind, line, names, others)

    def is_like(self, other: StatementCall) -> bool:
        """Whether another one does the same."""
        return self._statement == other._statement

    def forward(self, *values: Any) -> Any:
        """What the statement assigns, or returns."""
        kind, line, names, others = self._statement
        return _compiled(kind, (line,))[f"{_BODY}{line}"](**dict(zip(names, values, strict=True)), **others)


def failed_line(trace: TracebackType | None, kind: type) -> int | None:
    """The line of ``kind.forward`` at which an error came up."""
    code = getattr(getattr(kind, "forward", None), "__code__", None)
    found = None
    while trace is not None and code is not None:
        mine = trace.tb_frame.f_code
        if (mine.co_filename, mine.co_name) == (code.co_filename, code.co_name):
            found = trace.tb_lineno
        trace = trace.tb_next
    return found


def statement_at(kind: type, line: int) -> int | None:
    """Where the innermost statement of ``kind.forward`` begins that has this line; None if it must stay in its place.

    So must those that return or leave a loop from within, and that assign to no name.
    """
    tree = _parsed(kind)
    if tree is None:
        return None
    around = [one for one in _statements(tree) if one.lineno <= line <= (one.end_lineno or one.lineno)]
    innermost = max(around, key=lambda one: one.lineno, default=None)
    return innermost.lineno if innermost is not None and _can_go(innermost) else None


def forward_without(
    kind: type, lines: tuple[int, ...], call: Callable[[int, dict[str, Any]], Any]
) -> Callable[..., Any]:
    """``kind.forward`` in which ``call(line, {name: value})`` takes the place of the statements at some lines.

    The names are those that the statement reads; what is returned, it would have assigned or returned.
    """
    return _with_cells(_compiled(kind, lines)["forward"], {_CALL: CellType(call)})


@cache
def _parsed(kind: type) -> ast.FunctionDef | None:
    try:
        lines, start = inspect.getsourcelines(kind.forward)  # type: ignore[attr-defined]
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return None
    function = tree.body[0]
    if not isinstance(function, ast.FunctionDef) or function.decorator_list or hasattr(kind.forward, "__wrapped__"):  # type: ignore[attr-defined]
        return None
    names = {one.attr for one in ast.walk(function) if isinstance(one, ast.Attribute)}
    if any(name.startswith("__") and not name.endswith("__") for name in names):  # which a class spells differently
        return None
    ast.increment_lineno(tree, start - 1)
    return function


def _statements(function: ast.FunctionDef) -> Iterator[ast.stmt]:
    return (one for one in ast.walk(function) if isinstance(one, ast.stmt) and one is not function)


def _can_go(statement: ast.stmt) -> bool:
    inside = list(ast.walk(statement))
    if any(isinstance(one, (*_STAY, *_SCOPES)) for one in inside):
        return False
    if isinstance(statement, ast.Return):
        return statement.value is not None
    return bool(_names(statement)[1]) and not any(isinstance(one, _LEAVE) for one in inside)


def _names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """The names that a statement reads or assigns, and those that it assigns."""
    read, assigned = set[str](), set[str]()

    def visit(node: ast.AST, hidden: frozenset[str]) -> None:
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            targets = (one for each in node.generators for one in ast.walk(each.target))
            hidden |= {one.id for one in targets if isinstance(one, ast.Name)}
        elif isinstance(node, ast.Lambda):
            hidden |= {one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg)}
        elif isinstance(node, ast.Name) and node.id not in hidden:
            read.add(node.id)
            if isinstance(node.ctx, ast.Store):
                assigned.add(node.id)
        for child in ast.iter_child_nodes(node):
            visit(child, hidden)

    visit(statement, frozenset())
    return read, assigned


def _given(function: ast.FunctionDef, statement: ast.stmt) -> list[str]:
    """The names that a statement reads and that are the function's, as assigned before."""
    arguments = {one.arg for one in ast.walk(function.args) if isinstance(one, ast.arg)}
    earlier = (one for one in _statements(function) if one.lineno < statement.lineno and not isinstance(one, _SCOPES))
    before = arguments.union(*(_assigned_before(one, statement) for one in earlier))
    return sorted(_names(statement)[0] & before)


def _assigned_before(one: ast.stmt, statement: ast.stmt) -> set[str]:
    """What a statement that begins earlier has assigned; of a loop, or a block, around it what that gives a name."""
    if (one.end_lineno or 0) < statement.lineno:
        return _names(one)[1]
    targets = [one.target] if isinstance(one, ast.For) else []
    if isinstance(one, ast.With):
        targets = [item.optional_vars for item in one.items if item.optional_vars is not None]
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


@cache
def _compiled(kind: type, lines: tuple[int, ...]) -> dict[str, FunctionType]:
    """The forward without the statements at these lines, and each of them as a function."""
    parsed = _parsed(kind)
    assert parsed is not None
    tree: ast.FunctionDef = parsed
    bodies: list[ast.stmt] = []

    class Moving(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            if isinstance(node, ast.stmt) and node is not tree and node.lineno in lines and _can_go(node):
                names, assigned = _given(tree, node), sorted(_names(node)[1])
                bodies.append(_as_function(node, names, assigned))
                return _as_call(node, names, assigned)
            return self.generic_visit(node)

    moved = Moving().visit(copy.deepcopy(tree))
    original: FunctionType = kind.forward  # type: ignore[attr-defined]
    outer = ast.FunctionDef(_OUTER, _arguments([*original.__code__.co_freevars, _CALL]), [moved, *bodies], [])
    module = ast.fix_missing_locations(ast.Module([outer], []))
    whole = compile(module, original.__code__.co_filename, "exec")
    (inner,) = (one for one in whole.co_consts if isinstance(one, CodeType))
    cells = dict(zip(original.__code__.co_freevars, original.__closure__ or (), strict=True))
    made = {}
    for code in (one for one in inner.co_consts if isinstance(one, CodeType)):
        closure = tuple(cells.get(name, CellType()) for name in code.co_freevars)
        made[code.co_name] = FunctionType(code, original.__globals__, code.co_name, None, closure)
    forward = made["forward"]
    forward.__defaults__, forward.__kwdefaults__ = original.__defaults__, original.__kwdefaults__
    return made


def _with_cells(function: FunctionType, cells: Mapping[str, CellType]) -> FunctionType:
    closure = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    code, names = function.__code__, function.__globals__
    made = FunctionType(
        code, names, code.co_name, function.__defaults__, tuple(cells.get(name, cell) for name, cell in closure)
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _as_function(statement: ast.stmt, names: list[str], assigned: list[str]) -> ast.FunctionDef:
    body: list[ast.stmt] = [statement]
    if not isinstance(statement, ast.Return):
        body.append(ast.Return(_tuple(assigned, ast.Load())))
    return ast.copy_location(ast.FunctionDef(f"{_BODY}{statement.lineno}", _arguments(names), body, []), statement)


def _as_call(statement: ast.stmt, names: list[str], assigned: list[str]) -> ast.stmt:
    given = ast.Dict([ast.Constant(name) for name in names], [ast.Name(name, ast.Load()) for name in names])
    call = ast.Call(ast.Name(_CALL, ast.Load()), [ast.Constant(statement.lineno), given], [])
    new: ast.stmt = ast.Return(call)
    if not isinstance(statement, ast.Return):
        new = ast.Assign([_tuple(assigned, ast.Store())], call)
    return ast.copy_location(new, statement)


def _tuple(names: list[str], context: ast.expr_context) -> ast.expr:
    """A name, or several."""
    parts: list[ast.expr] = [ast.Name(name, context) for name in names]
    return parts[0] if len(parts) == 1 else ast.Tuple(parts, context)


def _arguments(names: list[str]) -> ast.arguments:
    return ast.arguments([], [ast.arg(name) for name in names], None, [], [], None, [])
