"""The graph as JSON and back. A file can only name what is on the lists of ``whitelist``; all else is refused by name.

torch.fx prints a graph as Python code and runs that, so each name, path and constant is checked before it gets there.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.autograd import Function
from torch.fx import Graph, Node
from torch.nn.utils import parametrize

from fx_oto.capture.arguments import annotate
from fx_oto.capture.custom import as_function
from fx_oto.capture.names import AnyNames, is_plain
from fx_oto.capture.whole import LeafTracer
from fx_oto.core.errors import FileError
from fx_oto.core.fx_utils import described, last_node
from fx_oto.deploy.records import made_record, written_record
from fx_oto.deploy.values import Reader, UnwritableError, a_dict, a_list, a_text, given_names, written
from fx_oto.deploy.whitelist import attribute_is_known, method_is_known, name_of_function
from fx_oto.nn.modes import written_in
from fx_oto.nn.outputs import named_tuple

__all__ = ["made_graph", "written_graph"]

_PATH_PART = re.compile(r"[\w +\-:/@#<>=,]+")  # no quotes, backslashes or parentheses, which could end a name in code
_TAKEN = {"self", "torch", "getattr"}  # names that the code itself reads
_STAND_IN = "__odd_name_"  # what code has for an odd name, until it is replaced as text
_REMEDY = "torch.save(small, file) can hold it"


def written_graph(graph: Graph) -> list[dict[str, Any]]:
    """The nodes of a graph as JSON.

    Raises:
        FileError: a node calls what no file may name; names it and what to do.
    """
    if type(graph._codegen) not in (AnyNames, type(Graph()._codegen)):
        raise FileError(
            "the graph takes its inputs as torch.export or concrete_args have made it, which no file holds: compress "
            f"the model itself instead of its exported program; {_REMEDY}"
        )
    return [_written(node) for node in graph.nodes]


def _written(node: Node) -> dict[str, Any]:
    try:
        target, named = _target(node), 2 if node.target is named_tuple else 0  # of which the target says the first two
        args, kwargs = written(tuple(node.args[named:])), written(dict(node.kwargs))
    except UnwritableError as error:
        raise FileError(f"{described(node)} cannot be written: no file holds {error}; {_REMEDY}") from error
    return {"name": node.name, "op": node.op, "target": target, "args": args, "kwargs": kwargs}


def _target(node: Node) -> Any:
    if node.op != "call_function":
        name = str(node.target)
        if node.op == "call_method" and not method_is_known(name):
            raise UnwritableError(f"a call of the method {name!r}, which is none of tensors' public ones")
        return name
    target: Any = node.target
    if known := name_of_function(target):
        return {"function": known}
    if (record := written_record(target, node.args)) is not None:
        return record
    names = given_names(target)
    if names is None:
        raise UnwritableError(f"a call of {target!r:.80}, which has no name that it could be found by")
    return {"given": names}


def made_graph(nodes: Any, held: nn.Module, reader: Reader, model: nn.Module | None) -> Graph:
    """A graph that calls what a module holds.

    Args:
        nodes: what a file says of each.
        held: the module.
        reader: makes values.
        model: of the user's own class; classes of its outputs are found by its code.

    Raises:
        FileError: a node is not what ``written_graph`` writes, or calls what no file may name.
    """
    graph = Graph(tracer_cls=LeafTracer)
    graph.set_codegen(AnyNames())
    made: dict[str, Node] = {}
    reader = dataclasses.replace(reader, nodes=made)
    for entry in a_list(nodes):
        name = _name(a_dict(entry).get("name"))
        if graph.nodes and last_node(graph).op == "output":
            raise FileError(f"the node {name!r} comes after the output")
        made[name] = _put(graph, name, entry, held, reader, model)
    if not made or last_node(graph).op != "output":
        raise FileError("the graph has no output")
    annotate(graph)
    return graph


def _put(graph: Graph, name: str, entry: dict[str, Any], held: nn.Module, reader: Reader, model: Any) -> Node:
    op, args, kwargs = a_text(entry.get("op")), reader.read(entry.get("args")), reader.read(entry.get("kwargs"))
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise FileError(f"the node {name!r} has no arguments")
    for key in kwargs:
        _name(key)
    _check_texts((args, kwargs))
    target: Any = entry.get("target")
    if op == "call_function":
        target, first = _function(target, reader, model)
        args = (*first, *args)
        _check_call(name, target, args)
    elif op == "call_method":
        _check_method(name, target)
    elif op in ("call_module", "get_attr"):
        _check_path(name, a_text(target), held, is_module=op == "call_module")
    elif op == "placeholder":
        _name(a_text(target).removeprefix("*").removeprefix("*"))
    elif (op, target) != ("output", "output"):
        raise FileError(f"the node {name!r} is of no known kind: {op!r:.40}")
    node = graph.create_node(op, target, args, kwargs, name)
    if node.name != name:
        raise FileError(f"two nodes are called {name!r}, or code has another use for the name")
    return node


def _name(value: Any) -> str:
    """A name that code can spell."""
    if not isinstance(value, str) or not is_plain(value) or value.startswith("__") or value in _TAKEN:
        raise FileError(f"{value!r:.60} is no name")
    return value


def _check_texts(value: Any) -> None:
    """No text may hold what code of odd names replaces."""
    if isinstance(value, str) and _STAND_IN in value:
        raise FileError(f"a text holds {_STAND_IN!r}, which code has another use for")
    if isinstance(value, dict):
        _check_texts([*value, *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for one in value:
            _check_texts(one)
    elif isinstance(value, slice):
        _check_texts([value.start, value.stop, value.step])


def _function(target: Any, reader: Reader, model: nn.Module | None) -> tuple[Any, tuple[Any, ...]]:
    """What a node calls, and the first arguments that the file does not say."""
    if not isinstance(target, dict):
        raise FileError(f"{target!r:.60} is no function")
    if "output" in target:
        return made_record(target, reader, model)
    found = reader.read(target)
    return (as_function(found) if isinstance(found, type) and issubclass(found, Function) else found), ()


def _check_call(name: str, target: Any, args: tuple[Any, ...]) -> None:
    """What a function looks up by name must be on the lists as well."""
    if target is getattr and not (len(args) == 2 and isinstance(args[1], str) and attribute_is_known(args[1])):
        raise FileError(f"the node {name!r} reads an attribute that files may not name: {args[1:]!r:.60}")
    if target is written_in:
        write = args[2] if len(args) > 2 else None
        if not isinstance(write, OpOverload) and not (isinstance(write, str) and method_is_known(write)):
            raise FileError(f"the node {name!r} writes by what files may not name: {write!r:.60}")


def _check_method(name: str, method: Any) -> None:
    if not method_is_known(a_text(method)):
        raise FileError(f"the node {name!r} calls the method {method!r:.60}, which is none of tensors' public ones")


def _check_path(name: str, path: str, held: nn.Module, is_module: bool) -> None:
    """A path must lead to a module or tensor that is there, by names that code can spell."""
    *owners, last = path.split(".")
    owner: Any = held
    for part in (*owners, last) if is_module else owners:
        owner = None if owner is None or not _PATH_PART.fullmatch(part) else owner._modules.get(part)
    found: Any = owner if is_module else None
    if not is_module and owner is not None and _PATH_PART.fullmatch(last):
        computed = parametrize.is_parametrized(owner) and last in owner.parametrizations
        found = owner if computed else {**owner._parameters, **owner._buffers}.get(last)
    if found is None or not isinstance(found, nn.Module | Tensor) or (is_module and found is held):
        raise FileError(f"the node {name!r} reads {path!r:.60}, which is not there")
